"""Metrics of samples: against the exact law, against data as points, or against images by the features of a network."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import metrics
from ..data import Board, Images, Latents, Points, Source
from ..metrics.features import Features, extract, open_features, spread
from ..metrics.images import Statistics, frechet_distance
from ..metrics.reference import Reference, reference
from ..metrics.row import image_metrics
from ..runs.recipes import Evaluation, ImageEvaluation
from ..shapes import Condition, Field, label_and_numbers, on_each
from ..solvers import SolverFlow, Unsolvable
from ..system.progress import Watch, quiet
from ..system.seeds import generator
from .distances import Row, distances, most_points, real_distances, with_numbers
from .sampling import NOISE_STREAM, Samples

DATA_STREAM, LABEL_STREAM = 2, 6  # streams of the seed
DECODED_AT_ONCE = 256
"""Pictures of latents in memory at a time."""
SAMPLES_OF_KL_IN_SD = 64_000
"""Samples of the published KL of the checkerboard (2505.18825), on the same grid."""
MAX_ABS = 1e3
"""Data are of order one: a sample with a greater coordinate, or one that is not finite, counts as lost."""


@dataclass(frozen=True)
class EvaluationInputs:
    """What the samplers of an evaluation start from, and what their samples are measured against.

    Attributes:
        x0: noise that every sampler starts from, `(N, *shape)`.
        cond: conditions of the samples, or `None`.
        data: held-out rows or draws of the data, of images as pixels.
        data_numbers: numbers on which the rows of `data` are conditioned, `(M, D)`; rows are compared together with
            these, as samples with theirs. `None` for data without such.
        flow: X_{0,1} of the first points of `x0`, by data:
            checkerboard: of the exact flow.
            other points: of the teacher's flow, or of the map's own velocity, solved to 1e-6; `None` without either, or
                where it cannot be solved.
            images: the teacher's samples by the first solver; `None` until they are measured.
        floor: KL of as many exact samples, where the law is known.
        teacher: of points of the checkerboard, the first samples of the teacher's ODE, once they are measured.
        floors: of other points, the distances between real rows, entries of every row of metrics.json.
        images: what images are measured against, if the data are images.
    """

    x0: Tensor
    cond: Tensor | None
    data: Tensor
    flow: Tensor | None = None
    floor: float | None = None
    images: ImageInputs | None = None
    data_numbers: Tensor | None = None
    teacher: Tensor | None = None
    floors: Row = field(default_factory=dict)


@dataclass(frozen=True)
class ImageInputs:
    """What images are measured against.

    Attributes:
        features: the feature network.
        real: statistics and features of real images.
        device: of the feature network.
        teacher: statistics of the teacher's samples by the first solver from the same noise, once they are measured.
        floor: Fréchet distance of as many other real images; `None` where the data have too few.
    """

    features: Features
    real: Reference
    device: torch.device
    teacher: Statistics | None = None
    floor: float | None = None


def evaluation_inputs(
    source: Source,
    teacher: Field | None,
    settings: Evaluation,
    seed: int,
    device: torch.device | str = "cpu",
    watch: Watch = quiet,
) -> EvaluationInputs:
    """What the samplers of an evaluation start from and are measured against, the flow from that noise included.

    Args:
        source: the data.
        teacher: the velocity of the flow, or `None`.
        settings: numbers of samples and points.
        seed: of noise, labels and data.
        device: of the teacher, and where features of images are computed.
        watch: progress callback.
    """
    number, source = max(settings.samples, settings.points), source.to("cpu")
    x0 = torch.randn(number, *source.shape, generator=generator(seed, NOISE_STREAM))
    if isinstance(source, (Images, Latents)) and source.units.pictures:
        return _image_inputs(source, x0[: settings.samples], settings, device, watch)
    if source.units.condition_dim is not None or source.units.features:
        cond = source.conditions(number)  # of held-out rows, which samples are compared with
    else:
        cond = None if source.classes is None else source.sample(number, generator(seed, LABEL_STREAM))[1]
    data, data_cond = source.reference(settings.points, generator(seed, DATA_STREAM))
    starts, labels = x0[: settings.points], on_each(cond, lambda value: value[: settings.points])
    flow = None
    if teacher is not None or isinstance(source, Board):
        with torch.inference_mode(), suppress(Unsolvable):
            labels = on_each(labels, lambda value: value.to(device))
            flow = true_flow(source, teacher, starts.to(device), torch.ones(len(starts), device=device), labels).cpu()
    floor = metrics.kl_floor(source.exact, settings.samples, seed) if isinstance(source, Board) else None
    cond = on_each(cond, lambda value: value[: settings.samples])
    most = most_points(source, min(settings.points, settings.samples))
    floors = real_distances(source, most, seed, watch) if isinstance(source, Points) else {}
    numbers = label_and_numbers(data_cond)[1]
    return EvaluationInputs(x0[: settings.samples], cond, data, flow, floor, data_numbers=numbers, floors=floors)


def _image_inputs(
    source: Images | Latents, x0: Tensor, settings: Evaluation, device: torch.device | str, watch: Watch
) -> EvaluationInputs:
    """`evaluation_inputs` of images: every class equally often as label; features of images spread over the data."""
    assert isinstance(settings, ImageEvaluation)
    cond = source.conditions(len(x0))
    features, device = open_features(settings.features), torch.device(device)
    if isinstance(source, Latents):
        rows = spread(len(source), settings.reference_images or settings.samples)
        found = _of_latents(source, rows, settings.points, features, device, watch)
        return EvaluationInputs(x0, cond, source.x[rows], images=ImageInputs(features, found, device))
    real = source.real
    chosen = spread(len(real), settings.reference_images or len(real))
    pixels, others = real[chosen], _other_images(source, chosen, len(x0))
    options = {"batch": _feature_batch(device), "device": device, "watch": watch}
    found, floor = reference(features, pixels, keep=settings.points, **options), None
    if others is not None:
        floor = frechet_distance(reference(features, others, keep=1, **options).statistics, found.statistics)
    return EvaluationInputs(x0, cond, pixels, images=ImageInputs(features, found, device, floor=floor))


def _other_images(source: Images, chosen: Tensor, number: int) -> Tensor | None:
    """`number` real images that are not among those chosen of `source.real`; `None` where there are too few."""
    left = torch.ones(len(source.real), dtype=torch.bool).index_fill_(0, chosen, False)
    for pool in (source.real[left], *([] if source.held_out is None else [source.pixels])):
        if len(pool) >= number:
            return pool[spread(len(pool), number)]
    return None


def _of_latents(
    source: Latents, rows: Tensor, keep: int, features: Features, device: torch.device, watch: Watch
) -> Reference:
    """The features of the pictures of latents, decoded a few at a time."""
    parts = []
    for part in rows.split(DECODED_AT_ONCE):
        parts.append(extract(features, source.pictures(part), batch=_feature_batch(device), device=device))
        watch("decoding the data", len(parts) * DECODED_AT_ONCE / max(len(rows), DECODED_AT_ONCE))
    x = torch.cat(parts)
    return Reference(Statistics.of(x, features.name), x[spread(len(x), keep)].clone())


def _feature_batch(device: torch.device) -> int:
    """The number of images at a time with which a feature network is quickest."""
    return 32 if device.type == "cpu" else 256


def true_flow(source: Source, teacher: Field | None, x0: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
    """X_{0,t}(x0): of the exact flow where it is known, else of the teacher's, solved to 1e-6; `(B, dim)`."""
    zero = torch.zeros_like(t)
    if isinstance(source, Board):
        x, s, r = (value.cpu().double() for value in (x0, zero, t))  # some devices have no float64
        return source.exact.flow_map(x, s, r).to(x0)
    assert teacher is not None
    return SolverFlow(teacher, rtol=1e-6, atol=1e-6)(x0, zero, t, cond)


