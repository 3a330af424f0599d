"""Export of a map with its sampler into one file, ONNX or torch's `.pt2`, for programs without flowmaps.

    noise (B, *shape), fresh_noise, condition, guidance_weight  ->  N jumps  ->  samples (B, ...)
    x (B, *shape), s (B,), t (B,), condition, guidance_weight   ->  X_{s,t}(x)  =  samples (B, *shape)

The batch size B is free, the shape of a sample fixed. Before a file is written it is run at two batch sizes and
compared with the map on the same inputs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Units
from ..maps import FlowMap, Preconditioned
from ..nn import MLP
from ..nn.magnitude import fix_weights
from ..nn.network import Network
from ..samplers import GammaSampling, Jump, MultistepConsistency
from ..shapes import Condition, GuidedCondition, condition_of, on_each
from ..system.files import write_atomically
from . import onnx_file
from .units import InUnits, described

SUFFIXES = (".onnx", ".pt2")
TRACED_ROWS = 3
"""Rows of the batch that a sampler is traced at; 0 and 1 would become constants."""
MANY_ROWS = 64
"""Rows at which an ONNX file is traced if the network treats small batches apart, as those of diffusers do."""
MOST_ROWS = 2**16
"""Rows up to which such a trace holds for torch; the file has no bound."""
MEASURED_NUMBERS = 2**16
"""Numbers in the samples whose error is measured, if these are from 4 to 256 rows."""
MAX_ERROR = 1e-3
"""Mean error of float32 samples, over their standard deviation, beyond which a file is refused."""

Sampler = Jump | MultistepConsistency | GammaSampling


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far its samples are from those of the map in float32, from the same inputs.

    Attributes:
        path: the file.
        inputs: names of its inputs, in order.
        metadata: what is written in it, by name.
        largest, mean: absolute errors, in the units of the samples.
        spread: standard deviation of the samples, to compare with.
    """

    path: Path
    inputs: tuple[str, ...]
    metadata: dict[str, str]
    largest: float
    mean: float
    spread: float

    def __str__(self) -> str:
        size = self.path.stat().st_size / 2**20
        whole = self.metadata["sampler"] == "none"
        steps = self.metadata["steps"]
        what, given = ("the map", "inputs") if whole else (f"{steps} step{'s' if steps != 1 else ''}", "noise")
        return (
            f"{self.path}: {what} in {self.metadata['precision']}, {size:.2f} MiB; inputs "
            f"{', '.join(self.inputs)}; error against the map in float32 on the same {given}: largest "
            f"{self.largest:.2g}, mean {self.mean:.2g} (samples have standard deviation {self.spread:.3g})"
        )


