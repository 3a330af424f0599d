"""The page of the networks: its example runs, its table is what the benchmark prints, and sizes are the papers'."""

from __future__ import annotations

import re
import sys

import pytest
from places import ROOT

from flowmaps.nn import DiT

sys.path.insert(0, str(ROOT / "benchmarks"))
import networks  # pyright: ignore[reportMissingImports]

PAGE = (ROOT / "docs" / "networks.md").read_text()


def test_the_example_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    given: dict = {}
    exec(block, given)
    assert given["samples"].shape == (16, 1, 8, 8)
    assert not given["net"].embedding.second_time.weight.any()


def row(name: str) -> str:
    shape, parameters, flops = networks.measured(networks.SIZES[name][1])
    return f"| {' x '.join(map(str, shape))} | {parameters:.1f} | {flops:.2f} |"


@pytest.mark.parametrize("name", ["UNet", "UNet, small", "DiT-S/2", "DiT-S/4"])
def test_the_table_is_what_is_measured(name: str) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    assert line.endswith(row(name)), "run python benchmarks/networks.py"


def test_every_size_has_a_row() -> None:
    names = re.findall(r"^\| ([^|]+) \| [^|]+ \| \d+ x", PAGE, re.M)
    assert names == list(networks.SIZES)


def test_the_transformer_has_the_size_of_the_papers() -> None:
    """DiT-S/2 on latents of 4 x 32 x 32 with 1,000 classes: 33 M parameters, 6.06 G multiplications with additions."""
    shape, parameters, flops = networks.measured(lambda: DiT(4, 32, classes=1000))
    assert shape == (4, 32, 32)
    assert parameters == pytest.approx(33, abs=0.5)
    assert flops / 2 == pytest.approx(6.06, abs=0.01)