def measure(
    samples: Samples,
    source: Source,
    inputs: EvaluationInputs,
    settings: Evaluation,
    *,
    along_flow: bool = True,
    becomes_reference: bool = False,
    watch: Watch = quiet,
) -> tuple[Row, EvaluationInputs]:
    """The metrics of one sampler, for its row of metrics.json.

    Lost samples are counted, and measured as if they lay at `MAX_ABS`; where all are lost there are no metrics.

    Args:
        samples: from the noise and labels of `inputs`.
        source: the data.
        inputs: what to measure against.
        settings: how many points.
        along_flow: whether a perfect sampler would end where the flow ends, because it adds no noise on the way.
        becomes_reference: whether the next samplers are measured against these samples too, as the teacher's flow: of
            images, and of the checkerboard.
        watch: progress callback.

    Returns:
        The metrics, and what to measure the next sampler against.
    """
    row: Row = {"nfe": samples.nfe, "samples": len(samples.x)}
    lost = ~(samples.x.abs() <= MAX_ABS).flatten(1).all(1)
    if bool(lost.any()):
        row["lost"] = int(lost.sum())
        if bool(lost.all()):
            return row | {"seconds": samples.seconds}, inputs
    x = samples.x.nan_to_num(MAX_ABS).clamp(-MAX_ABS, MAX_ABS)
    if (images := inputs.images) is None:
        values = _measure_points(x, source, inputs, settings, along_flow, watch)
        if becomes_reference and isinstance(source, Board):
            inputs = replace(inputs, teacher=x[: settings.points])
    else:
        options = {"batch": _feature_batch(images.device), "device": images.device, "watch": watch}
        parts = x.split(DECODED_AT_ONCE) if source.units.vae else (x,)
        features = torch.cat([extract(images.features, source.units.to_pixels(part), **options) for part in parts])
        values = dict(image_metrics(features, images.real, images.features, images.teacher, watch=watch))
        values |= {} if images.floor is None else {"fd_floor": images.floor}
        if along_flow and inputs.flow is not None:
            values["pixel_error"] = metrics.map_error(x[: len(inputs.flow)], inputs.flow) / source.dim
        if becomes_reference:
            teacher = Statistics.of(features, images.features.name)
            inputs = replace(inputs, flow=x[: settings.points], images=replace(images, teacher=teacher))
    return row | values | {"seconds": samples.seconds}, inputs


