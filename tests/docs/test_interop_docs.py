"""The lines of docs/interop.md run."""

from __future__ import annotations

import re

import torch
from places import ROOT


def test_the_lines_distil_a_network_of_points():
    page = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shorter = block.replace("steps=2_000", 'steps=3, batch=16, device="cpu", say=lambda _: None')
    assert shorter != block
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(shorter, "interop.md", "exec"), names)
    assert names["samples"].shape == (1000, 2)
    assert names["samples"].isfinite().all()
    assert isinstance(names["net"][0], torch.nn.Linear)  # left as it is
    assert names["model"].exact
