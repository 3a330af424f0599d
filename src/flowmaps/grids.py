r"""Grids: choosing the times of a few-step sampler after training.

`semigroup` needs the map alone. Jumping along 0 = t_0 < ... < t_N = 1, with r_k the semigroup residual of a step,

    r_k = |X_{t_k, t_{k+1}}(I_{t_k}) - X_{m, t_{k+1}}(X_{t_k, m}(I_{t_k}))|,       m = (t_k + t_{k+1}) / 2,

it returns the grid with the least sum_k E r_k^2. Let d_k be the error of step k from I_{t_k}, and L_k the Lipschitz
constant of the jumps after it. Errors add up along the jumps, and d_k is at most r_k plus the errors of the two half
steps, the first of them times the Lipschitz constant of the second:

    W2(law of N jumps, law of the flow at 1)^2 <= E (sum_k L_k d_k)^2 <= N sum_k L_k^2 E d_k^2.

So the sum bounds the error up to Lipschitz constants, as far as half steps are better than whole ones. It cannot see
the errors of a map that satisfies the semigroup equation with another velocity.

`multistep` needs a score of samples instead, such as a distance to data: it is for multistep consistency sampling.

References: Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency models", 2023, arXiv 2303.01469 (greedy search by
a score); Y. Song, P. Dhariwal, "Improved techniques for training consistency models", 2023, arXiv 2310.14189; N. M.
Boffi, M. S. Albergo, E. Vanden-Eijnden, "Flow map matching with stochastic interpolants", 2024, arXiv 2406.07507 (the
semigroup equation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from .equations import Semigroup
from .interpolants import Interpolant
from .maps import FlowMap
from .shapes import Batch, Condition, like, per_row
from .times import grid

Score = Callable[[list[float]], float]


def semigroup(
    flow_map: FlowMap,
    x0: Batch,
    x1: Batch,
    interpolant: Interpolant,
    steps: int,
    *,
    candidates: int = 17,
    cond: Condition = None,
    z: Batch | None = None,
    watch: Callable[[float], None] | None = None,
) -> list[float]:
    """The grid of `steps` steps from 0 to 1 of least total semigroup residual, among all on the candidate times.

    For several numbers of steps, call `semigroup_costs` once and `shortest_path` for each.

    Args:
        flow_map: the map, in evaluation mode.
        x0, x1: base and data samples, `(B, *shape)`; their coupling is the one of training.
        interpolant: the path that the map was trained on; the residual of a step from t is taken at I_t.
        steps: number N of jumps, at least 1.
        candidates: number of equally spaced times from 0 to 1 to choose from, above `steps`.
        cond: condition, row by row with `x0` and `x1`.
        z: latent noise, `(B, *shape)`, for an interpolant that has it.
        watch: called after each pair of times with the share of the pairs that are done, in (0, 1].

    Returns:
        N + 1 rising times from 0.0 to 1.0, for `samplers.Jump(grid=...)`.

    Raises:
        ValueError: fewer than one step, no more candidates than steps, or samples that do not go together.
    """
    _check_steps(steps)
    if candidates <= steps:
        raise ValueError(
            f"a grid of {steps} steps needs at least {steps + 1} candidates to choose from, got {candidates}."
        )
    costs = semigroup_costs(flow_map, x0, x1, interpolant, candidates=candidates, cond=cond, z=z, watch=watch)
    times = grid(candidates - 1)
    return [times[k] for k in shortest_path(costs, steps)]


@torch.no_grad()
def semigroup_costs(
    flow_map: FlowMap,
    x0: Batch,
    x1: Batch,
    interpolant: Interpolant,
    *,
    candidates: int = 17,
    cond: Condition = None,
    z: Batch | None = None,
    watch: Callable[[float], None] | None = None,
) -> Tensor:
    """E |X_{s,t}(I_s) - X_{m,t}(X_{s,m}(I_s))|^2, m = (s + t) / 2, for each two candidate times s < t.

    Sums over dimensions, means over the batch; three evaluations of B rows for each of the n (n - 1) / 2 pairs, n the
    number of candidates. Arguments as in `semigroup`.

    Returns:
        `(n, n)` in float64 on the CPU: row s, column t; infinite where s >= t.

    Raises:
        ValueError: fewer than two candidates, or samples that do not go together.
    """
    if candidates < 2:
        raise ValueError(f"candidates must be at least 2, the ends 0 and 1, got {candidates}.")
    times, equation = grid(candidates - 1), Semigroup()
    pairs, found = list(combinations(range(candidates), 2)), []
    for done, (i, j) in enumerate(pairs, start=1):
        s, t = x1.new_full((len(x1),), times[i]), x1.new_full((len(x1),), times[j])
        point = interpolant.point(x0, x1, s, z)
        # the equation is in u: X = x + (t - s) u
        gap = like(t - s, x1) * equation(flow_map, point, s, t, flow_map.velocity, cond=cond).value
        found.append(per_row(gap.square()).mean())
        if watch is not None:
            watch(done / len(pairs))
    costs = torch.full((candidates, candidates), math.inf, dtype=torch.float64)
    rows, columns = torch.tensor(pairs).T
    costs[rows, columns] = torch.stack(found).double().cpu()
    return costs


def shortest_path(costs: Tensor, steps: int) -> list[int]:
    """The cheapest path from the first node to the last in exactly `steps` rising edges, by dynamic programming.

        V_0 = (0, inf, ..., inf),       V_k(j) = min_{i < j} V_{k-1}(i) + costs(i, j)

    Args:
        costs: cost of the edge from row to column, `(n, n)`; only i < j is looked at.
        steps: number of edges, from 1 to n - 1.

    Returns:
        The `steps + 1` nodes, rising from 0 to n - 1; any one of several paths of equal cost.

    Raises:
        ValueError: `steps` outside 1 to n - 1, or a cost that is NaN.
    """
    nodes = len(costs)
    if not 1 <= steps < nodes:
        raise ValueError(f"steps must lie in 1..{nodes - 1} for {nodes} nodes, got {steps}.")
    upper = torch.ones(nodes, nodes, dtype=torch.bool, device=costs.device).triu(1)
    edges = torch.where(upper, costs, math.inf)
    if bool(edges.isnan().any()):
        raise ValueError("costs must be numbers, got NaN: check that the samples, and the map at them, are finite.")
    value = torch.full_like(edges[0], math.inf)
    value[0] = 0
    before = []
    for _ in range(steps):
        value, origin = (value[:, None] + edges).min(0)
        before.append(origin)
    path = [nodes - 1]
    for origin in reversed(before):
        path.append(int(origin[path[-1]]))
    return path[::-1]


def multistep(
    score: Score,
    steps: int,
    *,
    candidates: int = 16,
    start: float = 0.0,
    tolerance: float = 1e-3,
) -> list[float]:
    """A grid of `steps` times for `samplers.MultistepConsistency`, by greedy search: the times are added one by one.

    Each time is the best of `candidates` equally spaced ones, refined by Brent's method between the neighbours of the
    best. Consistency models use a ternary search alone (2303.01469), which is right for a score with one minimum in
    the time; this search also works for several, as long as a candidate lies near the deepest.

    Args:
        score: `grid -> float`, lower is better, such as a distance between data and samples of
            `MultistepConsistency(grid)` from the same noise at each call. It is called about `candidates + 10` times
            for each time.
        steps: number N of jumps, at least 1.
        candidates: number of equally spaced times between `start` and 1, at least N - 1.
        start: the first time of every grid, in [0, 1).
        tolerance: error of each time, at least 1e-7.

    Returns:
        N rising times in [start, 1), the first being `start`.

    Raises:
        ValueError: an argument out of its range, or a score that is NaN.
    """
    _check_steps(steps)
    if candidates < max(steps - 1, 1):
        raise ValueError(f"{steps} steps need at least {max(steps - 1, 1)} candidates, got {candidates}.")
    if not 0 <= start < 1:
        raise ValueError(f"start must lie in [0, 1), got {start}: it is the time that the noise is at.")
    if not tolerance >= 1e-7:
        raise ValueError(f"tolerance must be at least 1e-7, got {tolerance}: no search in float64 finds a time closer.")
    times, tries = [float(start)], grid(candidates + 1, start, 1.0)
    for _ in range(steps - 1):
        times = _insert(score, times, tries, tolerance)
    return times


def _insert(score: Score, times: list[float], tries: list[float], tolerance: float) -> list[float]:
    """`times` and the time that improves their score most, searched around the inner times of the grid `tries`."""
    from scipy.optimize import minimize_scalar  # slow to import, and only this search needs it

    def with_time(t: float) -> float:
        tried = sorted([*times, float(t)])
        value = float(score(tried))
        if math.isnan(value):
            raise ValueError(f"score must return a number, lower is better, got NaN for {tried}: return inf to refuse.")
        return value

    values = {t: with_time(t) for t in tries[1:-1] if t not in times}
    best = min(values, key=values.__getitem__)
    marks = sorted({*times, *tries})
    place = marks.index(best)
    bounds, options = (marks[place - 1], marks[place + 1]), {"xatol": tolerance}
    found = minimize_scalar(with_time, bounds=bounds, method="bounded", options=options)
    return sorted([*times, float(found.x) if found.fun < values[best] else best])  # type: ignore[attr-defined]


def _check_steps(steps: int) -> None:
    """Refuse a number of steps below one."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
