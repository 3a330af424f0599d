"""Laws of (s, t) against their exact distribution functions, laws on grids and of a first leg against their papers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import INTERPOLANTS, generator
from torch import Tensor

from flowmaps import schedules, times
from flowmaps.interpolants import Interpolant, Linear, VarianceExploding, VariancePreserving, WithNoise
from flowmaps.times import (
    Anneal,
    Diagonal,
    FromBase,
    Gap,
    Interval,
    LogitNormal,
    LogNormal,
    Mixture,
    Square,
    StartAndEnd,
    Strip,
    Times,
    ToData,
    TowardsData,
    Triangle,
    Within,
)

ROWS = 40_001


def draw(law: Times, seed: int = 0, progress: float = 1.0, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    like = torch.zeros(1, dtype=torch.float64)
    return law.draw(rows, torch.Generator().manual_seed(seed), progress, like)


def distance(values: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """The Kolmogorov-Smirnov statistic times sqrt(n): above 1.95 in one draw of a thousand."""
    ordered = values.sort().values
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    expected = cdf(ordered)
    return math.sqrt(n) * float(torch.maximum(steps[1:] - expected, expected - steps[:-1]).max())


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def uniform(x: Tensor) -> Tensor:
    return x


def gap_law(width: float) -> Callable[[Tensor], Tensor]:
    """|t - s| on the strip of a width has density proportional to 1 - h."""
    return lambda h: (h - h * h / 2) / (width - width * width / 2)


def test_square_is_two_independent_uniform_times():
    s, t = draw(Square())
    assert distance(s, uniform) < 1.95
    assert distance(t, uniform) < 1.95
    assert distance((t - s).abs(), gap_law(1.0)) < 1.95
    assert abs(correlation(s, t)) < 4 / math.sqrt(ROWS)
    assert abs(correlation(s * s, t)) < 4 / math.sqrt(ROWS)


def test_triangle_is_the_upper_half_of_the_square():
    s, t = draw(Triangle())
    assert bool((s <= t).all())
    assert distance(s, lambda x: 1 - (1 - x) ** 2) < 1.95
    assert distance(t, lambda x: x * x) < 1.95
    assert distance(t - s, gap_law(1.0)) < 1.95
    # on the triangle, where s lies in [0, 1 - h] says nothing about the gap h: pairs are not on one line
    h = t - s
    assert abs(correlation(h, s / (1 - h))) < 4 / math.sqrt(ROWS)


@pytest.mark.parametrize("width", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("ordered", [False, True])
def test_strip_is_uniform_on_the_strip(width: float, ordered: bool):
    s, t = draw(Strip(width, ordered))
    gap, low = (t - s).abs(), torch.minimum(s, t)
    assert float(gap.max()) <= width + 1e-12
    assert float(low.min()) >= 0
    assert float(torch.maximum(s, t).max()) <= 1
    assert distance(gap, gap_law(width)) < 1.95
    assert distance(low / (1 - gap), uniform) < 1.95  # uniform along each diagonal, independent of the gap
    assert abs(correlation(gap, low / (1 - gap))) < 4 / math.sqrt(ROWS)
    forward = float((t >= s).double().mean())
    assert forward == 1 if ordered else abs(forward - 0.5) < 2 / math.sqrt(ROWS)
    if not ordered:
        assert abs(correlation((t >= s).double(), gap)) < 4 / math.sqrt(ROWS)


def test_strip_of_width_one_is_the_square_and_ordered_the_triangle():
    whole, square = draw(Strip(1.0)), draw(Square(), seed=1)
    for cell in [(0.0, 0.3, 0.6, 1.0), (0.5, 0.9, 0.1, 0.2), (0.2, 0.7, 0.2, 0.7)]:
        a, b, c, d = cell
        for s, t in (whole, square):
            share = float(((s > a) & (s < b) & (t > c) & (t < d)).double().mean())
            area = (b - a) * (d - c)
            assert abs(share - area) < 4 * math.sqrt(area * (1 - area) / ROWS)


def test_an_annealed_strip_widens_with_progress():
    law = Strip(Anneal(0.1, 0.8, until=0.5))
    for progress, width in [(0.0, 0.1), (0.25, 0.45), (0.5, 0.8), (1.0, 0.8)]:
        s, t = draw(law, progress=progress)
        assert distance((t - s).abs(), gap_law(width)) < 1.95


def test_anneal_is_linear_then_constant():
    line = Anneal(0.2, 1.0, until=0.4)
    assert [line(p) for p in (0.0, 0.1, 0.4, 0.9)] == pytest.approx([0.2, 0.4, 1.0, 1.0])
    assert Anneal(1.0, 0.1)(0.5) == pytest.approx(0.55)  # narrowing is allowed too


@pytest.mark.parametrize("law", [Diagonal(), ToData(), FromBase()])
def test_lines_of_the_square(law: Times):
    s, t = draw(law)
    assert distance(t if isinstance(law, FromBase) else s, uniform) < 1.95
    fixed = {Diagonal: (s, t), ToData: (t, torch.ones_like(t)), FromBase: (s, torch.zeros_like(s))}[type(law)]
    assert torch.equal(*fixed)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_a_mixture_keeps_its_shares_and_both_laws(share: float):
    s, t = draw(Mixture(Diagonal(), ToData(), share))
    first = s == t
    assert abs(float(first.double().mean()) - share) <= 2 / math.sqrt(ROWS) * (0 < share < 1)
    if share > 0:
        assert distance(s[first], uniform) < 1.95
    if share < 1:
        assert distance(s[~first], uniform) < 1.95
        assert bool((t[~first] == 1).all())


def test_a_mixture_leaves_the_parts_that_use_all_three_numbers_intact():
    """The choice between the laws and the order of a strip come from one uniform number: they stay independent."""
    s, t = draw(Mixture(Strip(0.3), Mixture(Strip(0.3), Strip(0.3, ordered=True), 0.5), 0.5))
    gap = (t - s).abs()
    assert distance(gap, gap_law(0.3)) < 1.95
    forward = t >= s
    assert abs(float(forward.double().mean()) - 0.625) < 2 / math.sqrt(ROWS)  # 1/2, 1/2 and 1 with shares 1/2, 1/4, 1/4
    assert abs(correlation(forward.double(), gap)) < 4 / math.sqrt(ROWS)


def test_mixture_rows_are_independent_of_each_other():
    s, t = draw(Mixture(Diagonal(), Triangle(), 0.75))
    diagonal = (s == t).double()
    assert abs(correlation(diagonal[1:], diagonal[:-1])) < 4 / math.sqrt(ROWS)
    assert abs(correlation(s[1:], s[:-1])) < 4 / math.sqrt(ROWS)


# laws made of other laws ----------------------------------------------------------------------------------------------


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def larger(cdf: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The law of the larger of two independent draws."""
    return lambda x: cdf(x) ** 2


