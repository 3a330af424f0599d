"""Figures of samples: against the exact law, against data as points, or against images by the features of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..data import Board, Images, Source
from ..metrics.features import Features, extract, open_features
from ..metrics.images import Statistics
from ..metrics.reference import Reference as Real
from ..metrics.reference import reference as real_images
from ..metrics.row import figures_of
from ..runs.recipes import Evaluation, ImageEvaluation
from ..shapes import Field
from ..solvers import SolverFlow
from ..system.progress import Watch, quiet
from ..training.loop import generator

Row = dict[str, Any]
SAMPLES, EXACT, LABELS = 1, 2, 6  # streams of the seed
MOST = 2**22  # numbers in the points of W2 and energy distance, which take hours for thousands of latents
FAR = 1e3  # data are of order one: a sample farther away, or not finite, is lost


@dataclass(frozen=True)
class Sampled:
    """Samples in the network's coordinates, their labels, evaluations each, and the seconds they took."""

    x: Tensor
    cond: Tensor | None
    nfe: int
    seconds: float

    def first(self, number: int) -> Sampled:
        """At most so many of them, the rest let go."""
        return replace(self, x=self.x[:number].clone(), cond=None if self.cond is None else self.cond[:number])


@dataclass(frozen=True)
class Reference:
    """What samples are measured against: the same noise and labels for all, fresh data, and the flow's own answer.

    `flow` is X_{0,1} of the first points of `x0`, from the exact flow or from the teacher's solved to 1e-6; `None`
    where there is neither. Of images it is what the teacher's dopri5 gave, see `against`.
    """

    x0: Tensor
    cond: Tensor | None
    data: Tensor
    flow: Tensor | None = None
    floor: float | None = None
    images: Pixels | None = None


@dataclass(frozen=True)
class Pixels:
    """What images are measured against: real ones as features, and the teacher's from the same noise.

    `device` is that of the feature network.
    """

    features: Features
    real: Real
    device: torch.device
    teacher: Statistics | None = None


def reference(
    source: Source,
    teacher: Field | None,
    settings: Evaluation,
    seed: int,
    device: torch.device | str = "cpu",
    watch: Watch = quiet,
) -> Reference:
    """Draw the noise and the data of an evaluation, and solve the flow from the first points, if there is one."""
    number, source = max(settings.samples, settings.points), source.to("cpu")
    x0 = torch.randn(number, *source.shape, generator=generator(seed, SAMPLES))
    if isinstance(source, Images):
        return _of_images(source, x0[: settings.samples], settings, device, watch)
    _, cond = (None, None) if source.classes is None else source.sample(number, generator(seed, LABELS))
    data, _ = source.sample(settings.points, generator(seed, EXACT))
    starts, labels = x0[: settings.points], None if cond is None else cond[: settings.points]
    flow = None
    if teacher is not None or isinstance(source, Board):
        with torch.inference_mode():
            labels = labels if labels is None else labels.to(device)
            flow = true_flow(source, teacher, starts.to(device), torch.ones(len(starts), device=device), labels).cpu()
    floor = metrics.kl_floor(source.exact, settings.samples, seed) if isinstance(source, Board) else None
    return Reference(x0[: settings.samples], cond, data, flow, floor)


def _of_images(source: Images, x0: Tensor, settings: Evaluation, device: torch.device | str, watch: Watch) -> Reference:
    """Every class equally often; the features of real images from their file, if they were computed before."""
    assert isinstance(settings, ImageEvaluation)
    cond = None if source.classes is None else torch.arange(len(x0)) % source.classes
    features = open_features(settings.features)
    number = min(settings.reference or len(source.pixels), len(source.pixels))
    spread = torch.linspace(0, len(source.pixels) - 1, number, dtype=torch.float64).round().long()
    pixels = source.pixels[spread]
    device = torch.device(device)
    options = {"batch": _at_once(device), "device": device, "watch": watch}
    real = real_images(features, pixels, keep=settings.points, **options)
    return Reference(x0, cond, pixels, images=Pixels(features, real, device))


def _at_once(device: torch.device) -> int:
    """How many images a feature network is quickest with."""
    return 32 if device.type == "cpu" else 256


def true_flow(source: Source, teacher: Field | None, x0: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
    """X_{0,t}(x0): of the exact flow where it is known, else of the teacher's, solved to 1e-6; `(B, dim)`."""
    zero = torch.zeros_like(t)
    if isinstance(source, Board):
        x, s, r = (value.cpu().double() for value in (x0, zero, t))  # some devices have no float64
        return source.exact.flow_map(x, s, r).to(x0)
    assert teacher is not None
    return SolverFlow(teacher, rtol=1e-6, atol=1e-6)(x0, zero, t, cond)


def measure(
    sampled: Sampled,
    source: Source,
    ref: Reference,
    settings: Evaluation,
    *,
    follows: bool = True,
    solved: bool = False,
    watch: Watch = quiet,
) -> tuple[Row, Reference]:
    """The figures of one sampler, a part of a row of metrics.json.

    Samples that are lost are counted, and taken to lie at a distance; where all are lost there are no figures.

    Args:
        sampled: the samples.
        source: the data.
        ref: what to measure against.
        settings: how many points.
        follows: whether the samples lie where the flow ends that starts from the same noise.
        solved: whether they are the flow of images, against which the next samplers are to be measured.
        watch: told what is computed of images, and the share that is done.

    Returns:
        The figures, and what to measure the next sampler against.
    """
    row: Row = {"nfe": sampled.nfe, "samples": len(sampled.x)}
    lost = ~(sampled.x.abs() <= FAR).flatten(1).all(1)
    if bool(lost.any()):
        row["lost"] = int(lost.sum())
        if bool(lost.all()):
            return row | {"seconds": sampled.seconds}, ref
    x = sampled.x.nan_to_num(FAR).clamp(-FAR, FAR)
    if ref.images is None:
        figures = _of_points(x, source, ref, settings, follows, watch)
    else:
        device = ref.images.device
        images = source.units.to_pixels(x)
        found = extract(ref.images.features, images, batch=_at_once(device), device=device, watch=watch)
        figures = dict(figures_of(found, ref.images.real, ref.images.features, ref.images.teacher, watch=watch))
        if follows and ref.flow is not None:
            figures["pixel_error"] = metrics.map_error(x[: len(ref.flow)], ref.flow) / source.dim
        if solved:
            teacher = Statistics.of(found, ref.images.features.name)
            ref = replace(ref, flow=x[: settings.points], images=replace(ref.images, teacher=teacher))
    return row | figures | {"seconds": sampled.seconds}, ref


def _of_points(x: Tensor, source: Source, ref: Reference, settings: Evaluation, follows: bool, watch: Watch) -> Row:
    row: Row = {}
    few = min(settings.points, max(500, MOST // source.dim))
    x, data = source.to_data(x), source.to_data(ref.data[:few])
    if isinstance(source, Board):
        row |= {"kl": metrics.kl(source.exact.cell_masses(50), x), "kl_floor": ref.floor}
    watch("W2", 0.0)
    row["w2"] = metrics.wasserstein2(x[:few], data[: len(x[:few])])
    row["sliced_w2"] = metrics.sliced_wasserstein2(x[:few], data[: len(x[:few])], generator=generator(0))
    if not isinstance(source, Board):
        watch("energy distance", 0.5)
        row["energy"] = metrics.energy_distance(x[:few], data)
    if follows and ref.flow is not None:
        row["map_error"] = metrics.map_error(x[:few], source.to_data(ref.flow[:few])[: len(x)])
    return row
