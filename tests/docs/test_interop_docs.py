"""The lines of docs/interop.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from places import ROOT

import flowmaps as fm


def test_the_lines_distil_a_network_of_points():
    page = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    shorter = block.replace("steps=2_000", 'steps=3, batch=16, device="cpu", say=lambda _: None')
    assert shorter != block
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(shorter, "interop.md", "exec"), names)
    assert names["samples"].shape == (1000, 2)
    assert names["samples"].isfinite().all()
    assert isinstance(names["net"][0], torch.nn.Linear)  # left as it is
    assert names["model"].exact


def test_the_lines_distil_a_pipeline_and_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1:])
    shorter = blocks.replace(
        "steps=1_000, batch=16", 'steps=2, batch=4, device="cpu", compile=False, say=lambda _: None'
    )
    assert shorter != blocks
    monkeypatch.chdir(tmp_path)
    names: dict = {"torch": torch, "fm": fm}
    torch.manual_seed(0)
    exec(compile(shorter, "interop.md", "exec"), names)
    assert names["model"].exact
    assert (tmp_path / "few-steps" / "model_index.json").exists()
    found = re.search(r"([\d,]+) bytes beside ([\d,]+)", capsys.readouterr().out)
    assert found
    adapter, whole = (int(size.replace(",", "")) for size in found.groups())
    assert adapter < whole / 2