def export(
    flow_map: FlowMap,
    steps: int | Sampler | None = 4,
    path: str | Path = "map.onnx",
    *,
    shape: tuple[int, ...] | None = None,
    cond: Condition = None,
    units: Units | None = None,
    precision: onnx_file.Precision = "float32",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a map with its sampler to a file.

    Args:
        flow_map: the map; it is not changed.
        steps: number of equal jumps from noise to data, or a sampler of `flowmaps.samplers`; one that adds noise on the
            way takes it as the input `fresh_noise`, `(rounds, B, *shape)`. `None` for the map itself, X_{s,t}(x), whose
            inputs are `x`, `s` and `t`: a sampler of your own then calls the file once a step.
        path: the file, `.onnx` or `.pt2`.
        shape: of a sample; that of the network unless given.
        cond: an example of the condition, any tree of tensors, for a network of your own; those of flowmaps' networks
            are known. Each tensor becomes an input, `condition`, or `condition.NAME` of a dictionary.
        units: of the data, to write samples in; the network's coordinates unless given.
        precision: `float32`, or by onnxruntime's tools `float16` (weights and computation) or `int8` (weights, and the
            inputs of matrix products, by dynamic quantisation).
        metadata: further entries, such as `{"method": "lmd"}`.
        overwrite: replace a file that is there.

    Returns:
        What was written, with its error against the map.

    Raises:
        ValueError: an option is out of range, a package is missing, the network cannot be traced or has a fixed batch
            size, or the samples of the file differ from those of the map; nothing is written then.
    """
    path = Path(path)
    _check_path(path, precision, overwrite)
    sampler = Jump(steps) if isinstance(steps, int) else steps
    if sampler is None and units is not None:
        raise ValueError("the map itself, steps=None, is of the network's coordinates: leave units out.")
    network = _network(flow_map)
    example = _example(network) if cond is None else cond
    shape = _shape(flow_map, network, shape)
    plain = _plain_copy(flow_map)
    if precision != "float32" and _type_of(plain) is torch.float64:
        raise ValueError(f"{precision} is made of a map in float32, got float64: pass flow_map.float().")
    sampled = SamplesOfNoise(plain, sampler, example, units)
    traced = copy.deepcopy(sampled)
    fix_weights(traced)
    program = _traced(traced, lambda number: sampled.inputs(number, shape, example), path.suffix == ".onnx")
    about = _metadata(sampled, sampler, shape, precision, metadata or {})
    rows = max(4, min(256, MEASURED_NUMBERS // torch.Size(shape).numel()))
    tried = [sampled.inputs(number, shape, example) for number in (1, rows)]
    if path.suffix == ".pt2":
        run = program.module()
        errors = _errors(sampled, lambda inputs: run(*inputs), tried)
        _check_errors(errors, precision)
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own, on weights that are views of one tensor
            torch.export.save(program, content, extra_files={"flowmaps.json": json.dumps(about)})
        write_atomically(path, content.getvalue())
    else:
        file = onnx_file.OnnxFile(program, sampled.names, about, precision)
        errors = _errors(sampled, file.run, tried)
        _check_errors(errors, precision)
        file.write(path)
    return Exported(path, sampled.names, about, *errors)


class SamplesOfNoise(nn.Module):
    """A map and its sampler as a function of tensors alone, in the order of `names`.

    Args:
        flow_map: the map.
        sampler: the sampler; `None` for one jump, from times `s` to times `t` that are inputs.
        cond: an example of the condition.
        units: of the samples; the network's coordinates if `None`.

    Attributes:
        names: of the inputs.
    """

    def __init__(self, flow_map: FlowMap, sampler: Sampler | None, cond: Condition, units: Units | None) -> None:
        super().__init__()
        self.flow_map, self.sampler, self.cond = flow_map, sampler, cond
        self.in_units = None if units is None else InUnits(units)
        self.rounds = 0 if sampler is None else _rounds(sampler)
        fresh = ("fresh_noise",) if self.rounds else ()
        first = ("x", "s", "t") if sampler is None else ("noise", *fresh)
        self.names = (*first, *_leaf_names(cond, "condition"))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Samples `(B, ...)` of noise `(B, *shape)`, fresh noise if the sampler adds any, and a condition.

        Without a sampler, points at times t of points at times s, the times `(B,)`, and a condition.
        """
        x0, rest = inputs[0], iter(inputs[1:])
        if self.sampler is None:
            return self.flow_map(x0, next(rest), next(rest), on_each(self.cond, lambda _: next(rest)))
        noise = {"noise": next(rest)} if self.rounds else {}
        cond = on_each(self.cond, lambda _: next(rest))
        cond = cond if self.in_units is None else self.in_units.condition(cond)
        x = self.sampler(self.flow_map, x0, cond=cond, **noise)
        return x if self.in_units is None else self.in_units(x)

    def inputs(self, number: int, shape: tuple[int, ...], cond: Condition) -> tuple[Tensor, ...]:
        """Inputs of a number of rows, with noise of a fixed seed and the condition's rows in turn."""
        kind = _type_of(self.flow_map)
        generator = torch.Generator().manual_seed(0)
        sizes = [(number, *shape), *([(self.rounds, number, *shape)] if self.rounds else [])]
        noise = [torch.randn(size, generator=generator, dtype=kind) for size in sizes]
        if self.sampler is None:
            noise += torch.rand(2, number, generator=generator, dtype=kind).unbind()
        leaves: list[Tensor] = []
        cond = cond if self.in_units is None else self.in_units.condition_in_units(cond)
        on_each(cond, lambda value: leaves.append(value.cpu()[torch.arange(number) % value.shape[0]]))
        in_units = self.in_units is not None and self.in_units.units.conditions  # in float64, whose digits are needed
        floats = [leaf if in_units or not leaf.is_floating_point() else leaf.to(kind) for leaf in leaves]
        return (*noise, *floats)