def smaller(cdf: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The law of the smaller of two independent draws."""
    return lambda x: 1 - (1 - cdf(x)) ** 2


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_late_times_have_their_distribution_function(power: float):
    s, t = draw(TowardsData(Triangle(), power))

    def cdf(x: Tensor) -> Tensor:
        return 1 - (1 - x) ** (1 / power)

    assert bool((s <= t).all())
    assert distance(s, smaller(cdf)) < 1.95
    assert distance(t, larger(cdf)) < 1.95


def test_times_within_bounds_have_the_law_of_another_between_them():
    s, t = draw(Within(Triangle(), 0.2, 0.7))
    assert bool((s <= t).all())
    assert float(s.min()) >= 0.2
    assert float(t.max()) <= 0.7
    assert distance((s - 0.2) / 0.5, smaller(lambda x: x)) < 1.95
    assert distance((t - 0.2) / 0.5, larger(lambda x: x)) < 1.95
    assert bool((draw(Within(ToData(), 0.0, 0.9))[1] == 0.9).all())  # the end itself
    for bounds in ((-0.1, 0.5), (0.5, 0.5), (0.7, 0.2), (0.0, 1.1)):
        with pytest.raises(ValueError, match="Within needs 0 <= low < high <= 1, got"):
            Within(Square(), *bounds)


@pytest.mark.parametrize("mean, std", [(0.4, 1.0), (-2.0, 0.5), (0.0, 2.0)])
def test_logit_normal_times(mean: float, std: float):
    """logit t ~ N(mean, std^2), on the diagonal and for the sorted pair of MeanFlow."""

    def cdf(t: Tensor) -> Tensor:
        return normal_cdf((torch.logit(t) - mean) / std)

    s, t = draw(LogitNormal(Diagonal(), mean, std))
    assert torch.equal(s, t)
    assert distance(t, cdf) < 1.95
    s, t = draw(LogitNormal(Triangle(), mean, std), 1)
    assert bool((s <= t).all())
    assert distance(s, smaller(cdf)) < 1.95
    assert distance(t, larger(cdf)) < 1.95
    s, t = draw(LogitNormal(Square(), mean, std), 2)
    assert distance(s, cdf) < 1.95
    assert distance(t, cdf) < 1.95
    assert abs(correlation(s, t)) < 4 / math.sqrt(ROWS)


@pytest.mark.parametrize("mean, std, end_mean, end_std", [(-0.8, 1, 0.4, 1), (0.5, 0.4, -1, 2), (-0.8, 1, -4, 1)])
def test_the_gap_is_logit_normal_and_then_the_end_among_the_times_that_leave_room(
    mean: float, std: float, end_mean: float, end_std: float
):
    """logit (t - s) ~ N(mean, std^2); given it, logit t ~ N(end_mean, end_std^2) cut off below t - s (2511.19797)."""
    s, t = draw(Gap(mean, std, end_mean, end_std))
    gap = t - s
    assert distance((torch.logit(gap) - mean) / std, normal_cdf) < 1.95
    at, least = ((torch.logit(value) - end_mean) / end_std for value in (t, gap))
    given = 1 - torch.special.ndtr(-at) / torch.special.ndtr(-least)
    assert distance(given, uniform) < 1.95
    assert abs(correlation(given, gap)) < 4 / math.sqrt(ROWS)


@pytest.mark.parametrize("end_mean, end_std", [(0.4, 1.0), (0.4, 0.2), (-4.0, 1.0), (-6.0, 1.0), (-6.0, 0.2)])
def test_the_gap_in_single_precision_is_that_in_double(end_mean: float, end_std: float):
    uniforms = torch.rand(3, ROWS, generator=torch.Generator().manual_seed(0))
    law = Gap(end_mean=end_mean, end_std=end_std)
    for single, double in zip(law.pair(uniforms), law.pair(uniforms.double()), strict=True):
        assert float((single - double).abs().max()) < 1e-3
        assert float((single - double).abs().mean()) < 1e-5


def test_start_and_end_are_each_logit_normal_and_the_end_is_raised_to_the_start():
    """logit s ~ N(-0.2, 0.8^2), logit t ~ N(1, 0.8^2), t at least s (2512.15657)."""
    s, t = draw(StartAndEnd())
    assert distance((torch.logit(s) + 0.2) / 0.8, normal_cdf) < 1.95
    assert bool((s <= t).all())
    expected = normal_cdf(torch.tensor(-1.2 / (0.8 * math.sqrt(2)), dtype=torch.float64))  # P(logit t < logit s)
    share = (s == t).double().mean()
    assert abs(float(share - expected)) < 4 / math.sqrt(ROWS)
    free = draw(StartAndEnd(mean=-30))[1]  # s = 0: t is as it was drawn
    assert distance((torch.logit(free) - 1) / 0.8, normal_cdf) < 1.95


def test_meanflows_law_turned_round_is_the_default():
    """r, t = sorted sigmoid(N(-0.4, 1)) in a time that runs to the noise; here s = 1 - t, t = 1 - r (2505.13447)."""
    normal = torch.randn(2, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    theirs = torch.sigmoid(-0.4 + normal)
    start, end = 1 - theirs.amax(0), 1 - theirs.amin(0)
    s, t = draw(LogitNormal(Triangle()))
    for ours, turned in ((s, start), (t, end), (t - s, end - start)):
        both = torch.cat([ours, turned])
        # Kolmogorov-Smirnov of two samples of n: the statistic times sqrt(n / 2)
        first = (both.argsort() < ROWS).double()
        gap = (2 * first - 1).cumsum(0).abs().max() / ROWS
        assert float(gap) * math.sqrt(ROWS / 2) < 1.95
    assert abs(float(s.mean() - start.mean())) < 5 * float(s.std()) / math.sqrt(ROWS / 2)
    assert float((s.mean() - theirs.amin(0).mean()).abs()) > 0.05  # the sign of the mean is not a matter of taste


@pytest.mark.parametrize("mean, std", [(-0.8, 1.0), (-0.6, 1.6)])
def test_the_interval_law_draws_the_length_first(mean: float, std: float):
    """Align your flow: t - s logit-normal, then s uniform where it fits."""
    s, t = draw(Interval(mean, std))
    length = t - s
    assert distance(length, lambda d: normal_cdf((torch.logit(d) - mean) / std)) < 1.95
    assert distance(s / (1 - length), uniform) < 1.95
    assert abs(correlation(length, s / (1 - length))) < 4 / math.sqrt(ROWS)
    assert float(s.min()) >= 0
    assert float(t.max()) <= 1
    assert bool((s < t).all())


@pytest.mark.parametrize("name", ["linear", "trigonometric", "variance-preserving", "linear-noise"])
@pytest.mark.parametrize("mean, std, scale", [(-1.2, 1.2, 1.0), (-1.0, 1.4, 1.0), (-0.8, 1.6, 2.0)])
def test_log_normal_times(name: str, mean: float, std: float, scale: float):
    """log(omega_t / beta_t) ~ N(mean, std^2), on whatever path."""
    path = INTERPOLANTS[name]
    s, t = draw(LogNormal(ToData(), path, mean, std, scale))
    assert bool((t == 1).all())
    noise = (path.omega(s, scale) / path.beta(s)).log()
    # beyond the last times of double precision a path has no level of its own
    assert distance(noise, lambda x: normal_cdf((x - mean) / std)) < 1.95


@pytest.mark.parametrize("path", [Linear(), WithNoise(Linear(), 0.7), VariancePreserving()], ids=str)
def test_log_normal_pairs_keep_their_order_and_their_law(path):
    s, t = draw(LogNormal(Triangle(), path))
    assert bool((s <= t).all())

    def cdf(time: Tensor) -> Tensor:  # of the time: earlier is noisier
        return 1 - normal_cdf(((path.omega(time) / path.beta(time)).log() + 1.2) / 1.2)

    assert distance(s, smaller(cdf)) < 1.95
    assert distance(t, larger(cdf)) < 1.95


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_law_stay_ends(name: str, dtype: torch.dtype):
    """Times 0 and 1 stay what they are: consistency models keep t = 1, laws from the base keep s = 0."""
    path = INTERPOLANTS[name]
    inner = path.path if isinstance(path, WithNoise) else path
    scale = inner.sigma_max if isinstance(inner, VarianceExploding) else 1.0
    uniforms = torch.tensor([[0.0, 1.0, 0.3], [0.0, 1.0, 0.3], [0.5, 0.5, 0.5]], dtype=dtype)
    for law in (LogNormal(Diagonal(), path, scale=scale), LogitNormal(Diagonal()), TowardsData(Diagonal())):
        s, _ = law.pair(uniforms)
        assert s.dtype == dtype
        assert s[0].item() == pytest.approx(0, abs=1e-15)
        assert s[1] == 1
        assert 0 < s[2] < 1


def test_levels_beyond_the_greatest_are_the_base():
    """Variance explodes up to sigma_max only: a log-normal level above it is put to t = 0."""
    s, _ = draw(LogNormal(ToData(), VarianceExploding(1.5, 3.0), -1.2, 1.2, scale=1.5))
    beyond = 1 - float(normal_cdf(torch.tensor((math.log(1.5) + 1.2) / 1.2, dtype=torch.float64)))
    assert abs(float((s == 0).double().mean()) - beyond) < 4 * math.sqrt(beyond * (1 - beyond) / ROWS)


@pytest.mark.parametrize("law", [Square(), Triangle(), Strip(0.2), ToData(), Mixture(Diagonal(), Square(), 0.4)])
def test_draws_follow_the_generator_and_the_type_asked_for(law: Times):
    one, same, other = draw(law, 3, rows=7), draw(law, 3, rows=7), draw(law, 4, rows=7)
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    assert one[0].dtype == torch.float64
    assert law.draw(3, torch.Generator())[0].dtype == torch.float32


def test_single_precision_times_stay_in_the_unit_interval():
    uniforms = torch.tensor([[0.0, 1 - 2**-24, 1 - 2**-24], [1 - 2**-24, 1 - 2**-24, 0.0], [0.0, 0.5, 1 - 2**-24]])
    laws = [
        Square(),
        Triangle(),
        Strip(1.0),
        Strip(0.3),
        Mixture(Strip(1.0), Strip(1e-3), 0.7),
        Mixture(Square(), Square(), 1),
        TowardsData(Square(), 3.0),
        Within(Square(), 0.0, 0.999),
        LogitNormal(Triangle()),
        Gap(),
        Gap(end_mean=-9.0, end_std=0.1),
        StartAndEnd(),
        Interval(),
        LogNormal(Triangle(), Linear()),
        LogNormal(Triangle(), WithNoise(VarianceExploding(5.0, 3.0), 0.6), scale=5.0),
    ]
    for law in laws:
        for value in law.pair(uniforms):
            assert float(value.min()) >= 0
            assert float(value.max()) <= 1


def test_a_grid_is_even_and_ends_exactly_where_asked():
    assert times.grid(4) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert times.grid(3, 1.0, 0.0) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    for steps in (1, 3, 7, 49):
        grid = times.grid(steps, 0.1, 0.7)
        assert grid[0] == 0.1
        assert grid[-1] == 0.7
        assert len(grid) == steps + 1


@pytest.mark.parametrize(
    "grid", [[], [0.5], [0.0, 0.0], [0.0, 0.6, 0.3], [-0.1, 1.0], [0.0, 1.1], [1.0, 0.2, 0.5], [0.0, math.nan]]
)
def test_grids_that_are_refused(grid: list[float]):
    with pytest.raises(ValueError, match=r"at least two times in \[0, 1\], all rising \(to data\) or all falling"):
        times.check_grid(grid)


def test_laws_that_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        times.grid(0)
    with pytest.raises(ValueError, match="all rising"):
        times.grid(3, 0.5, 0.5)
    for width in (0.0, -0.2, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"width in \(0, 1\]"):
            Strip(width)
    with pytest.raises(ValueError, match=r"width in \(0, 1\]"):
        Strip(Anneal(0.1, 2.0))
    for until in (0.0, 1.2):
        with pytest.raises(ValueError, match="0 < until <= 1"):
            Anneal(0.1, 0.2, until)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"share in \[0, 1\]"):
            Mixture(Diagonal(), Square(), share)
    for power in (0.0, 0.9):
        with pytest.raises(ValueError, match=f"TowardsData needs power >= 1, got {power}"):
            TowardsData(Square(), power)
    for std in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"LogitNormal needs a finite std > 0, got {std}"):
            LogitNormal(Square(), 0.0, std)
        with pytest.raises(ValueError, match=f"Interval needs a finite std > 0, got {std}"):
            Interval(0.0, std)
        with pytest.raises(ValueError, match=f"Gap needs a finite std > 0, got {std}"):
            Gap(end_std=std)
        with pytest.raises(ValueError, match=f"LogNormal needs a finite std > 0, got {std}"):
            LogNormal(Square(), Linear(), 0.0, std)


# laws of the first leg, and on equal grids -------------------------------------------------------------------


def numbers(rows: int = 31, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A uniform number and times s, t of any order, `(B,)` each."""
    uniforms = torch.rand(3, rows, dtype=torch.float64, generator=generator(seed))
    return uniforms[0], uniforms[1], uniforms[2]


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
    on_grid = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).expand(3, 5)
    s, t = times.Snapped(Diagonal(), 4).pair(on_grid)
    assert bool((s < t).all())
    assert float(s.min()) >= 0
    assert float(t.max()) <= 1
    s, t = times.Snapped(ToData(), 4).pair(on_grid)
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


def test_numbers_of_cells_that_are_refused():
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


def test_equal_cells_of_the_variance_exploding_path_are_edms_grid():
    """sigma_i = (sigma_max^{1/7} + i/(N-1) (sigma_min^{1/7} - sigma_max^{1/7}))^7 with sigma_min = 0 (2206.00364)."""
    path: Interpolant = VarianceExploding(80.0, 7.0)
    s, _ = draw(times.Snapped(ToData(), 18), rows=2001)
    k = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) * (1 - k / 18)) ** 7
    torch.testing.assert_close(path.omega(s.unique(), 80.0), expected)
    assert distance(draw(ToData())[0], uniform) < 1.95
