"""The pages of what a map is for do what they say: their code is run in its order, on a map that is not trained."""

from __future__ import annotations

import re

import pytest
import torch
from places import ROOT

import flowmaps as fm

PAGES = sorted(path for path in (ROOT / "docs" / "uses").glob("*.md") if path.stem != "README")
SHORTER = {
    "(flow_map, x0, x1, interpolant=": "(flow_map, x0, x1, times=3, interpolant=",
    "velocity=board.velocity, times=8": "velocity=board.velocity, times=3",
    "torch.randn(200, 2)": "torch.randn(30, 2)",
    "board.sample(200)": "board.sample(30)",
    "residual_square(flow_map, x0)": "residual_square(flow_map, x0, number=3)",
    "board.sample(20_000), steps=2_000": 'board.sample(200), steps=2, device="cpu", compile=False, say=lambda _: None',
    "range(4_000)": "range(2)",
    "rtol=1e-4, atol=1e-4": 'method="rk4", steps=3',
}


def names_of(page: str) -> dict:
    """What a page takes for granted: a map, data, labels."""
    torch.manual_seed(0)
    classes = {"classes": 3} if page == "inversion" else {}
    flow_map = fm.maps.AverageVelocity(fm.nn.MLP(dim=2, width=16, depth=2, **classes))
    board = fm.exact.Checkerboard()
    objective = fm.methods.lmd(flow_map, teacher=board.velocity)
    names = {"flow_map": flow_map, "board": board, "objective": objective, "x1": board.sample(20)}
    return names | {"x0": torch.randn(20, 2), "labels": torch.arange(20) % 3, "other_labels": torch.arange(20) % 2}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_runs(page):
    names = names_of(page.stem)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for text in blocks:
        assert len([line for line in text.splitlines() if line.strip()]) <= 14
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        if page.stem == "inversion":  # a map of no training inverts in no more than small jumps
            text = text.replace("other_labels, to=0.3", "other_labels, backwards=True, to=0.3")
            text = text.replace("labels, to=0.0, steps=2)", "labels, to=0.0, steps=2, backwards=True)")
        exec(compile(text, page.name, "exec"), names)
    results = {
        "certificates": lambda: "no bounds" in str(names["found"])
        and names["own"].own
        and len(names["figure"].axes) == 3,
        "inversion": lambda: names["other"].shape == (20, 2) and names["error"].shape == (20,),
        "likelihood": lambda: names["fast"].evaluations == 2 and names["bits"].shape == (4,),
        "physics": lambda: float(names["error_bar"]) > 0,
        "rewards": lambda: names["x"].shape == (500, 2) and len(names["found"].effective) == 8,
        "posterior": lambda: names["new"].shape == names["ends"].shape == names["found"].shape == (500, 2),
        "restoration": lambda: names["mean"].shape == (2,) and names["start"].shape == (4, 1, 8, 8),
    }
    assert results[page.stem]()


def test_each_page_says_what_it_must():
    assert [page.stem for page in PAGES] == [
        "certificates",
        "inversion",
        "likelihood",
        "physics",
        "posterior",
        "restoration",
        "rewards",
    ]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for must in ("**Cost", "**When not.**"):
            assert must in text, (page.name, must)
        for link in re.findall(r"\]\((?!https)([^)#]+)\)", text):
            assert (page.parent / link).exists(), (page.name, link)
