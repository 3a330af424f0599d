"""Time is aligned with a batch in one place, and refused where it is not one number a row."""

from __future__ import annotations

import math

import pytest
import torch

from flowmaps.shapes import Guide, check_time, label_of, like, per_row


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
    assert label_of(Guide(labels, weights)) is labels
    assert label_of(labels) is labels
    assert label_of(None) is None
    assert label_of(Guide(None, weights)) is None


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
