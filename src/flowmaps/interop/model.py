"""A model of another library as a teacher, and as a student that starts from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..couplings import Coupling, Independent
from ..interpolants import Interpolant, Linear
from ..losses import Weight
from ..maps import AverageVelocity, FlowMap
from ..nn.two_times import TwoTimes
from ..objectives import VelocityMatching
from ..shapes import Batch, Condition, Time, like
from ..storage import models
from ..times import Diagonal, Times, Triangle
from ..training.fit import fit
from ..velocities import FromTeacher
from .conversion import MAX_GAIN, Conversion, Prediction

MIN_TIME_LEFT = 1e-3
"""The least 1 - t that a change of predicted data is divided by."""


def _unchanged(value: Any) -> Any:
    return value


class ConvertedVelocity(nn.Module):
    """The velocity of the linear path by somebody's network: a teacher `(x, t, cond=None) -> like x`.

    Args:
        net: the network.
        conversion: how it is called.
    """

    def __init__(self, net: nn.Module, conversion: Conversion) -> None:
        super().__init__()
        self.net, self.conversion = net, conversion

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """The velocity on the linear path, `(B, *shape)`."""
        return self.conversion(self.net, x, t, cond)


class ClippedVelocity(nn.Module):
    """A teacher whose predicted data, x + (1 - t) b, are clipped, as by `clip_sample` of a scheduler of `diffusers`.

    Args:
        net: b of the linear path, `(x, t, cond=None) -> like x`.
        limit: of the absolute value of a number of the data.
    """

    def __init__(self, net: nn.Module, limit: float) -> None:
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """The velocity to the clipped data, `(B, *shape)`."""
        b, left = self.net(x, t, cond), like(1 - t, x)
        data = x + left * b
        return b + (data.clamp(-self.limit, self.limit) - data) / left.clamp_min(MIN_TIME_LEFT)


class VelocityNetwork(nn.Module):
    """A network of `(x, s, t, cond)` that returns the velocity at s, whatever t is.

    Args:
        net: the velocity, `(x, t, cond=None) -> like x`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """The velocity at times s, whatever t is, `(B, *shape)`."""
        return self.net(x, s, cond)


@dataclass
class Model:
    """A model of another library, on the linear path of this one: t = 0 is noise N(0, I), t = 1 data.

    Attributes:
        teacher: the model's velocity, `(x, t, cond=None) -> like x`.
        student: a flow map to train, made of a copy of the network with a second time.
        exact: whether the student's velocity is the teacher's from the start, so that it needs no `warm_start`.
        low, high: times between which the model was trained; beyond them it is asked at the nearest.
        interpolant, coupling, times: of an objective.
        condition: makes what the network is conditioned on of what a user gives, such as a label or a prompt.
        decode: makes data of samples, such as images of latents.
        shape: of a sample, where the model says it.
        about: the model in words: its network, prediction, schedule and condition.
    """

    teacher: nn.Module
    student: FlowMap
    exact: bool
    low: float
    high: float
    interpolant: Interpolant = field(default_factory=Linear)
    coupling: Coupling = field(default_factory=Independent)
    times: Times = field(default_factory=Triangle)
    condition: Callable[[Any], Condition] = _unchanged
    decode: Callable[[Tensor], Tensor] = _unchanged
    shape: tuple[int, ...] | None = None
    about: str = ""

    @property
    def weight(self) -> Weight | None:
        """A weight w_t for losses against the teacher's velocity at t, as that of `lmd`; `None` for w = 1."""
        return weight_of(self.teacher)

    def warm_start(self, data: Any, steps: int = 1_000, **settings: Any) -> FlowMap:
        """Regress the student's velocity on the teacher's at points of the path; `exact` students do not need it.

            E w_t |u_{t,t}(I_t) - b_t(I_t)|^2

        Args:
            data: as of `fm.fit`.
            steps: optimiser steps.
            settings: further ones of `fm.fit`, such as `batch`, `learning_rate` and `folder`.

        Returns:
            The student.
        """
        objective = VelocityMatching(
            self.student,
            self.interpolant,
            FromTeacher(copy.deepcopy(self.teacher)),
            times=Diagonal(),
            coupling=self.coupling,
            weight=self.weight,
        )
        self.student = fit(objective, data, steps=steps, **settings)
        return self.student

    def save(self, folder: str | Path) -> Path:
        """Write the student.

        `fm.load(folder)` reads it if it can rebuild the network; else `fm.load(folder, net=model.student.net)`, and for
        a `call=` of your own `fm.load(folder, classes=[call])`.
        """
        return models.save(self.student, folder, interpolant=self.interpolant)

    def to_pipeline(self) -> Any:
        """The student as a pipeline of `diffusers`, with the VAE of the model; see `to_pipeline`.

        Raises:
            ValueError: the model does not know the shape of its samples.
        """
        if self.shape is None:
            raise ValueError("the model does not say the shape of its samples: fm.interop.to_pipeline(student, shape).")
        return to_pipeline(self.student, self.shape, getattr(self.decode, "vae", None))


def weight_of(teacher: nn.Module) -> Weight | None:
    """The weight of losses against a teacher's velocity: `PerGain` where that comes from noise or data.

    Data that are clipped bound the errors of predicted noise, and not the factor 1 / (1 - t) of predicted data.

    Args:
        teacher: of a `Model`, or a map round it.
    """
    conversions = [module for module in teacher.modules() if isinstance(module, Conversion)]
    if len(conversions) != 1:
        return None
    clipped = any(isinstance(module, ClippedVelocity) for module in teacher.modules())
    return None if clipped and conversions[0].prediction == "epsilon" else conversions[0].weight


def to_pipeline(flow_map: FlowMap, shape: tuple[int, ...], vae: Any = None) -> Any:
    """A flow map as a pipeline of `diffusers` 0.42 or later, whose loop samples as `fm.samplers.Jump` does.

    `save_pretrained` writes it in the layout of `diffusers`, which
    `flowmaps.interop.to_diffusers.FlowMapPipeline.from_pretrained` reads.

    Args:
        flow_map: the map.
        shape: of a sample, such as (3, 32, 32).
        vae: of `diffusers`, for samples that are latents.

    Raises:
        ValueError: `diffusers` is missing or older, or the map is of a class that is not saved.
    """
    try:
        from .to_diffusers import pipeline_of
    except ImportError as error:
        raise ValueError(f"a pipeline needs diffusers 0.42: pip install 'flowmaps[diffusers]' ({error}).") from error
    return pipeline_of(flow_map, tuple(shape), vae)


def model(
    net: nn.Module,
    conversion: Conversion,
    *,
    embedding: str | tuple[str, ...] | None = None,
    lora: int | None = None,
    **options: Any,
) -> Model:
    """The teacher and the student that a network and its conversion make.

    A network whose output is multiplied by a large factor on its way to a velocity is a bad student, because that
    factor multiplies whatever the second time adds: then the student's output is the velocity itself, to be learned by
    `warm_start`.

    Args:
        net: the network.
        conversion: of it.
        embedding, lora: as of `TwoTimes`.
        options: further fields of `Model`.
    """
    exact = conversion.gain <= MAX_GAIN
    raw: Prediction = "reverse velocity" if conversion.prediction == "epsilon" else "velocity"  # b = E1 - E0
    call = conversion if exact else Conversion(raw, conversion.clock, conversion.call)
    student = AverageVelocity(TwoTimes(net, embedding, call, lora=lora))
    teacher = ConvertedVelocity(net, conversion)
    return Model(teacher, student, exact, conversion.low, conversion.high, **options)