def _measure_points(
    x: Tensor, source: Source, inputs: EvaluationInputs, settings: Evaluation, along_flow: bool, watch: Watch
) -> Row:
    """The metrics of points: all of them in the KL, the first ones in the distances."""
    row: Row = {}
    number = most_points(source, settings.points)
    x, data = source.units.to_measure(x), source.units.to_measure(inputs.data[:number])
    if isinstance(source, Board):
        row["kl"] = metrics.kl(source.exact.cell_masses(50), x)
        row |= {"kl_floor": inputs.floor} if len(x) == len(inputs.x0) else {}
        if len(x) >= SAMPLES_OF_KL_IN_SD:
            row["kl_64000"] = metrics.kl(source.exact.cell_masses(50), x[:SAMPLES_OF_KL_IN_SD])
    numbers = None if inputs.data_numbers is None else label_and_numbers(inputs.cond)[1]
    of_samples, of_data = with_numbers(x[:number], numbers), with_numbers(data, inputs.data_numbers)
    row |= distances(of_samples, of_data, energy=not isinstance(source, Board), watch=watch)
    row |= inputs.floors
    if along_flow and inputs.flow is not None:
        row["map_error"] = metrics.map_error(x[:number], source.units.to_measure(inputs.flow[:number])[: len(x)])
        if isinstance(source, Board):
            row |= _in_other_cells(source, x[:number], inputs)
    return row


def _in_other_cells(source: Board, x: Tensor, inputs: EvaluationInputs) -> Row:
    """The shares of points in another cell than those of the exact flow, and of the teacher's ODE, from their noise."""
    flows = {"other_cell": inputs.flow, "other_cell_teacher": inputs.teacher}
    found = {name: flow[: len(x)] for name, flow in flows.items() if flow is not None}
    return {name: metrics.share_in_other_cell(source.exact, x[: len(flow)], flow) for name, flow in found.items()}
