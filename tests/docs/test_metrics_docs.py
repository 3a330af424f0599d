"""The lines of docs/metrics.md run, on a few images and at a small size."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from places import ROOT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the covariance of")
def test_the_lines_measure_images(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("FLOWMAPS_CACHE", str(tmp_path))
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    small = block.replace("efficientnet-lite0:64", "efficientnet-lite0:32").replace(", strict=True", "")
    assert small != block
    rng = torch.Generator().manual_seed(0)
    samples, real = torch.randint(256, (2, 12, 3, 16, 16), dtype=torch.uint8, generator=rng)
    names = {"samples": samples, "images": SimpleNamespace(pixels=real)}
    exec(compile(small, "metrics.md", "exec"), names)
    assert names["x"].shape == (12, 1280)
    assert any(tmp_path.iterdir())