def _check_path(path: Path, precision: str, overwrite: bool) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"an exported map is a file {' or '.join(SUFFIXES)}, got {path}.")
    if precision not in onnx_file.PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(onnx_file.PRECISIONS)}, got {precision!r}.")
    if precision != "float32" and path.suffix != ".onnx":
        raise ValueError(f"{precision} is made by onnxruntime, of .onnx files alone: take a path .onnx, got {path}.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} already exists: choose another path, or pass overwrite=True.")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}: make it first.")
    if path.suffix == ".onnx":
        onnx_file.check_installed()


def _network(flow_map: nn.Module) -> MLP | Network | None:
    """The network of flowmaps' own inside a map, or `None`."""
    module: Any = flow_map
    while isinstance(module, (FlowMap, Preconditioned)) or hasattr(module, "_orig_mod"):
        module = next(
            (getattr(module, name) for name in ("_orig_mod", "net", "flow_map") if hasattr(module, name)), None
        )
    return module if isinstance(module, (MLP, Network)) else None


def _example(network: MLP | Network | None) -> Condition:
    """The conditions and guidance weights that a network of flowmaps' own takes: a row a class, the last for none."""
    if network is None:
        return None
    classes, dim = network.arguments["classes"], network.arguments["condition_dim"]
    rows = 2 if classes is None else classes + 1
    numbers = None if dim is None else torch.linspace(-1, 1, rows)[:, None].repeat(1, dim)
    if numbers is not None:
        numbers[-1] = math.nan
    cond = condition_of(None if classes is None else torch.arange(rows), numbers)
    if not network.arguments["guidance"]:
        return cond
    return GuidedCondition(cond, torch.linspace(1, 3, 1 if cond is None else rows))


def _shape(flow_map: FlowMap, network: MLP | Network | None, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is not None:
        return tuple(shape)
    if network is None:
        raise ValueError(
            f"the shape of a sample cannot be told from this {type(flow_map).__name__}: pass shape=..., such as "
            "shape=(3, 32, 32)."
        )
    return (network.dim,) if isinstance(network, MLP) else network.shape


def _plain_copy(flow_map: FlowMap) -> FlowMap:
    """A copy of a map on the CPU in evaluation mode, in float32 at least, without compilation."""
    made = copy.deepcopy(flow_map).cpu().eval().requires_grad_(False)
    for module in list(made.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, "_orig_mod"):  # of torch.compile
                setattr(module, name, child._orig_mod)
    return made.float() if _type_of(made) in (torch.float16, torch.bfloat16) else made


def _type_of(module: nn.Module) -> torch.dtype:
    return next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)


def _rounds(sampler: Sampler) -> int:
    """How many tensors of fresh noise a sampler takes."""
    if isinstance(sampler, MultistepConsistency):
        return (len(sampler.grid) - 1) * (2 if sampler.interpolant.noisy else 1)
    if isinstance(sampler, GammaSampling):
        return len(sampler.times) - 2 if sampler.gamma > 0 else 0
    if isinstance(sampler, Jump):
        return 0
    raise ValueError(f"steps is a number, or a sampler of flowmaps.samplers, got a {type(sampler).__name__}.")


def _leaf_names(cond: Condition, name: str) -> list[str]:
    """Names of the tensors of a condition, in the order of `on_each`."""
    if cond is None or isinstance(cond, Tensor):
        return [] if cond is None else [name]
    if isinstance(cond, GuidedCondition):
        return [*_leaf_names(cond.cond, name), "guidance_weight"]
    if isinstance(cond, Mapping):
        parts = list(cond.items())
    elif isinstance(cond, (tuple, list)):
        parts = list(zip(getattr(cond, "_fields", range(len(cond))), cond, strict=True))
    elif dataclasses.is_dataclass(cond):
        parts = [(field.name, getattr(cond, field.name)) for field in dataclasses.fields(cond) if field.init]
    else:
        on_each(cond, lambda value: value)  # which refuses it
        parts = []
    return [inner for key, value in parts for inner in _leaf_names(value, f"{name}.{key}")]


