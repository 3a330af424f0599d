"""Figures of images' features against closed forms between Gaussians, scipy's root, and points placed by hand."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from flowmaps.metrics.images import Statistics, frechet_distance, kernel_distance, precision_recall
from flowmaps.metrics.row import label


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(mean, cov, number: int = 10**6, features: str = "some") -> Statistics:
    mean, cov = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, cov))
    return Statistics(number, mean, cov, features)


def spd(dim: int, seed: int, rank: int | None = None) -> torch.Tensor:
    a = normal(dim, rank or 2 * dim, seed=seed)
    return a @ a.T / dim


def rotation(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 1024, 1025, 2500])
def test_statistics_of_blocks_are_those_of_the_whole(number: int):
    x = normal(number, 5) + 1e6  # sums of squares would lose all digits here
    s = Statistics.of(x, "some")
    torch.testing.assert_close(s.mean, x.mean(0), rtol=1e-14, atol=0)
    expected = x.T.cov() if number > 1 else torch.zeros(5, 5, dtype=torch.float64)
    torch.testing.assert_close(s.cov, expected.reshape(5, 5), rtol=1e-7, atol=1e-9)
    assert s.number == number


def test_statistics_of_two_sets_are_those_of_both_together():
    x = normal(300, 4)
    whole, parts = Statistics.of(x, "some"), Statistics.of(x[:7], "some").join(Statistics.of(x[7:], "some"))
    assert parts.number == whole.number == 300
    torch.testing.assert_close(parts.cov, whole.cov, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-13)


# Fréchet distance -----------------------------------------------------------------------------------------------------


def test_on_the_line_it_is_the_gap_of_means_and_of_deviations():
    a, b = given([1.0], [[4.0]]), given([-0.5], [[0.25]])
    assert frechet_distance(a, b) == pytest.approx(1.5**2 + 1.5**2, rel=1e-12)


def test_where_covariances_commute_it_is_the_gap_of_their_roots():
    axes = rotation(6, seed=3)
    first, second = normal(6, seed=1).exp(), normal(6, seed=2).exp()
    a = given(normal(6, seed=4), axes @ torch.diag(first) @ axes.T)
    b = given(normal(6, seed=5), axes @ torch.diag(second) @ axes.T)
    expected = (a.mean - b.mean).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)


def test_it_is_the_same_where_no_eigenvectors_are_found(monkeypatch: pytest.MonkeyPatch):
    """Eigenvalues of a matrix of low rank may not converge; those of a covariance are its singular values."""
    x, y = normal(40, 30), 0.5 + normal(50, 30)
    x[:, 10:], y[:, 20:] = 0, 0
    a, b = Statistics.of(x, "x"), Statistics.of(y, "x")
    expected = frechet_distance(a, b)

    def lost(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", lost)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_it_is_what_the_root_by_eigenvectors_gives():
    a, b = given(normal(7), spd(7, 1)), given(normal(7, seed=9), spd(7, 2))
    values, axes = torch.linalg.eigh(a.cov)
    root = axes @ torch.diag(values.sqrt()) @ axes.T
    inner = torch.linalg.eigvalsh(root @ b.cov @ root).sqrt().sum()  # tr (C1^1/2 C2 C1^1/2)^1/2
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * inner
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("rank", [None, 3])
def test_zero_to_itself_symmetric_free_of_rotation_and_quadratic_in_scale(rank: int | None):
    mean, other, c1, c2 = normal(9, seed=1), normal(9, seed=2), spd(9, 3, rank), spd(9, 4, rank)
    a, b = given(mean, c1), given(other, c2)
    distance = frechet_distance(a, b)
    assert distance > 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-6)
    turn, shift = rotation(9, seed=5), normal(9, seed=6)
    turned = (given(turn @ s.mean + shift, turn @ s.cov @ turn.T) for s in (a, b))
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-6)
    scaled = (given(3 * s.mean, 9 * s.cov) for s in (a, b))
    assert frechet_distance(*scaled) == pytest.approx(9 * distance, rel=1e-6)


def test_singular_covariances_of_lines_across_each_other():
    """Laws on the first and on the second axis: no part of one covariance helps the other."""
    a, b = given([0.0, 0.0], [[4.0, 0.0], [0.0, 0.0]]), given([0.0, 0.0], [[0.0, 0.0], [0.0, 9.0]])
    assert frechet_distance(a, b) == pytest.approx(13, rel=1e-6)
    point = given([0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]])
    assert frechet_distance(a, point) == pytest.approx(4, rel=1e-6)


def test_a_far_origin_costs_no_digits():
    a, b = given(normal(4), spd(4, 1)), given(normal(4, seed=3), spd(4, 2))
    far = (given(s.mean + 1e6, s.cov) for s in (a, b))
    assert frechet_distance(*far) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_it_is_what_scipy_and_torchmetrics_say_of_the_features_themselves():
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is the judge")
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is the judge")
    x, y = normal(400, 40) @ spd(40, 1), normal(300, 40, seed=2) @ spd(40, 3) + 0.3
    got = frechet_distance(Statistics.of(x, "some"), Statistics.of(y, "some"))
    root = linalg.sqrtm((x.T.cov() @ y.T.cov()).numpy()).trace().real
    by_scipy = (x.mean(0) - y.mean(0)).square().sum() + x.T.cov().trace() + y.T.cov().trace() - 2 * root
    assert got == pytest.approx(float(by_scipy), rel=1e-6)
    network = torch.nn.Identity()
    network.num_features = 40
    judge = fid.FrechetInceptionDistance(network)
    judge.update(x, real=True)
    judge.update(y, real=False)
    assert got == pytest.approx(float(judge.compute()), rel=1e-6)


def test_the_bias_falls_like_one_over_the_number():
    """Two sets of one law lie apart by a constant over N: a quarter of the images, four times the figure."""
    few, many = (
        sum(
            frechet_distance(*(Statistics.of(normal(n, 6, seed=99 * k + j), "some") for j in (0, 1))) for k in range(30)
        )
        / 30
        for n in (500, 2000)
    )
    assert few / many == pytest.approx(4, rel=0.25)


def test_too_few_images_are_told_or_refused():
    a, b = given([0.0] * 5, torch.eye(5), 5), given([0.0] * 5, torch.eye(5), 6)
    with pytest.warns(UserWarning, match=r"5 images in 5 features \(some\) is singular.* 6 images at least, better 10"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="50,000 for a distance to be reported"):
        frechet_distance(b, a, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance(b, b, strict=True) == pytest.approx(0, abs=1e-12)


def test_features_of_two_networks_are_not_compared():
    a, b = given([0.0], [[1.0]]), given([0.0], [[1.0]], features="others")
    with pytest.raises(ValueError, match=r"two networks cannot be compared, got 'some' \(1\) and 'others' \(1\)"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="two networks"):
        a.join(b)
    with pytest.raises(ValueError, match=r"covariance \(D, D\), got 3, \(2,\) and \(1, 1\)"):
        given([0.0, 0.0], [[1.0]], 3)
    with pytest.raises(ValueError, match=r"\(N, D\) with N at least 1, got \(0, 3\)"):
        Statistics.of(torch.zeros(0, 3), "some")


# Kernel distance ------------------------------------------------------------------------------------------------------


def cubic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def test_kernel_distance_of_whole_sets_is_the_unbiased_formula():
    x, y = normal(13, 4), normal(13, 4, seed=1) + 0.4
    within = [(cubic(s, s).sum() - cubic(s, s).diagonal().sum()) / (13 * 12) for s in (x, y)]
    expected = float(within[0] + within[1] - 2 * cubic(x, y).mean())
    mean, deviation = kernel_distance(x, y, subsets=3, size=13)
    assert mean == pytest.approx(expected, rel=1e-10)
    assert deviation == pytest.approx(0, abs=1e-7)  # each subset is the whole set


def test_kernel_distance_in_one_dimension_is_known_in_moments():
    """(xy + 1)^3 = sum of binomials times powers: MMD^2 = 3 m1^2 + 3 m2^2 + m3^2 of the gaps of the moments."""
    shift = 0.5
    gaps = [shift, shift**2, shift**3 + 3 * shift]  # of E x, E x^2, E x^3 between N(0, 1) and N(shift, 1)
    expected = 3 * gaps[0] ** 2 + 3 * gaps[1] ** 2 + gaps[2] ** 2
    mean, _ = kernel_distance(normal(20_000, 1), normal(20_000, 1, seed=1) + shift, subsets=60, size=1000)
    assert mean == pytest.approx(expected, rel=0.06)


def test_kernel_distance_of_one_law_is_zero_on_average():
    draws = torch.tensor(
        [kernel_distance(normal(50, 3, seed=k), normal(50, 3, seed=999 + k), subsets=1, size=50)[0] for k in range(200)]
    )
    assert abs(float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(200)
    assert float(draws.min()) < 0


def test_subsets_follow_the_seed_alone_and_leave_the_generator_as_it_was():
    x, y = normal(60, 3), normal(70, 3, seed=1)
    torch.manual_seed(5)
    first, after = kernel_distance(x, y, subsets=25, size=20), torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    told: list[tuple[str, float]] = []
    assert kernel_distance(x, y, subsets=25, size=20, watch=lambda *words: told.append(words)) == first
    assert told == [("kernel distance", share) for share in (0.4, 0.8, 1.0)]
    assert kernel_distance(x, y, subsets=25, size=20, seed=1) != first
    assert first[1] > 0


# Precision and recall -------------------------------------------------------------------------------------------------


def by_hand(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float]:
    def share(points: torch.Tensor, centres: torch.Tensor) -> float:
        radii = [
            sorted(float((c - o).norm()) for j, o in enumerate(centres) if j != i)[k - 1] for i, c in enumerate(centres)
        ]
        inside = [any(float((p - c).norm()) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(inside) / len(points)

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_definition(k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowmaps.metrics.images._BLOCK", 8)  # the last block of each set is a part
    real, fake = normal(29, 2), 0.9 * normal(21, 2, seed=1) + 1.2
    told: list[float] = []
    got = precision_recall(real, fake, k=k, watch=lambda _, share: told.append(share))
    assert got == by_hand(real, fake, k)
    assert all(0.1 < value < 0.95 for value in got)
    assert got[0] != got[1]
    assert told == sorted(told)
    assert told[-1] == 1


def test_precision_and_recall_of_the_same_of_others_and_of_one_mode_of_two():
    x = normal(40, 3)
    assert precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    modes = torch.cat([x, normal(40, 3, seed=1) + 100])
    precision, recall = precision_recall(modes, normal(80, 3, seed=2))
    assert precision > 0.8
    assert 0.4 < recall <= 0.5  # never the mode that is missing
    assert precision_recall(normal(80, 3, seed=2), modes) == (recall, precision)


def test_copies_are_at_no_distance_whatever_their_origin():
    """All points twice: the nearest other one is the copy, radii are zero, and each copy still lies in its ball."""
    x = (normal(30, 6) + 1e3).repeat(2, 1)
    assert precision_recall(x, x, k=1) == (1, 1)
    assert precision_recall(x, x + 1e-2, k=1) == (0, 0)


def test_sets_that_do_not_fit_are_refused():
    x = normal(6, 2)
    for figure in (kernel_distance, precision_recall):
        with pytest.raises(ValueError, match=r"one D, got \(6, 2\) and \(6, 3\)"):
            figure(x, normal(6, 3))
    with pytest.raises(ValueError, match="k must be from 1 to 5, the images less one, got 6"):
        precision_recall(x, x, k=6)
    with pytest.raises(ValueError, match=r"of 2 to 6 images .* got 100 of 1000"):
        kernel_distance(x, x)


# Names ----------------------------------------------------------------------------------------------------------------


def test_only_inceptions_distances_are_called_fid_and_kid():
    assert label("inception", 50_000) == "FID (50,000 samples)"
    assert label("inception", 500, "KD") == "KID (500 samples)"
    assert label("efficientnet-lite0 at 128 px", 5000) == "FD (efficientnet-lite0 at 128 px, 5,000 samples)"
    assert label("inception at 128 px", 10) == "FD (inception at 128 px, 10 samples)"
    with pytest.raises(ValueError, match="got 'FID'"):
        label("inception", 1, "FID")
