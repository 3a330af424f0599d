"""Grids: the search finds the very grid that trying all of them finds, and looks away from what a map does well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowmaps import grids
from flowmaps.exact import Gaussian
from flowmaps.interpolants import Interpolant, Linear, Trigonometric, VariancePreserving, WithNoise
from flowmaps.maps import AverageVelocity, FlowMap
from flowmaps.nn import MLP
from flowmaps.samplers import Jump, MultistepConsistency
from flowmaps.shapes import like


class Function(FlowMap):
    """X_{s,t}(x) = jump(x, s, t), counting evaluations and keeping conditions."""

    def __init__(self, jump: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.jump, self.conditions = jump, []

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.conditions.append(cond)
        return (self.jump(x, s, t) - x) / like(t - s, x)


def untrained(dim: int = 3) -> FlowMap:
    """A map that obeys no law."""
    torch.manual_seed(0)
    return AverageVelocity(MLP(dim, width=16, depth=2)).double()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def residual(flow_map: FlowMap, path: Interpolant, x0: Tensor, x1: Tensor, s: float, t: float) -> float:
    """The definition, in jumps."""
    start, middle, end = (torch.full((len(x0),), time, dtype=x0.dtype) for time in (s, (s + t) / 2, t))
    x = path.point(x0, x1, start)
    gap = flow_map(x, start, end) - flow_map(flow_map(x, start, middle), middle, end)
    return float(gap.detach().square().sum(dim=1).mean())


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6])
def test_the_grid_is_the_best_of_all_grids(steps: int):
    x0, x1, flow_map, path = noise(5, 3), noise(5, 3, seed=1), untrained(), Trigonometric()
    times = [k / 6 for k in range(7)]
    cost = {(s, t): residual(flow_map, path, x0, x1, s, t) for s, t in itertools.combinations(times, 2)}
    every = [(0.0, *middle, 1.0) for middle in itertools.combinations(times[1:-1], steps - 1)]
    best = min(every, key=lambda grid: sum(cost[pair] for pair in itertools.pairwise(grid)))
    assert grids.semigroup(flow_map, x0, x1, path, steps, candidates=7) == pytest.approx(best)


def test_costs_are_the_residual_of_each_pair_of_times():
    x0, x1, flow_map = noise(5, 3), noise(5, 3, seed=1), untrained()
    costs = grids.semigroup_costs(flow_map, x0, x1, Linear(), candidates=4)
    assert costs.shape == (4, 4)
    for i, j in itertools.product(range(4), range(4)):
        want = residual(flow_map, Linear(), x0, x1, i / 3, j / 3) if i < j else math.inf
        assert float(costs[i, j]) == pytest.approx(want)


@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3), (3, 1, 2, 5)])
def test_costs_sum_over_the_dimensions_and_mean_over_the_batch(shape: tuple[int, ...]):
    """X = x + (t - s)^2 c: the residual is (t - s)^2 c / 2 in each coordinate."""
    flow_map = Function(lambda x, s, t: x + 3 * like(t - s, x) ** 2)
    costs = grids.semigroup_costs(flow_map, noise(*shape), noise(*shape, seed=1), Linear(), candidates=3)
    entries = math.prod(shape[1:])
    assert float(costs[0, 2]) == pytest.approx(entries * 1.5**2)
    assert float(costs[0, 1]) == pytest.approx(entries * (1.5 / 4) ** 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_the_shortest_path_is_the_cheapest_of_all(steps: int, seed: int):
    costs = noise(8, 8, seed=seed).exp()
    costs[1, 3] = math.inf
    every = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), steps - 1)]
    best = min(every, key=lambda way: sum(float(costs[pair]) for pair in itertools.pairwise(way)))
    assert grids.shortest_path(costs, steps) == list(best)


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), VariancePreserving(), WithNoise(Linear(), 0.4)])
def test_the_costs_of_an_exact_map_are_rounding(path: Interpolant):
    exact = Gaussian([0.5, -1.0], [[0.4, 0.1], [0.1, 0.6]], interpolant=path)
    x1 = exact.sample(7, torch.Generator().manual_seed(0), torch.float64)
    z = noise(7, 2, seed=2) if path.noisy else None
    costs = grids.semigroup_costs(Function(exact.flow_map), noise(7, 2), x1, path, candidates=9, z=z)
    assert float(costs[costs.isfinite()].max()) < 1e-26
    assert int(costs.isfinite().sum()) == 9 * 8 // 2


@pytest.mark.parametrize(
    ("steps", "want"), [(4, [0, 0.5, 0.625, 0.75, 1]), (6, [0, 0.5, 0.5625, 0.625, 0.6875, 0.75, 1])]
)
def test_points_go_where_the_map_is_wrong(steps: int, want: list[float]):
    """Exact but for [1/2, 3/4], where a step's error is its length times what it covers of that: short steps there."""

    def jump(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        covered = (t.clamp(0.5, 0.75) - s.clamp(0.5, 0.75)).abs()
        return x + like((t - s) * covered, x)

    flow_map, x0, x1 = Function(jump), noise(5, 3), noise(5, 3, seed=1)
    found = grids.semigroup(flow_map, x0, x1, Linear(), steps)
    assert found == pytest.approx(want)
    error, uniform = ((Jump(grid=g)(flow_map, x0) - x0).abs().max() for g in (found, Jump(steps).times))
    assert error < 0.6 * uniform


def test_each_cost_is_computed_once_with_the_condition_and_reported():
    flow_map, cond, shares = Function(lambda x, s, t: x), torch.arange(5), []
    args = (flow_map, noise(5, 3), noise(5, 3, seed=1), Linear(), 3)
    grids.semigroup(*args, candidates=6, cond=cond, watch=shares.append)
    assert len(flow_map.conditions) == 3 * 15
    assert all(c is cond for c in flow_map.conditions)
    assert shares == pytest.approx([k / 15 for k in range(1, 16)])


def test_one_step_is_the_whole_way_and_all_steps_are_all_candidates():
    args = (untrained(), noise(5, 3), noise(5, 3, seed=1), Linear())
    assert grids.semigroup(*args, 1) == [0.0, 1.0]
    assert grids.semigroup(*args, 4, candidates=5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert not grids.semigroup_costs(*args, candidates=3).requires_grad


def test_semigroup_searches_that_are_refused():
    args = (untrained(), noise(5, 3), noise(5, 3, seed=1), Linear())
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        grids.semigroup(*args, 0)
    with pytest.raises(ValueError, match="4 steps needs at least 5 candidates to choose from, got 4"):
        grids.semigroup(*args, 4, candidates=4)
    with pytest.raises(ValueError, match="candidates must be at least 2, the ends 0 and 1, got 1"):
        grids.semigroup_costs(*args, candidates=1)
    with pytest.raises(ValueError, match="latent noise: pass z"):
        grids.semigroup(*args[:3], WithNoise(Linear()), 2)
    with pytest.raises(ValueError, match="costs must be numbers, got NaN"):
        grids.semigroup(Function(lambda x, s, t: x * math.nan), *args[1:], 2)
    for steps in (0, 5):
        with pytest.raises(ValueError, match=rf"steps must lie in 1\.\.4 for 5 nodes, got {steps}"):
            grids.shortest_path(torch.ones(5, 5), steps)


def wells(grid: list[float]) -> float:
    """Three wells, at 0.7, 0.31 and 0.47, the first the deepest."""
    depths = {0.7: 3.0, 0.31: 2.0, 0.47: 1.0}
    return -sum(depth * max(math.exp(-(((t - a) / 0.05) ** 2)) for t in grid) for a, depth in depths.items())


def test_the_greedy_search_finds_the_wells_deepest_first():
    assert grids.multistep(wells, 2, tolerance=1e-4) == pytest.approx([0, 0.7], abs=1e-3)
    assert grids.multistep(wells, 3, tolerance=1e-4) == pytest.approx([0, 0.31, 0.7], abs=1e-3)
    four = grids.multistep(wells, 4, tolerance=1e-4)
    assert four == pytest.approx([0, 0.31, 0.47, 0.7], abs=1e-3)
    assert set(grids.multistep(wells, 3, tolerance=1e-4)) < set(four)  # greedy: times found are kept


@pytest.mark.parametrize("best", [0.02, 0.371, 0.999])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-7])
def test_the_optimum_is_found_to_the_tolerance(best: float, tolerance: float):
    found = grids.multistep(lambda grid: abs(grid[1] - best), 2, candidates=3, tolerance=tolerance)
    assert abs(found[1] - best) <= tolerance


