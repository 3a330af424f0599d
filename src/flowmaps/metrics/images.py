r"""How far images lie from others, by their features: points x of R^D that a feature network makes of them.

    Fréchet distance    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))      of means and covariances
    kernel distance     MMD^2 with the kernel (x.y / D + 1)^3, unbiased, over subsets
    precision           share of samples within the k-th neighbour's distance of some real point
    recall              share of real points within the k-th neighbour's distance of some sample

Everything is computed in float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .features import Watch

_BLOCK = 1024  # rows of a block: 1024 x 50,000 distances are 410 MB in float64
_REPORT_EVERY = 10  # subsets of the kernel distance between two calls of its progress callback


@dataclass(frozen=True)
class Statistics:
    """Number, mean and covariance of features, in float64 on the CPU: all that a Fréchet distance needs of a set.

    Args:
        number: N, of images.
        mean: `(D,)`.
        cov: with the divisor N - 1, `(D, D)`; zero for N = 1.
        features: the name of the network; sets of two networks are never compared.

    Raises:
        ValueError: the shapes do not fit, or `number` is below 1.
    """

    number: int
    mean: Tensor
    cov: Tensor
    features: str

    def __post_init__(self) -> None:
        dim = self.mean.numel()
        if self.mean.ndim != 1 or self.cov.shape != (dim, dim) or self.number < 1:
            raise ValueError(
                f"statistics need a number of at least 1, a mean (D,) and a covariance (D, D), got {self.number}, "
                f"{tuple(self.mean.shape)} and {tuple(self.cov.shape)}: use Statistics.of."
            )

    @property
    def dim(self) -> int:
        """D, the number of features."""
        return len(self.mean)

    @classmethod
    def of(cls, x: Tensor, features: str) -> Statistics:
        """The statistics of features `(N, D)`, made by the network of that name.

        Raises:
            ValueError: `x` is not of shape `(N, D)`, or has no row.
        """
        if x.ndim != 2 or x.numel() == 0:
            raise ValueError(f"features must have shape (N, D) with N at least 1, got {tuple(x.shape)}: use extract.")
        return reduce(Statistics.join, (cls._of_block(rows, features) for rows in x.split(_BLOCK)))

    @classmethod
    def _of_block(cls, x: Tensor, features: str) -> Statistics:
        rows = x.detach().to("cpu", torch.float64)
        mean = rows.mean(0)
        return cls(len(rows), mean, (rows - mean).T @ (rows - mean) / max(len(rows) - 1, 1), features)

    def join(self, other: Statistics) -> Statistics:
        """The statistics of both sets together, centred throughout, so that nothing cancels.

        Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979.
        """
        _check_same_features(self, other)
        n, m = self.number, other.number
        gap = other.mean - self.mean
        scatter = (n - 1) * self.cov + (m - 1) * other.cov + torch.outer(gap, gap) * (n * m / (n + m))
        return Statistics(n + m, self.mean + gap * (m / (n + m)), scatter / (n + m - 1), self.features)


def frechet_distance(a: Statistics, b: Statistics, *, strict: bool = False) -> float:
    r"""Squared Fréchet distance between the Gaussians of two sets of features.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)),

    the squared W2 of two normal laws (D. C. Dowson, B. V. Landau, "The Fréchet distance between multivariate normal
    distributions", 1982), for images by M. Heusel et al., 2017, arXiv 1706.08500. With C1 = R1 R1^T, C2 = R2 R2^T the
    trace of (C1 C2)^(1/2) is the sum of the singular values of R1^T R2. About 2 s for D = 1280 on one core.

    It is biased: N samples of a law lie some way from it, by about a constant over N. Compare distances of one N only.

    Args:
        a: one set.
        b: the other; the order is of no matter.
        strict: refuse a set of fewer than D + 1 images, in the place of a warning.

    Returns:
        The distance, in units of features squared.

    Raises:
        ValueError: the sets' features are of two networks; with `strict`, a set is too small.

    Warns:
        UserWarning: a set has fewer than D + 1 images, so that its covariance is singular.
    """
    _check_same_features(a, b)
    for statistics in (a, b):
        _check_number(statistics, strict)
    overlap = torch.linalg.svdvals(_root(a.cov).T @ _root(b.cov)).sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * overlap
    return max(float(distance), 0.0)


def kernel_distance(
    x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0, watch: Watch | None = None
) -> tuple[float, float]:
    r"""Kernel distance between two sets of features: mean and standard deviation over random subsets of each.

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),      k(x, y) = (x.y / D + 1)^3,

    the unbiased estimate (M. Binkowski et al., "Demystifying MMD GANs", 2018, arXiv 1801.01401), which does not drift
    with the number of images and may come out slightly negative near zero.

    Args:
        x: `(N, D)`.
        y: `(M, D)`.
        subsets: their number, at least 1.
        size: of a subset, at least 2, at most N and M.
        seed: of the subsets.
        watch: progress callback.

    Returns:
        Mean and standard deviation; that of the mean is smaller, by about the root of `subsets`.

    Raises:
        ValueError: the sets' shapes, `subsets` or `size` are none of those.
    """
    x, y = _check_sets(x, y)
    if subsets < 1 or not 2 <= size <= min(len(x), len(y)):
        raise ValueError(
            f"the kernel distance needs 1 subset at least, of 2 to {min(len(x), len(y))} images (there are {len(x)} "
            f"and {len(y)}), got {subsets} of {size}: give fewer to a subset, or draw more images."
        )
    generator, values = torch.Generator().manual_seed(seed), []
    for done in range(1, subsets + 1):
        rows, others = (torch.randperm(len(points), generator=generator)[:size] for points in (x, y))
        values.append(_squared_mmd(x[rows], y[others]))
        if watch is not None and (done % _REPORT_EVERY == 0 or done == subsets):
            watch("kernel distance", done / subsets)
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std(unbiased=False))


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased MMD^2 of two sets of n points each, `(n, D)`, with the kernel (x.y / D + 1)^3."""
    n, dim = x.shape
    xx, yy, xy = ((a @ b.T / dim + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return float(within / (n * (n - 1)) - 2 * xy.mean())


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3, watch: Watch | None = None) -> tuple[float, float]:
    """Improved precision and recall of samples, by balls round each point that reach its k-th nearest neighbour.

    Precision is the share of samples in some real point's ball: how many look real. Recall is the share of real points
    in some sample's ball: how much of the data is covered. Source: T. Kynkäänniemi et al., "Improved precision and
    recall metric for assessing generative models", 2019, arXiv 1904.06991. They depend on both numbers: give as many
    of each, and compare those of one number only. Blocks of 1,024 rows; 5,000 of D = 1280 take some 5 s on one core.

    Args:
        real: features of data, `(N, D)`.
        fake: features of samples, `(M, D)`.
        k: which neighbour, at least 1, below N and M; the point itself is none.
        watch: progress callback.

    Returns:
        Precision and recall, from 0 to 1.

    Raises:
        ValueError: the sets' shapes do not fit, or `k` is none of those.
    """
    real, fake = _check_sets(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k must be from 1 to {min(len(real), len(fake)) - 1}, the images less one, got {k}: use 3.")
    centre = real.mean(0)  # small numbers round best
    real, fake = real - centre, fake - centre
    total, done = 2 * len(fake) + len(real), 0

    def report(rows: int) -> None:
        nonlocal done
        done += rows
        if watch is not None:
            watch("precision and recall", done / total)

    reach_of_real, reach_of_fake = _reach(real, k, report), _reach(fake, k, report)
    precise, recalled = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, reach in zip(fake.split(_BLOCK), reach_of_fake.split(_BLOCK), strict=True):
        squares = _squares(rows, real)
        precise += int((squares <= reach_of_real).any(1).sum())
        recalled |= (squares <= reach[:, None]).any(0)
        report(len(rows))
    return precise / len(fake), float(recalled.double().mean())


def _reach(x: Tensor, k: int, report: Callable[[int], None]) -> Tensor:
    """Squared distance of each row to the k-th nearest other one, `(N,)`."""
    reach = []
    for number, rows in enumerate(x.split(_BLOCK)):
        squares = _squares(rows, x)
        squares.diagonal(number * _BLOCK).fill_(math.inf)
        reach.append(squares.kthvalue(k, dim=1).values)
        report(len(rows))
    return torch.cat(reach)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances `(N, M)`; those within the rounding of zero are zero, so that copies are at no distance."""
    lengths = a.square().sum(1)[:, None] + b.square().sum(1)
    squares = torch.addmm(lengths, a, b.T, alpha=-2)
    return squares.masked_fill_(squares <= 1e-12 * lengths, 0.0)


def _root(cov: Tensor) -> Tensor:
    """A matrix R with R R^T = C, `(D, D)`; eigenvalues of C that are zero up to rounding count as zero."""
    try:
        values, vectors = torch.linalg.eigh(cov)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # some matrices of low rank do not converge
        vectors, values, _ = torch.linalg.svd(cov)
    floor = values.abs().max() * len(cov) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > floor, values, 0.0).sqrt()


def _check_same_features(a: Statistics, b: Statistics) -> None:
    """Refuse features of two networks."""
    if a.features != b.features or a.dim != b.dim:
        raise ValueError(
            f"features of two networks cannot be compared, got {a.features!r} ({a.dim}) and {b.features!r} "
            f"({b.dim}): make both sets with one."
        )


def _check_number(statistics: Statistics, strict: bool) -> None:
    """Warn of a set that is too small for its covariance; refuse it if `strict`."""
    if statistics.number > statistics.dim:
        return
    message = (
        f"the covariance of {statistics.number:,} images in {statistics.dim:,} features ({statistics.features}) is "
        f"singular and the Fréchet distance far too large: it takes {statistics.dim + 1:,} images at least, better "
        f"{2 * statistics.dim:,}, and 50,000 for a distance to be reported."
    )
    if strict:
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)


def _check_sets(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features in float64, refused when they do not fit."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.numel() == 0 or y.numel() == 0:
        raise ValueError(
            f"two sets of features must have shapes (N, D) and (M, D) with one D, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}: extract both with one network."
        )
    return x.detach().double(), y.detach().double()
