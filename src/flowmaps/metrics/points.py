r"""How far samples lie from a law, from other samples, and a map from the exact map.

    kl                    sum_c p_c log(p_c / q_c)              cells c of [-1, 1]^2, p exact, q the samples' shares
    wasserstein2          min_pi (mean |a_i - b_pi(i)|^2)^(1/2)   pi the permutations of the rows
    sliced_wasserstein2   (mean over directions w of W2^2(<w, a>, <w, b>))^(1/2)
    energy_distance       2 E|a - b| - E|a - a'| - E|b - b'|
    map_error             mean |X^(x0) - X(x0)|^2
    share_in_other_cell   share of the x0 whose X^(x0) is nearest to another cell of the board than X(x0) is

Every function takes samples `(N, *shape)`, flattens all axes but the first, computes in float64 and returns a float.
Nothing is drawn here but the directions of the sliced distance and the samples of `kl_floor`, each from a generator
or a seed of the caller's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..exact import Checkerboard

_MAX_PIVOTS = 10_000_000  # of the network simplex: the default, 100,000, is too few for thousands of points
_BLOCK = 1024  # rows of a block of distances: 1024 x 5000 float64 is 41 MB


def kl(masses: Tensor, samples: Tensor) -> float:
    r"""KL(exact || samples) between the histograms of an exact law and of samples on a grid over [-1, 1]^2, in nats.

        sum over cells with p_c > 0 of p_c log(p_c / q_c),      q_c = max(n_c, 1/2) / N,

    n_c the number of samples in cell c and N the number of all samples: one outside [-1, 1]^2 counts in N and falls
    in no cell, one in a cell of mass zero likewise takes its share from the others. A cell of positive mass that no
    sample hit would make the KL infinite; it is given half a sample, so that the KL stays finite, grows with each
    such cell, and is the plain one wherever every cell of positive mass was hit. The KL of exact samples is
    not zero but about (cells of positive mass - 1) / (2 N): see `kl_floor`.

    The set-up is that of the checkerboard of Boffi, Albergo, Vanden-Eijnden, "How to build a consistency model:
    Learning flow maps via self-distillation", 2025, arXiv 2505.18825, with exact masses in place of a second
    histogram.

    Args:
        masses: exact masses p of the cells, `(bins, bins)`, non-negative, of sum 1; first axis, first coordinate.
        samples: `(N, 2)`, N at least 1.

    Returns:
        The divergence, in nats.

    Raises:
        ValueError: masses are no square grid or no law; samples are empty, not `(N, 2)`, or not finite.
    """
    p = _masses(masses)
    points = _rows(samples, "samples")
    if samples.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"samples must have shape (N, 2), points of the plane, got {tuple(samples.shape)}.")
    counts = _histogram(points, p.shape[0])
    q = counts.clamp_min(0.5) / len(points)
    hit = p > 0
    return float((p[hit] * (p[hit] / q[hit]).log()).sum())


def kl_floor(board: Checkerboard, number: int, seed: int, masses: Tensor | None = None) -> float:
    """The KL of `number` exact samples: what `kl` reads when nothing is wrong, about (cells - 1) / (2 number) nats.

    Args:
        board: the law.
        number: how many samples; use as many as in the `kl` it stands beside.
        seed: of the generator the samples are drawn with.
        masses: the grid, as in `kl`; by default `board.cell_masses(50)`.

    Returns:
        The divergence, in nats.

    Raises:
        ValueError: `number` is below 1, or `kl` refuses the masses or the samples.
    """
    if number < 1:
        raise ValueError(
            f"number must be at least 1, got {number}: use as many samples as in the KL with which the floor is shown."
        )
    generator = torch.Generator().manual_seed(seed)
    return kl(board.cell_masses(50) if masses is None else masses, board.sample(number, generator=generator))


def wasserstein2(a: Tensor, b: Tensor) -> float:
    r"""Exact 2-Wasserstein distance between two sets of equally many points, in units of x (not squared).

        W2(a, b) = min over permutations pi of (1/N sum_i |a_i - b_pi(i)|^2)^(1/2),

    by the network simplex of POT (R. Flamary et al., "POT: Python Optimal Transport", JMLR 22, 2021). Time and memory
    grow like N^2 and worse: 5,000 points take about 5 s and 400 MB. Two sets of N points of the same law are some way
    apart too, in two dimensions about sqrt(log N / N) of its width: read the distance beside that of exact samples.

    Args:
        a: `(N, *shape)`.
        b: `(N, *shape)`.

    Returns:
        The distance.

    Raises:
        ValueError: shapes differ, there are no rows, or values are not finite.
        ValueError: the simplex did not reach the minimum.
    """
    import ot  # takes two seconds

    rows, others = _pair(a, b, "a", "b")
    cost = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").square_()
    uniform = np.full(len(rows), 1 / len(rows))
    value, log = ot.emd2(uniform, uniform, cost.numpy(), numItermax=_MAX_PIVOTS, log=True)
    if log["warning"] is not None:
        raise ValueError(f"the exact transport of {len(rows)} points failed: {log['warning']} Use fewer points.")
    return math.sqrt(max(float(value), 0.0))


def sliced_wasserstein2(
    a: Tensor, b: Tensor, projections: int = 256, generator: torch.Generator | None = None
) -> float:
    r"""Sliced 2-Wasserstein distance between two sets of equally many points, in units of x (not squared).

        SW2(a, b) = (1/L sum_l W2^2(<w_l, a>, <w_l, b>))^(1/2),      w_l uniform on the unit sphere,

    each distance on the line by sorting. SW2 <= W2, and for a shift by m of points in R^d it is about |m| / sqrt(d).
    Source: N. Bonneel, J. Rabin, G. Peyré, H. Pfister, "Sliced and Radon Wasserstein barycenters of measures", 2015.

    Args:
        a: `(N, *shape)`.
        b: `(N, *shape)`.
        projections: L, the number of directions, at least 1.
        generator: CPU generator of the directions; by default a fresh one of seed 0, so that distances can be compared.

    Returns:
        The distance.

    Raises:
        ValueError: shapes differ, there are no rows, values are not finite, or `projections` is below 1.
    """
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}: 256 is a good number.")
    rows, others = _pair(a, b, "a", "b")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    directions = torch.randn(projections, rows.shape[1], generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    total = 0.0
    for w in directions.split(32):
        gap = (rows @ w.T).sort(dim=0).values - (others @ w.T).sort(dim=0).values
        total += float(gap.square().mean(0).sum())
    return math.sqrt(total / projections)


def energy_distance(a: Tensor, b: Tensor, *, unbiased: bool = True) -> float:
    r"""Energy distance between two sets of points, in units of x.

        2 E|a - b| - E|a - a'| - E|b - b'|,

    the squared form of G. J. Székely, M. L. Rizzo, "Energy statistics: A class of statistics based on distances",
    2013; zero for two equal laws, positive otherwise. By default the unbiased estimate (U-statistic: pairs a_i, a_i
    left out), whose mean over samples is the value of the two laws at any N: it may come out slightly negative where
    they agree. The other (V-statistic) is never negative and zero for two equal sets, but too large by (E|a - a'| /
    N_a + E|b - b'| / N_b). Blocks of 1,024 rows: memory stays below 100 MB for 5,000 points, 5,000 take about a
    second.

    Args:
        a: `(N_a, *shape)`.
        b: `(N_b, *shape)`; the number of rows may differ.
        unbiased: the U-statistic; needs two rows at least in each set.

    Returns:
        The distance.

    Raises:
        ValueError: the shapes of a row differ, there are too few rows, or values are not finite.
    """
    rows, others = _pair(a, b, "a", "b", same_number=False)
    least = 2 if unbiased else 1
    if min(len(rows), len(others)) < least:
        raise ValueError(f"energy_distance needs {least} rows in each set, got {len(rows)} and {len(others)}.")
    n, m = len(rows), len(others)
    between = _sum_of_distances(rows, others) / (n * m)
    within = _sum_of_distances(rows, rows) / (n * (n - unbiased))
    among = _sum_of_distances(others, others) / (m * (m - unbiased))
    return 2 * between - within - among


def map_error(predicted: Tensor, exact: Tensor) -> float:
    r"""Mean squared distance between a map's points and the exact map's, in units of x squared.

        1/N sum_i |X^(x_i) - X(x_i)|^2,      |.|^2 summed over all dimensions.

    Args:
        predicted: X^(x_i), `(N, *shape)`.
        exact: X(x_i) of the same points in the same order, `(N, *shape)`.

    Returns:
        The error.

    Raises:
        ValueError: shapes differ, there are no rows, or values are not finite.
    """
    rows, others = _pair(predicted, exact, "predicted", "exact")
    return float((rows - others).square().sum(1).mean())


def share_in_other_cell(board: Checkerboard, predicted: Tensor, exact: Tensor) -> float:
    """Share of the points whose nearest cell of the board is another than that of their counterpart.

    Args:
        board: the law.
        predicted: X^(x_i), `(N, 2)`.
        exact: X(x_i) of the same points in the same order, `(N, 2)`.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: shapes differ, there are no rows, or values are not finite.
    """
    rows, others = _pair(predicted, exact, "predicted", "exact")
    return float((board.nearest_cell(rows) != board.nearest_cell(others)).double().mean())


def _sum_of_distances(a: Tensor, b: Tensor) -> float:
    """Sum over all pairs of |a_i - b_j|, a block of rows at a time; the differences are taken, not products."""
    return sum(float(torch.cdist(x, b, compute_mode="donot_use_mm_for_euclid_dist").sum()) for x in a.split(_BLOCK))


def _histogram(points: Tensor, bins: int) -> Tensor:
    """Numbers of points in the cells of a grid over [-1, 1]^2, `(bins, bins)`; the last cell is closed on the right."""
    inside = points[((points >= -1) & (points <= 1)).all(1)]
    cell = ((inside + 1) * (bins / 2)).long().clamp_max(bins - 1)
    return torch.bincount(cell[:, 0] * bins + cell[:, 1], minlength=bins * bins).double().reshape(bins, bins)


def _masses(masses: Tensor) -> Tensor:
    """The masses in float64 on the CPU, refused unless they are a law on a square grid."""
    p = masses.detach().to("cpu", torch.float64)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or p.numel() == 0:
        raise ValueError(f"masses must be a square grid (bins, bins), got shape {tuple(masses.shape)}.")
    if not bool(torch.isfinite(p).all()) or bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError(
            f"masses must be at least 0 with sum 1, got sum {float(p.sum()):.6g}, least {float(p.min()):.6g}."
        )
    return p


def _pair(a: Any, b: Any, first: str, second: str, *, same_number: bool = True) -> tuple[Tensor, Tensor]:
    """Two sets of rows, refused unless their rows have one shape and, where asked, their number is one."""
    rows, others = _rows(a, first), _rows(b, second)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"the rows of {first} and {second} must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if same_number and len(rows) != len(others):
        raise ValueError(
            f"{first} and {second} must have as many rows, got {len(rows)} and {len(others)}: cut the longer one."
        )
    return rows, others


def _rows(x: Any, name: str) -> Tensor:
    """`(N, *shape)` as `(N, D)` in float64 on the CPU, refused when empty or not finite."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch tensor (N, *shape), got {type(x).__name__}: use torch.as_tensor.")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(f"{name} must have at least one row, shape (N, *shape), got shape {tuple(x.shape)}.")
    rows = x.detach().to("cpu", torch.float64).reshape(x.shape[0], -1)
    bad = int((~torch.isfinite(rows)).any(1).sum())
    if bad:
        raise ValueError(
            f"{name} has NaN or infinite values in {bad} of {len(rows)} rows: drop them or mend the sampler."
        )
    return rows