def test_the_optimum_of_an_analytic_map_for_restart():
    """A map to zero that errs by |s - 0.6| + 0.1: only the last time that it jumps from counts."""
    flow_map = Function(lambda x, s, t: torch.zeros_like(x) + like((s - 0.6).abs() + 0.1, x))
    x0, fresh = noise(5, 3), noise(2, 5, 3, seed=1)

    def score(grid: list[float]) -> float:
        return float(MultistepConsistency(grid)(flow_map, x0, fresh[: len(grid) - 1]).abs().mean())

    assert grids.multistep(score, 2) == pytest.approx([0.0, 0.6], abs=1e-3)
    assert grids.multistep(score, 3)[0] == 0.0
    assert score(grids.multistep(score, 3)) <= score(grids.multistep(score, 2))


def test_every_grid_that_is_scored_suits_a_restart():
    seen: list[list[float]] = []

    def score(grid: list[float]) -> float:
        MultistepConsistency(grid)
        seen.append(grid)
        return wells(grid)

    found = grids.multistep(score, 3, candidates=5, start=0.25)
    assert all(grid[0] == 0.25 for grid in seen)
    assert found in seen
    assert wells(found) == min(map(wells, seen))


def test_a_score_that_tells_nothing_leaves_the_candidates():
    assert grids.multistep(lambda _: 0.0, 4, candidates=3) == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert grids.multistep(lambda _: math.inf, 2, candidates=1, start=0.5) == pytest.approx([0.5, 0.75])


def test_one_step_needs_no_score():
    def score(grid: list[float]) -> float:
        raise AssertionError(grid)

    assert grids.multistep(score, 1) == [0.0]
    assert grids.multistep(score, 1, start=0.2) == [0.2]


def test_restart_searches_that_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        grids.multistep(wells, 0)
    with pytest.raises(ValueError, match="4 steps need at least 3 candidates, got 2"):
        grids.multistep(wells, 4, candidates=2)
    with pytest.raises(ValueError, match="need at least 1 candidates, got 0"):
        grids.multistep(wells, 1, candidates=0)
    for start in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"start must lie in \[0, 1\), got"):
            grids.multistep(wells, 2, start=start)
    for tolerance in (0.0, 1e-8, math.nan):
        with pytest.raises(ValueError, match="tolerance must be at least 1e-7, got"):
            grids.multistep(wells, 2, tolerance=tolerance)
    with pytest.raises(ValueError, match=r"score must return a number, lower is better, got NaN for \[0\.0, 0\.5\]"):
        grids.multistep(lambda _: math.nan, 2, candidates=1)
