"""Every block of Python in the pages runs, in the order of its page, with short trainings.

A page is here with what it takes for granted, or it has a test of its own that runs its blocks (`ELSEWHERE`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT

import flowmaps as fm

BLOCK = re.compile(r"```python\n(.*?)```", re.S)
FIT = 'steps=2, batch=16, device="cpu", compile=False, say=lambda _: None'
SHORTER = [
    (r"(?<=steps=)[\d_]+, batch=\d+(?=\))", FIT.removeprefix("steps=")),
    (r"sample\(\d+_000\)", "sample(300)"),
    (r"(?<=[( ])\d_?000, 2\)", "50, 2)"),
    (r"torch\.(zeros|ones)\(1000\)", r"torch.\1(50)"),
    (r"width=\d+, depth=\d", "width=8, depth=2"),
    ("resolution=32, width=64", "resolution=32, width=8, multipliers=(1, 1), blocks=1, attention=(), head=8"),
    (r"(?<=lr=1e-3\), )2000", "2"),
    (r"sample\((1024|5000)\)", "sample(50)"),
]
"""What stands in the pages -> what is run."""


def shorter(text: str) -> str:
    """The code of a page with few rows and steps."""
    for long, short in SHORTER:
        text = re.sub(long, short, text)
    return text


def run(path: Path, names: dict[str, Any], first: int = 0) -> dict[str, Any]:
    """Run the blocks of a page from one on, with some names; all names in the end."""
    for block in BLOCK.findall(path.read_text(encoding="utf-8"))[first:]:
        exec(compile(shorter(block), path.name, "exec"), names)
    return names


def small_map(classes: int | None = None) -> fm.maps.FlowMap:
    return fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=2, classes=classes))


def of_guidance() -> dict[str, Any]:
    labels = torch.arange(20) % 10
    names = {"teacher": lambda x, t, cond=None: -x, "x1": torch.randn(20, 64), "x0": torch.randn(20, 64)}
    return {"fm": fm, "torch": torch, "labels": labels, **names}


def of_images() -> dict[str, Any]:
    return {"images": torch.rand(2, 3, 32, 32) * 2 - 1, "labels": torch.tensor([1, 2])}


def of_conventions() -> dict[str, Any]:
    return {"fm": fm, "model": lambda *inputs: inputs[0]}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": dict,
    "docs/index.md": dict,
    "docs/understand/flow_map.md": dict,
    "docs/understand/jumps.md": dict,
    "docs/understand/equations.md": dict,
    "docs/understand/space.md": dict,
    "docs/start/first_map.md": dict,
    "docs/extend.md": dict,
    "docs/sampling.md": lambda: {"flow_map": small_map()},
    "docs/guidance.md": of_guidance,
    "docs/images.md": of_images,
    "docs/conventions.md": of_conventions,
}
"""What each page takes for granted."""
ELSEWHERE = {
    "docs/data.md": "test_data_docs.py",
    "docs/derivatives.md": "test_derivatives_docs.py",
    "docs/export.md": "test_export_docs.py",
    "docs/interop.md": "test_interop_docs.py",
    "docs/latents.md": "test_latents_docs.py",
    "docs/metrics.md": "test_metrics_docs.py",
    "docs/networks.md": "test_networks_docs.py",
    "docs/train_your_own.md": "test_train_your_own.py",
    "docs/training.md": "test_training_docs.py",
    "docs/tuning.md": "test_tuning_docs.py",
    "docs/uses/": "test_uses_docs.py",
    "docs/methods/": "test_docs.py",
}
"""Pages, or folders of them, whose blocks a test of their own runs."""


def pages_with_blocks() -> list[str]:
    """All pages that have blocks of Python."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        path.relative_to(ROOT).as_posix()
        for path in pages
        if BLOCK.search(path.read_text(encoding="utf-8")) is not None
    ]


def test_every_page_with_blocks_is_run():
    for test in ELSEWHERE.values():
        assert "python" in (Path(__file__).parent / test).read_text(encoding="utf-8"), test
    for page in pages_with_blocks():
        elsewhere = [name for name in ELSEWHERE if page == name or (name.endswith("/") and page.startswith(name))]
        assert (page in GIVEN) + len(elsewhere) == 1, f"{page} has blocks of Python that no test runs"
    assert set(GIVEN) <= set(pages_with_blocks())


@pytest.mark.parametrize("page", GIVEN)
def test_the_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    before = dict(fm.dual.core.TABLE)
    try:
        names = run(ROOT / page, GIVEN[page]())
    finally:  # a page may add a rule
        fm.dual.core.TABLE.clear()
        fm.dual.core.TABLE.update(before)
    samples = names.get("samples")
    assert samples is None or bool(samples.isfinite().all())
