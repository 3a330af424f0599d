"""The metrics of images in a row of `metrics.json`, and what they are called."""

from __future__ import annotations

from torch import Tensor

from .features import Features, Watch, extract, spread
from .images import Statistics, frechet_distance, kernel_distance, precision_recall
from .inception import Inception
from .reference import Reference

_SUBSET_SIZE = 1000  # images of a subset of the kernel distance, as in its paper


def label(features: str, number: int, metric: str = "FD") -> str:
    """What a metric is called: "FD (efficientnet-lite0 at 128 px, 5,000 samples)".

    "FID" and "KID" are the distances in the features of the published Inception v3, resized as published, and no
    others: the same distance in other features is another number.

    Args:
        features: the name of the network.
        number: of samples.
        metric: "FD" or "KD".

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in ("FD", "KD"):
        raise ValueError(f"metric must be 'FD' or 'KD', got {metric!r}.")
    if features == Inception.name:
        return f"{metric[0]}ID ({number:,} samples)"
    return f"{metric} ({features}, {number:,} samples)"


def image_metrics(
    samples: Tensor,
    reference: Reference,
    features: Features,
    teacher: Statistics | None = None,
    *,
    k: int = 3,
    subsets: int = 100,
    seed: int = 0,
    watch: Watch | None = None,
) -> dict[str, float | str]:
    """The metrics of samples that were drawn as images, or as features of such, for a row of `metrics.json`.

    Args:
        samples: pixels, uint8, `(N, C, H, W)` with C of 1 or 3, or their features, float32, `(N, features.dim)`.
        reference: of the real images, by the same network.
        features: the network.
        teacher: of the teacher's samples from the same noise, as many, by the same network.
        k: which neighbour, in precision and recall.
        subsets: of the kernel distance, of 1,000 images each or as many as there are.
        seed: of the subsets.
        watch: progress callback.

    Returns:
        `fd`, Fréchet distance to the real images; `fd_teacher`, to the teacher's, where they are given; `fd_name`,
        what `fd` is called; `kd` and `kd_std`, kernel distance, mean and standard deviation over subsets; `precision`
        and `recall`, between as many of the samples and of the reference's points. The last four are left out where
        either has too few for them.

    Raises:
        ValueError: the samples are none of those, or the reference or the teacher is of another network.

    Warns:
        UserWarning: the samples are fewer than the Fréchet distance needs.
    """
    x = samples if samples.is_floating_point() else extract(features, samples, watch=watch)
    statistics = Statistics.of(x, features.name)
    found: dict[str, float | str] = {"fd": frechet_distance(statistics, reference.statistics)}
    if teacher is not None:
        found["fd_teacher"] = frechet_distance(statistics, teacher)
    found["fd_name"] = label(features.name, statistics.number)
    number = min(len(x), len(reference.points))
    if number > k:
        options = {"subsets": subsets, "size": min(_SUBSET_SIZE, number), "seed": seed, "watch": watch}
        found["kd"], found["kd_std"] = kernel_distance(x, reference.points, **options)
        real = reference.points[spread(len(reference.points), number)]
        found["precision"], found["recall"] = precision_recall(real, x[:number], k=k, watch=watch)
    return found
