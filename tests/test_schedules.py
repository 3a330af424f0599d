"""Steps: shares of a first leg, laws on grids, and schedules, against the tables and formulas of their papers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import INTERPOLANTS, generator
from test_times import correlation, distance, draw, uniform
from torch import Tensor

from flowmaps import schedules, times
from flowmaps.interpolants import Interpolant, Linear, VarianceExploding
from flowmaps.times import Diagonal, LogNormal, Square, Strip, Times, ToData, Triangle

ROWS = 40_001


def numbers(rows: int = 31, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A uniform number and times s, t of any order, `(B,)` each."""
    uniforms = torch.rand(3, rows, dtype=torch.float64, generator=generator(seed))
    return uniforms[0], uniforms[1], uniforms[2]


# shares of the first leg ---------------------------------------------------------------------------------------------


def test_a_uniform_share_is_the_number_that_was_drawn():
    u, s, t = numbers()
    assert torch.equal(times.UniformLeg().share(u, s, t), u)


def test_a_fixed_share_and_one_that_changes_with_progress():
    u, s, t = numbers()
    assert times.FixedLeg().share(u, s, t).tolist() == [0.5] * 31
    line = times.FixedLeg(lambda progress: 1 - progress)
    for progress in (0.0, 0.3, 1.0):
        torch.testing.assert_close(line.share(u, s, t, progress), torch.full_like(s, 1 - progress))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, lambda progress: 2.0])
def test_shares_that_are_refused(value: float | Callable[[float], float]):
    with pytest.raises(ValueError, match=r"FixedLeg needs l in \[0, 1\], got"):
        times.FixedLeg(value).share(*numbers(), 0.3)


def test_a_step_is_one_cell_in_either_direction_and_never_beyond_t():
    """w = s + l (t - s) is one cell nearer to t, or t itself."""
    u, s, t = numbers()
    law = times.CellLeg(5)
    w = s + law.share(u, s, t) * (t - s)
    expected = torch.where((t - s).abs() > 0.2, s + 0.2 * (t - s).sign(), t)
    torch.testing.assert_close(w, expected)
    assert 0 < int(((t - s).abs() > 0.2).sum()) < 31  # both branches were seen
    assert law.share(u, s, s).tolist() == [1] * 31  # nowhere to go: all of it, and no number that is not finite


def test_a_step_follows_its_schedule():
    u, s, t = torch.full((3, 7), 0.5).double(), torch.zeros(7).double(), torch.ones(7).double()
    law = times.CellLeg(schedules.Doubling(10, 80))
    for progress, cells in [(0.0, 10), (0.3, 20), (0.5, 40), (0.75, 80), (1.0, 80)]:
        torch.testing.assert_close(law.share(u[0], s, t, progress), torch.full_like(s, 1 / cells))


def test_a_step_from_a_grid_time_lands_on_the_next():
    """Consistency models: (s, w) = (k, k + 1) / cells (2303.01469, algorithm 3)."""
    law = times.Snapped(ToData(), 17)
    s, t = draw(law, rows=501)
    w = s + times.CellLeg(17).share(s, s, t) * (t - s)
    torch.testing.assert_close(17 * w, 17 * s + 1, rtol=0, atol=1e-12)


SIGMAS = (0.01, 0.1, 1.0, 10.0)
ECT = {1: (0, 0, 0, 0.50), 2: (0, 0, 0.21, 0.75), 3: (0.38, 0.40, 0.61, 0.87), 8: (0.981, 0.981, 0.988, 0.996)}
"""r / t at sigma = 0.01, 0.1, 1, 10 for q = 2, k = 8, b = 1, by the stage a (2406.14548, equation 18)."""