def _traced(
    sampled: SamplesOfNoise, inputs: Callable[[int], tuple[Tensor, ...]], may_differ: bool
) -> torch.export.ExportedProgram:
    """The sampler as a graph of torch, of any batch size.

    Args:
        sampled: the sampler.
        inputs: its inputs, of a number of rows.
        may_differ: trace a network that treats small batches apart as it treats large ones. The graph has one branch
            then, which must be compared with the network at small batches.

    Raises:
        ValueError: the network cannot be traced, or not with a free batch size.
    """
    from torch._dynamo.exc import UserError, UserErrorType

    def trace(rows: int, least: int, most: int | None = None) -> torch.export.ExportedProgram:
        batch = torch.export.Dim("batch", min=least, max=most)
        axes = tuple({1 if name == "fresh_noise" else 0: batch} for name in sampled.names)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own
            return torch.export.export(sampled, inputs(rows), dynamic_shapes={"inputs": axes})

    try:
        return trace(TRACED_ROWS, 1)
    except Exception as error:  # of whatever kind: the network is its user's
        fixed = isinstance(error, UserError) and error.error_type is UserErrorType.CONSTRAINT_VIOLATION
        if fixed and may_differ:
            with contextlib.suppress(Exception):  # the first error says more
                return trace(MANY_ROWS, MANY_ROWS, MOST_ROWS)
        advice = "len(x) and int(...) in a network make its batch size a constant, x.shape[0] does not"
        if fixed and not may_differ:
            advice += "; a network that treats small batches apart, as a UNet of diffusers does, is exported as .onnx"
        what = "the batch size is fixed in this network" if fixed else "torch.export cannot trace it"
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"the map cannot be exported, {what}: {advice}; torch says: {words}") from error


def _metadata(
    sampled: SamplesOfNoise, sampler: Sampler | None, shape: tuple[int, ...], precision: str, more: Mapping[str, Any]
) -> dict[str, str]:
    """What a file says of itself: text as it is, anything else as JSON."""
    from .. import __version__

    units = sampled.in_units
    coordinates = "in the network's coordinates, (batch, " + ", ".join(map(str, shape)) + ")"
    about = {
        "flowmaps": __version__,
        **_about_sampler(sampler),
        "shape": list(shape),
        "samples": coordinates if units is None else units.about(),
        "precision": precision,
        **({} if units is None else described(units.units)),
        **more,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}


def _about_sampler(sampler: Sampler | None) -> dict[str, Any]:
    """The name of a sampler, its number of steps and its times; of one jump, that its times are inputs."""
    if sampler is None:
        return {"sampler": "none", "steps": 1, "times": "the inputs s and t"}
    times = sampler.grid if isinstance(sampler, MultistepConsistency) else sampler.times
    number = len(times) if isinstance(sampler, MultistepConsistency) else len(times) - 1
    return {"sampler": type(sampler).__name__, "steps": number, "times": list(times)}


def _errors(sampled: SamplesOfNoise, run: Any, tried: list[tuple[Tensor, ...]]) -> tuple[float, float, float]:
    """The largest and the mean error of a file's samples, and the deviation of the map's."""
    wanted = [sampled(*inputs).double().flatten() for inputs in tried]
    errors = torch.cat(
        [(run(inputs).double().flatten() - want).abs() for inputs, want in zip(tried, wanted, strict=True)]
    )
    return float(errors.max()), float(errors.mean()), float(torch.cat(wanted).std())


def _check_errors(errors: tuple[float, float, float], precision: str) -> None:
    largest, mean, spread = errors
    allowed = MAX_ERROR if precision == "float32" else 1.0
    if not mean <= allowed * max(spread, 1e-6):
        raise ValueError(
            f"the samples of the file are not those of the map: mean error {mean:.3g}, largest {largest:.3g}, where "
            f"samples have standard deviation {spread:.3g}: "
            + ("take another precision." if precision != "float32" else "the network computes otherwise when traced.")
        )
