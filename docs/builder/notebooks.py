"""Notebooks: their pages in the site, and their execution.

A page has the cells of a notebook in their order: text as it is, code as a fenced block, printed lines as a block of
text, pictures as files beside the page. Nothing is fetched and no script is added.

    python docs/builder/notebooks.py docs/tutorials/which_method.ipynb    run a notebook, and write its outputs into it
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "src"
"""The flowmaps that a notebook imports: that of this checkout."""
PARAMETERS = "parameters"
"""Tag of the cell that sets the sizes of a notebook."""
PROGRESS = re.compile(r"^step [\d,]+ of [\d,]+: .* s left\n", re.M)
CELL_SECONDS = 3_600
"""Longest time that a cell may take."""
START_SECONDS = 600
"""Longest time until a kernel answers, on a busy machine."""


def as_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook's page, and its pictures by the names of their files beside the page.

    Args:
        path: the notebook, `.ipynb`.
    """
    parts, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![{cell['metadata'].get('alt', 'Output of the cell above')}]({name})")
            elif text := _text(output):
                parts.append(f"```text\n{text}\n```")
    parts.insert(1, f'*This page is a notebook: <a href="{path.name}" download>download it</a> and run it.*')
    return "\n\n".join(parts) + "\n", pictures


def _text(output: dict[str, Any]) -> str:
    """What an output prints."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "")).rstrip()


def executed(path: Path, sizes: Mapping[str, Any] | None = None) -> Any:
    """Run all cells of a notebook in an empty folder, and return it with their outputs.

    Args:
        path: the notebook.
        sizes: values that take the place of those in the cell tagged `parameters`, by name.

    Raises:
        ValueError: a size that the cell does not set.
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    at = next(k for k, cell in enumerate(notebook.cells) if PARAMETERS in cell.metadata.get("tags", ()))
    set_there = [line.partition(" = ")[0] for line in notebook.cells[at].source.splitlines()]
    if unknown := {*(sizes or {})} - {*set_there}:
        raise ValueError(f"{path.name} has no sizes {sorted(unknown)}: its cell of parameters sets {set_there}.")
    if sizes:
        lines = "\n".join(f"{name} = {value!r}" for name, value in sizes.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
    limits = {"timeout": CELL_SECONDS, "startup_timeout": START_SECONDS, "record_timing": False}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")  # no port is opened
        client = NotebookClient(notebook, km=kernel, resources={"metadata": {"path": folder}}, **limits)
        client.execute(env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    return notebook


def tidied(notebook: Any) -> Any:
    """The notebook with the lines that a cell prints one after the other as one output.

    Those that `fm.fit` prints every ten seconds are left out: they tell how busy a machine was.
    """
    for cell in notebook.cells:
        outputs: list[Any] = []
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and outputs and outputs[-1].get("name") == output.name:
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = PROGRESS.sub("", output.text)
        if cell.cell_type == "code":
            cell.outputs = [output for output in outputs if output.get("text", "a picture")]
    return notebook


def main(paths: list[str]) -> None:
    """Run notebooks at full size, and write their outputs into them."""
    import nbformat

    for path in map(Path, paths):
        nbformat.write(tidied(executed(path)), path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
