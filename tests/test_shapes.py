"""Time is aligned with a batch in one place, and refused where it is not one number a row."""

from __future__ import annotations

import importlib
import math

import pytest
import shapecheck
import torch
from torch import Tensor

from flowmaps.dual.core import Dual
from flowmaps.shapes import Batch, GuidedCondition, Time, check_time, label_of, like, per_row


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 2, 5), (3, 3, 3, 3)])
def test_like_multiplies_row_by_row(shape: tuple[int, ...]):
    """Square batches are the trap: (B,) beside (B, B) would scale columns."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([2.0, -1.0, 0.5])
    product = like(t, x) * x
    assert product.shape == x.shape
    for k in range(3):
        assert torch.equal(product[k], float(t[k]) * x[k])


def test_per_row_sums_each_row():
    x = torch.arange(24.0).reshape(4, 3, 2)
    assert per_row(x).tolist() == [15, 51, 87, 123]
    assert torch.equal(per_row(x[:, 0, 0]), x[:, 0, 0])


def test_the_label_of_a_condition_is_it_without_the_weight():
    labels, weights = torch.arange(3), torch.ones(3)
    assert label_of(GuidedCondition(labels, weights)) is labels
    assert label_of(labels) is labels
    assert label_of(None) is None
    assert label_of(GuidedCondition(None, weights)) is None


def test_times_that_are_accepted():
    x = torch.zeros(3, 2)
    check_time(torch.tensor([0.0, 0.5, 1.0]), x)
    check_time(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), x)
    check_time(torch.zeros(0), torch.zeros(0, 2))


@pytest.mark.parametrize(
    "t, words",
    [
        (0.5, r"s must be a tensor of shape \(3,\), got 0.5: use torch.full\(\(3,\), 0.5\)"),
        (torch.tensor(0.5), r"s must have shape \(3,\), .* got \(\): use s.expand\(3\)"),
        (torch.zeros(3, 1), r"s must have shape \(3,\), one time for each row of x \(3, 2\), got \(3, 1\)"),
        (torch.zeros(2), r"got \(2,\)"),
        (torch.zeros(3, dtype=torch.int64), r"floating point, got torch.int64: use s.to\(x.dtype\)"),
        (torch.tensor([0.0, 1.25, 1.0]), r"\[0, 1\] .* got values from 0 to 1.25: rescale"),
        (torch.tensor([-0.5, 0.0, 1.0]), r"got values from -0.5 to 1"),
        (torch.tensor([0.5, math.nan, 0.5]), r"\[0, 1\]"),
    ],
)
def test_times_that_are_refused(t: object, words: str):
    with pytest.raises(ValueError, match=words):
        check_time(t, torch.zeros(3, 2), "s")


# the check of shapes in the tests -------------------------------------------------------------------------------------


def test_all_of_the_mathematics_is_checked():
    """Every file and folder of it that names shapes in a signature; the four that are left speak of none."""
    for name in shapecheck.CORE:
        importlib.import_module(f"flowmaps.{name}")
    found = {name.split(".")[1] for name in shapecheck.CHECKED}
    assert shapecheck.CORE - found == {"methods", "modules", "schedules", "shapes"}


def test_a_shape_that_is_not_the_annotated_one_is_refused():
    """Of an argument or of what is returned; a `Dual` counts by its value, and the function's own errors come first."""

    @shapecheck.checked
    def scaled(x: Batch, t: Time, cut: int | None = None) -> Batch:
        if t.shape != x.shape[:1]:
            raise ValueError("the function's own error")
        return (like(t, x) * x)[:cut]

    x, t = torch.ones(3, 2), torch.ones(3)
    for _ in range(2):  # the second time from memory
        assert isinstance(scaled(x, t), Tensor)
        assert isinstance(scaled(Dual(x, x), t=t), Dual)
        with pytest.raises(ValueError, match="the function's own error"):
            scaled(x, t[:2])
        with pytest.raises(TypeError, match=r"scaled: return is not .*, among .*'return': \(torch.Size\(\[2, 2\]\)"):
            scaled(x, t, 2)
        with pytest.raises(TypeError, match="scaled: return is not"):
            scaled(Dual(x, x), t, cut=2)
        with pytest.raises(TypeError, match="scaled: x is not"):
            scaled(x.long(), t)
