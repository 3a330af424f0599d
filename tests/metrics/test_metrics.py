"""Metrics against closed forms: histograms, Gaussians, affine maps of one cloud of points, point masses."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from flowmaps import metrics
from flowmaps.exact import Checkerboard


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(counts: list[list[int]]) -> torch.Tensor:
    """Samples of the plane with these numbers in the cells of a grid over [-1, 1]^2, each at the middle of its cell."""
    bins = len(counts)
    middle = [-1 + (2 * k + 1) / bins for k in range(bins)]
    return torch.tensor([(middle[i], middle[j]) for i in range(bins) for j in range(bins) for _ in range(counts[i][j])])


MASSES = torch.tensor([[0.5, 0.25], [0.25, 0.0]], dtype=torch.float64)


# KL -------------------------------------------------------------------------------------------------------------------


def test_kl_is_zero_where_the_shares_are_the_masses():
    assert metrics.kl(MASSES, points([[2, 1], [1, 0]])) == pytest.approx(0, abs=1e-15)


def test_kl_of_a_known_histogram_and_its_orientation():
    expected = 0.5 * math.log(0.5 / 0.3) + 0.25 * math.log(0.25 / 0.2) + 0.25 * math.log(0.25 / 0.5)
    assert metrics.kl(MASSES, points([[3, 2], [5, 0]])) == pytest.approx(expected, rel=1e-14)
    masses = torch.tensor([[0.5, 0.5], [0.0, 0.0]])  # x_1 < 0
    left, low = points([[1, 1], [0, 0]]), points([[1, 0], [1, 0]])
    assert metrics.kl(masses, left) == pytest.approx(0, abs=1e-15)
    assert metrics.kl(masses, low) > 0.3


@pytest.mark.parametrize("lost", [points([[0, 0], [0, 4]]), torch.full((4, 2), 1.5)])
def test_samples_in_empty_cells_and_outside_count_in_the_number(lost: torch.Tensor):
    samples = torch.cat([points([[2, 1], [1, 0]]), lost])
    assert metrics.kl(MASSES, samples) == pytest.approx(math.log(2), rel=1e-14)


def test_a_cell_that_no_sample_hit_counts_as_half_a_sample():
    expected = 0.5 * math.log(0.5 / 0.7) + 0.25 * math.log(0.25 / 0.3) + 0.25 * math.log(0.25 / 0.05)
    assert metrics.kl(MASSES, points([[7, 3], [0, 0]])) == pytest.approx(expected, rel=1e-14)


def test_the_grid_is_closed_on_the_right():
    uniform = torch.full((2, 2), 0.25)
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    assert metrics.kl(uniform, corners) == pytest.approx(0, abs=1e-15)


def test_the_floor_is_half_the_cells_over_the_number():
    board, number = Checkerboard(), 400_000
    cells = int((board.cell_masses(50) > 0).sum())
    law = (cells - 1) / (2 * number)  # 2 N KL is about chi-squared with cells - 1 degrees of freedom
    floor = metrics.kl_floor(board, number, seed=0)
    assert abs(floor / law - 1) < 5 * math.sqrt(2 / cells)
    assert floor == metrics.kl_floor(board, number, seed=0, masses=board.cell_masses(50))
    assert floor != metrics.kl_floor(board, number, seed=1)
    assert floor > 2 * metrics.kl_floor(board, number, seed=0, masses=board.cell_masses(25))


# Wasserstein ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [metrics.wasserstein2, metrics.sliced_wasserstein2])
def test_a_cloud_in_another_order_is_at_distance_zero(distance):
    x = normal(101, 3)
    assert distance(x, x.flip(0)) == pytest.approx(0, abs=1e-7)
    y = normal(101, 3, seed=1)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9)


def test_w2_of_gaussians():
    """A monotone affine map T of a cloud is optimal: W2^2 = mean |T(x) - x|^2; for Gaussians there is a closed form."""
    x = normal(301, 2)
    root = torch.tensor([[1.5, 0.4], [0.4, 0.7]], dtype=torch.float64)  # symmetric, positive
    y = x @ root + torch.tensor([3.0, -1.0])
    assert metrics.wasserstein2(x, y[torch.randperm(301)]) ** 2 == pytest.approx(metrics.map_error(y, x), rel=1e-9)
    covariance_form = 10 + float((root - torch.eye(2)).square().sum())  # |m|^2 + tr (C1^(1/2) - I)^2
    gaussian = metrics.wasserstein2(normal(1500, 2), normal(1500, 2, seed=1) @ root + torch.tensor([3.0, -1.0]))
    assert gaussian**2 == pytest.approx(covariance_form, rel=0.06)


def test_on_the_line_sliced_and_exact_are_the_sorted_distance():
    a, b = normal(77, 1), 2 * normal(77, 1, seed=1) + 1
    by_sorting = float((a.sort(0).values - b.sort(0).values).square().mean().sqrt())
    assert metrics.wasserstein2(a, b) == pytest.approx(by_sorting, rel=1e-9)
    assert metrics.sliced_wasserstein2(a, b, projections=3) == pytest.approx(by_sorting, rel=1e-12)


def test_sliced_distance_of_a_shift_and_its_generator():
    x, shift = normal(64, 4), torch.tensor([2.0, 0.0, 1.0, 0.0])
    sliced = metrics.sliced_wasserstein2(x, x + shift, projections=20_000)
    assert sliced == pytest.approx(math.sqrt(5 / 4), rel=0.02)  # E <w, m>^2 = |m|^2 / d
    y = normal(64, 4, seed=1)
    assert metrics.sliced_wasserstein2(x, y) <= metrics.wasserstein2(x, y)
    assert metrics.sliced_wasserstein2(x, y) == metrics.sliced_wasserstein2(x, y)
    one, other = (metrics.sliced_wasserstein2(x, y, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert one != other


@pytest.mark.slow
def test_w2_of_five_thousand_points_is_found_without_a_warning():
    x = normal(5000, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.wasserstein2(x, 1.1 * x.flip(0)) == pytest.approx(0.1 * float(x.square().sum(1).mean().sqrt()))


# Energy distance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbiased", [True, False])
def test_energy_distance_is_the_direct_formula(unbiased: bool, monkeypatch: pytest.MonkeyPatch):
    a, b = normal(13, 3), normal(9, 3, seed=1) + 0.5
    pairs = [sum(float((u - v).norm()) for u in p for v in q) for p, q in ((a, b), (a, a), (b, b))]
    less = 1 if unbiased else 0
    expected = 2 * pairs[0] / (13 * 9) - pairs[1] / (13 * (13 - less)) - pairs[2] / (9 * (9 - less))
    monkeypatch.setattr("flowmaps.metrics.points._BLOCK", 4)  # the last block of each set is a part
    assert metrics.energy_distance(a, b, unbiased=unbiased) == pytest.approx(expected, rel=1e-12)
    assert metrics.energy_distance(b, a, unbiased=unbiased) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_of_gaussians_and_of_one_law():
    """E|N(m, 2)| is the mean of a folded normal, E|N(0, 2)| = 2 / sqrt(pi); for one law the unbiased mean is zero."""
    m = 1.5
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    expected = 2 * folded - 4 / math.sqrt(math.pi)
    assert metrics.energy_distance(normal(4000, 1), normal(4000, 1, seed=1) + m) == pytest.approx(expected, rel=0.08)
    draws = torch.tensor(
        [metrics.energy_distance(normal(40, 2, seed=k), normal(40, 2, seed=999 + k)) for k in range(300)]
    )
    assert abs(float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(300)


def test_the_biased_energy_distance_of_equal_sets_is_zero_and_of_two_points_twice_their_distance():
    x = normal(50, 2)
    assert metrics.energy_distance(x, x, unbiased=False) == pytest.approx(0, abs=1e-13)
    assert metrics.energy_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), unbiased=False) == pytest.approx(10)


# Map error, shapes, errors --------------------------------------------------------------------------------------------


def test_map_error_sums_over_dimensions_and_averages_over_rows():
    assert metrics.map_error(torch.zeros(5, 3, 2), torch.full((5, 3, 2), 0.5)) == pytest.approx(6 * 0.25)


TWO_SETS = [metrics.wasserstein2, metrics.sliced_wasserstein2, metrics.energy_distance, metrics.map_error]


@pytest.mark.parametrize("figure", TWO_SETS)
def test_trailing_axes_are_flattened_and_inputs_left_alone(figure):
    a, b = normal(7, 2, 3).float(), normal(7, 2, 3, seed=1).float().requires_grad_()
    kept = a.clone()
    assert figure(a, b) == figure(a.reshape(7, 6), b.reshape(7, 6))
    assert torch.equal(a, kept)
    assert isinstance(figure(a, b), float)


@pytest.mark.parametrize("figure", TWO_SETS)
def test_two_sets_that_do_not_fit_are_refused(figure):
    x = normal(6, 2)
    with pytest.raises(ValueError, match="must have one shape, got"):
        figure(x, normal(6, 3))
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 of 6 rows"):
        figure(x, torch.where(torch.arange(12).reshape(6, 2) == 3, math.nan, x))
    with pytest.raises(ValueError, match="at least one row"):
        figure(x[:0], x[:0])
    with pytest.raises(ValueError, match=r"use torch.as_tensor"):
        figure(x.numpy(), x)


@pytest.mark.parametrize("figure", [f for f in TWO_SETS if f is not metrics.energy_distance])
def test_sets_of_different_numbers_are_refused(figure):
    with pytest.raises(ValueError, match="as many rows, got 6 and 5"):
        figure(normal(6, 2), normal(5, 2))


def test_other_refusals():
    x = normal(6, 2)
    with pytest.raises(ValueError, match="needs 2 rows in each set, got 1 and 6"):
        metrics.energy_distance(x[:1], x)
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        metrics.sliced_wasserstein2(x, x, projections=0)
    with pytest.raises(ValueError, match=r"shape \(N, 2\), points of the plane, got \(6, 3\)"):
        metrics.kl(MASSES, normal(6, 3))
    with pytest.raises(ValueError, match="square grid"):
        metrics.kl(torch.full((4,), 0.25), x)
    with pytest.raises(ValueError, match="at least 0 with sum 1, got sum 2"):
        metrics.kl(2 * MASSES, x)
    with pytest.raises(ValueError, match="number must be at least 1, got 0"):
        metrics.kl_floor(Checkerboard(), 0, seed=0)


# points of the board in another cell ----------------------------------------------------------------------------------


def test_a_point_belongs_to_the_nearest_cell_of_the_board():
    x = torch.tensor([[-0.9, -0.9], [-0.9, 0.4], [0.9, 0.9], [1.4, 0.6], [-1.2, -0.8], [-0.4, -0.3]])
    cells = Checkerboard().nearest_cell(x)
    assert cells.tolist() == [0, 1, 7, 7, 0, 2]
    inside = Checkerboard().sample(500, generator=torch.Generator().manual_seed(0))
    shifted = inside + 1e-3 * torch.randn(inside.shape, generator=torch.Generator().manual_seed(1))
    assert Checkerboard().nearest_cell(inside).unique().tolist() == list(range(8))
    assert float((Checkerboard().nearest_cell(shifted) != Checkerboard().nearest_cell(inside)).float().mean()) < 0.01


def test_the_share_in_another_cell_counts_points_not_distances():
    exact = torch.tensor([[-0.9, -0.9], [-0.9, 0.4], [0.9, 0.9], [-0.4, -0.3]])
    moved = torch.tensor([[-1.5, -0.7], [0.9, 0.9], [0.6, 0.6], [-0.4, -0.3]])
    assert metrics.share_in_other_cell(Checkerboard(), moved, exact) == 0.25
    with pytest.raises(ValueError, match="must have as many rows"):
        metrics.share_in_other_cell(Checkerboard(), moved[:2], exact)
