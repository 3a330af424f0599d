"""What is released: the wheel, alone in an environment that has its dependencies and nothing of this folder."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from places import ROOT

import flowmaps

SITE = Path(torch.__file__).parents[1]
USE = """
import sys, torch, flowmaps as fm
assert fm.__file__.startswith(sys.prefix), fm.__file__
board = fm.exact.Checkerboard()
flow_map = fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=8))
fm.fit(fm.methods.lsd(flow_map), board.sample(100), "run", steps=2, device="cpu", compile=False)
print(fm.__version__, tuple(fm.samplers.Jump(2)(fm.load("run"), torch.randn(3, 2)).shape))
"""


@pytest.mark.slow
def test_the_wheel_works_without_this_folder(tmp_path: Path):
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", tmp_path, "-t", "wheel"], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "flowmaps/py.typed" in names
    assert not [name for name in names if "test" in Path(name).parts or name.endswith(".pyc")]
    packed = {Path(name).relative_to("flowmaps") for name in names if name.startswith("flowmaps/")}
    source = ROOT / "src" / "flowmaps"
    assert packed == {path.relative_to(source) for path in [*source.rglob("*.py"), source / "py.typed"]}
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    links = tmp_path / "dependencies"
    links.mkdir()
    for entry in SITE.iterdir():  # all that is installed here but flowmaps
        if not entry.name.startswith(("flowmaps", "_flowmaps", "__editable__")) and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    (packages / "dependencies.pth").write_text(f"{links}\n")
    said = subprocess.run([python, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{flowmaps.__version__} (3, 2)"
    program = python.with_name("flowmaps")
    said = subprocess.run([program, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "flowmaps COMMAND" in said