@pytest.mark.parametrize("stage", ECT)
@pytest.mark.parametrize("name", ["linear", "trigonometric", "variance-preserving", "variance-exploding-edm"])
def test_shrink_has_the_papers_table(stage: int, name: str):
    path = INTERPOLANTS[name]
    scale = 80.0 if isinstance(path, VarianceExploding) else 1.0
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    s, one = path.time_of(sigma, scale), torch.ones(4, dtype=torch.float64)
    progress = (stage - 0.5) / 8
    w = s + times.ShrinkingLeg(path, scale=scale).share(one, s, one, progress) * (1 - s)
    kept = path.omega(w, scale) / path.beta(w) / sigma
    for got, expected in zip(kept.tolist(), ECT[stage], strict=True):
        assert got == pytest.approx(expected, abs=0.005 if stage < 8 else 0.0006)
    # and the formula itself, with all its digits
    n = 1 + 8 / (1 + sigma.exp())
    torch.testing.assert_close(kept, (1 - n / 2**stage).clamp_min(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "progress, stage", [(0.0, 1), (0.249, 1), (0.25, 2), (0.5, 3), (0.75, 4), (0.999, 4), (1.0, 4)]
)
def test_shrink_has_stages_of_equal_length_and_other_constants(progress: float, stage: int):
    s, one = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    law = times.ShrinkingLeg(Linear(), q=4.0, k=2.0, b=0.5, stages=4)
    w = s + law.share(one, s, one, progress) * (1 - s)
    before, after = (1 - s) / s, (1 - w) / w
    n = 1 + 2 * torch.sigmoid(-0.5 * before)
    torch.testing.assert_close(after / before, (1 - n / 4**stage).clamp_min(0), rtol=1e-9, atol=1e-12)


def test_shrink_stays_between_s_and_t_at_the_ends_too():
    s = torch.tensor([0.0, 0.0, 0.3, 0.6, 1.0, 1.0], dtype=torch.float64)
    t = torch.tensor([1.0, 0.0, 0.4, 0.6, 1.0, 1.0], dtype=torch.float64)
    for path in INTERPOLANTS.values():
        for progress in (0.0, 0.4, 1.0):
            share = times.ShrinkingLeg(path).share(s, s, t, progress)
            assert bool(((share >= 0) & (share <= 1)).all())
    # a step that would go beyond t ends there
    assert times.ShrinkingLeg(Linear()).share(s[2:3], s[2:3], t[2:3], 0.0).tolist() == [1]


# pairs on equal grids ------------------------------------------------------------------------------------------------

LAWS = [ToData(), Triangle(), Diagonal(), Strip(0.3, ordered=True), LogNormal(ToData(), Linear())]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("cells", [1, 3, 18, 32])
def test_snapped_pairs_are_the_grid_times_around_the_pair(law: Times, cells: int):
    free, (s, t) = draw(law, rows=2001), draw(times.Snapped(law, cells), rows=2001)
    for time in (s, t):
        torch.testing.assert_close(cells * time, (cells * time).round(), rtol=0, atol=1e-12)
    assert bool((s < t).all())
    assert bool(((s <= free[0]) & (free[1] <= t)).all())
    assert float((free[0] - s).max()) < 1 / cells + 1e-12  # and the nearest of them
    assert float((t - free[1]).max()) < 1 / cells + 1e-12


def test_snapped_pairs_are_never_one_point_even_on_the_grid():
    """Times on the grid already, the ends among them, as single precision may draw them."""
    times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    s, t = times.Snapped(Diagonal(), 4).pair(times.expand(3, 5))
    assert bool((s < t).all())
    assert float(s.min()) >= 0
    assert float(t.max()) <= 1
    s, t = times.Snapped(ToData(), 4).pair(times.expand(3, 5))
    assert s.tolist() == [0.0, 0.25, 0.5, 0.75, 0.75]
    assert t.tolist() == [1.0] * 5


def test_snapped_follows_its_schedule():
    law = times.Snapped(ToData(), schedules.Halving(8))
    for progress, cells in [(0.0, 8), (0.3, 4), (0.6, 2), (1.0, 1)]:
        s, _ = draw(law, progress=progress, rows=501)
        assert sorted(set(s.tolist())) == [k / cells for k in range(cells)]


@pytest.mark.parametrize("cells", [10, 40])
def test_the_discretised_log_normal_of_improved_consistency_training(cells: int):
    """p(sigma_i) ~ erf((ln sigma_{i+1} - m) / (sqrt(2) d)) - erf((ln sigma_i - m) / (sqrt(2) d)) (2310.14189, eq. 10).

    The grid is EDM's, sigma_i = 80 (i / cells)^7 with its least sigma put to 0; what lies beyond 80 counts as 80.
    """
    path, mean, std = VarianceExploding(80.0, 7.0), -1.1, 2.0
    s, t = draw(times.Snapped(LogNormal(ToData(), path, mean, std, scale=80.0), cells))
    assert bool((t == 1).all())
    sigma = 80 * (torch.arange(cells + 1, dtype=torch.float64) / cells) ** 7  # from the data to the noise
    cdf = 0.5 * (1 + torch.erf((sigma.log() - mean) / (math.sqrt(2) * std)))
    cdf[-1] = 1
    expected = cdf.diff()
    # the online side of the cell is the noisier one, sigma_{i+1}: s = 1 - (i + 1) / cells
    index = (cells * (1 - s)).round().long() - 1
    counts = torch.bincount(index, minlength=cells).double() / ROWS
    allowed = 4.5 * (expected * (1 - expected) / ROWS).sqrt() + 1 / ROWS
    assert bool(((counts - expected).abs() < allowed).all())
    noise = path.omega(s, 80.0)
    torch.testing.assert_close(noise, sigma[index + 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cells", [1, 5, 32])
def test_a_cell_is_drawn_evenly(cells: int):
    s, t = draw(times.Cell(cells))
    k = (cells * s).round()
    torch.testing.assert_close(cells * s, k, rtol=0, atol=1e-12)
    torch.testing.assert_close(cells * t, k + 1, rtol=0, atol=1e-12)
    shares = torch.bincount(k.long(), minlength=cells).double() / ROWS
    assert float((shares - 1 / cells).abs().max()) < 4 * math.sqrt((1 - 1 / cells) / cells / ROWS) + 1e-12


def test_cells_of_the_rounds_of_progressive_distillation():
    law = times.Cell(schedules.Halving(4))
    for progress, cells in [(0.0, 4), (0.4, 2), (0.99, 1)]:
        s, t = draw(law, progress=progress, rows=201)
        torch.testing.assert_close(t - s, torch.full_like(s, 1 / cells))


@pytest.mark.parametrize("levels", [1, 3, 7])
def test_dyadic_lengths_are_drawn_alike_and_start_at_their_multiples(levels: int):
    """Shortcut models: d in {1, 1/2, ..., 2^-(levels - 1)}, s uniform on the multiples of d in [0, 1 - d]."""
    s, t = draw(times.Dyadic(levels))
    level = -torch.log2(t - s)
    assert torch.equal(level, level.round())
    d = t - s
    assert torch.equal(s / d, (s / d).round())
    assert float(s.min()) == 0
    assert float(t.max()) == 1
    shares = torch.bincount(level.long(), minlength=levels).double() / ROWS
    assert len(shares) == levels
    assert float((shares - 1 / levels).abs().max()) < 4 / math.sqrt(ROWS * levels)
    for k in range(levels):
        here = s[level == k]
        counts = torch.bincount((here * 2**k).long(), minlength=2**k).double()
        assert len(counts) == 2**k
        assert float((counts / len(here) - 2.0**-k).abs().max()) < 4.5 * math.sqrt(2.0**-k / len(here))


def test_laws_on_grids_stay_inside_in_single_precision():
    below = 1 - 2**-24
    uniforms = torch.tensor([[0.0, below, below, 1.0], [below, below, 0.0, 1.0], [0.0, 0.5, below, 1.0]])
    for law in (
        times.Dyadic(),
        times.Cell(3),
        times.Cell(1280),
        times.Snapped(ToData(), 7),
        times.Snapped(Square(), 1),
    ):
        s, t = law.pair(uniforms)
        assert float(s.min()) >= 0
        assert float(t.max()) <= 1
        assert bool((s < t).all())
    s, t = times.Dyadic(7).pair(uniforms)
    assert float((t - s).min()) >= 1 / 64  # no length beyond the last, whatever is drawn


def test_rows_of_a_grid_are_independent():
    s, t = draw(times.Dyadic(7))
    assert abs(correlation(s[1:], s[:-1])) < 4 / math.sqrt(ROWS)
    assert abs(correlation((t - s)[1:], (t - s)[:-1])) < 4 / math.sqrt(ROWS)


# schedules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start, end", [(2, 150), (2, 200), (10, 1280)])
def test_the_square_root_schedule_of_consistency_training(start: int, end: int):
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 times (2303.01469, appendix C), one fewer cells."""
    law = schedules.SquareRoot(start, end)
    for k in range(0, 801, 7):
        root = math.sqrt(k / 800 * ((end + 1) ** 2 - start**2) + start**2)
        times = math.ceil(root - 1 - 1e-9) + 1
        assert law(k / 800) == times - 1
    assert law(0.0) == start - 1
    assert law(1.0) == end
    values = [law(k / 997) for k in range(998)]
    assert values == sorted(values)
    assert all(isinstance(value, int) for value in values)


def test_the_table_of_the_square_root_schedule():
    """s0 = 2, s1 = 150: the number of times N(k) at tenths of training, by hand from the formula."""
    law = schedules.SquareRoot()
    table = {0.0: 2, 0.1: 48, 0.2: 68, 0.3: 83, 0.4: 96, 0.5: 107, 0.6: 117, 0.7: 127, 0.8: 136, 0.9: 144, 1.0: 151}
    assert {p: law(p) + 1 for p in table} == table


def test_the_doubling_schedule_of_improved_consistency_training():
    """N(k) = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2 floor(s1 / s0) + 1)): eight stages, 11 to 1281."""
    law, total = schedules.Doubling(), 800
    stage = math.floor(total / (math.log2(1280 // 10) + 1))
    for k in range(total):
        assert law(k / total) == min(10 * 2 ** math.floor(k / stage), 1280)
    assert law(1.0) == 1280
    values = [law(k / total) for k in range(total)]
    assert [values.count(10 * 2**j) for j in range(8)] == [100] * 8


def test_doubling_ends_at_the_last_power_that_fits():
    law = schedules.Doubling(10, 100)  # 10, 20, 40, 80: the next would be beyond 100
    assert sorted({law(k / 60) for k in range(60)}) == [10, 20, 40, 80]
    assert law(1.0) <= 100


@pytest.mark.parametrize("start, rounds", [(1, 1), (8, 4), (32, 6), (8192, 14)])
def test_the_halving_schedule_has_rounds_of_equal_length(start: int, rounds: int):
    """8192 -> 1 is 13 halvings, so 14 lengths of a cell (2202.00512)."""
    law = schedules.Halving(start)
    assert law.rounds == rounds
    values = [law((k + 0.5) / (10 * rounds)) for k in range(10 * rounds)]
    assert values == [start >> j for j in range(rounds) for _ in range(10)]
    assert law(0.0) == start
    assert law(1.0) == 1


def literal_alpha(progress: float, start: float, end: float, g: float = 25.0, eta: float = 5e-3) -> float:
    """AlphaFlow's algorithm 2 (2510.20771), alpha held at eta where the paper goes on with a derivative."""
    alpha = 1 - 1 / (1 + math.exp(-g * (progress - (start + end) / 2) / (end - start)))
    return 1.0 if alpha > 1 - eta else eta if alpha < eta else alpha


@pytest.mark.parametrize("start, end", [(0.0, 1.0), (0.5, 0.833), (0.2, 0.4)])
def test_the_sigmoid_schedule_of_alphaflow(start: float, end: float):
    law = schedules.Sigmoid(start, end)
    values = [law(k / 500) for k in range(501)]
    for k, value in enumerate(values):
        assert value == pytest.approx(literal_alpha(k / 500, start, end), rel=1e-9)
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert values[-1] == 5e-3
    assert law(0.5 * (start + end)) == pytest.approx(0.5)


def test_the_sigmoid_is_between_its_clamps_for_the_middle_two_fifths():
    """With g = 25 and eta = 0.005 strictly between for 28.8 % to 71.2 % of the span."""
    law = schedules.Sigmoid()
    assert [law(p) == 1.0 for p in (0.287, 0.289)] == [True, False]
    assert [law(p) == 5e-3 for p in (0.711, 0.713)] == [False, True]


def test_a_sigmoid_too_steep_for_its_exponential_is_a_step():
    law = schedules.Sigmoid(0.5, 0.5 + 1e-9)
    assert [law(p) for p in (0.0, 0.49, 0.51, 1.0)] == [1.0, 1.0, 5e-3, 5e-3]


def test_a_sigmoid_without_a_span_is_a_step():
    """AlphaFlow's start = end: 1 before, the floor after (2510.20771, algorithm 2)."""
    law = schedules.Sigmoid(0.5, 0.5)
    assert [law(p) for p in (0.0, 0.49, 0.51, 1.0)] == [1.0, 1.0, 5e-3, 5e-3]


def test_grids_and_schedules_that_are_refused():
    u, s, t = numbers()
    for cells in (0, -2, lambda progress: 0):
        for use in (
            lambda n: times.CellLeg(n).share(u, s, t),
            lambda n: times.Snapped(ToData(), n).pair(torch.stack([u, s, t])),
            lambda n: times.Cell(n).pair(torch.stack([u, s, t])),
        ):
            with pytest.raises(ValueError, match="a grid needs at least one cell, got"):
                use(cells)
    with pytest.raises(ValueError, match="Dyadic needs levels >= 1, got 0"):
        times.Dyadic(0)
    for start in (0, 3, -4, 48):
        with pytest.raises(ValueError, match=f"Halving needs a power of two to start from, got {start}"):
            schedules.Halving(start)


def test_equal_cells_of_the_variance_exploding_path_are_edms_grid():
    """sigma_i = (sigma_max^{1/7} + i/(N-1) (sigma_min^{1/7} - sigma_max^{1/7}))^7 with sigma_min = 0 (2206.00364)."""
    path: Interpolant = VarianceExploding(80.0, 7.0)
    s, _ = draw(times.Snapped(ToData(), 18), rows=2001)
    k = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) * (1 - k / 18)) ** 7
    torch.testing.assert_close(path.omega(s.unique(), 80.0), expected)
    assert distance(draw(ToData())[0], uniform) < 1.95
