"""Other call signatures of a teacher, made into `fn(x, t, cond=None)`; `velocities.FromTeacher` detaches its weights.

`flowmaps.teacher`, which is in velocities.py, takes these forms:

teacher(fn)                          fn(x, t) or fn(x, t, cond)
teacher(fn, order="tx")              fn(t, x) or fn(t, x, cond), as solvers of ODEs have it
teacher(fn, order="keywords")        fn(x=x, t=t, cond=cond), under names of its own with names=
teacher(fn, modules=[net])           the networks that it uses, where they are not found
teacher(fn, time="column")           times of shape (B, 1); "number" for one point and one number at a time
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .maps import FlowMap
from .modules import accepts, named
from .shapes import Batch, Condition, Time, on_each

Order = Literal["xt", "tx", "keywords"]
TimeShape = Literal["row", "column", "number"]
FORM = "(x, t, cond=None) -> like x"


def check_teacher(fn: Any) -> None:
    """Refuse what is no field `(x, t, cond=None) -> like x`, where its signature tells.

    Raises:
        ValueError: it is no callable, a map or a network of two times, or takes other arguments.
    """
    if not callable(fn):
        raise ValueError(f"a teacher must be a callable {FORM}, got {type(fn).__name__}.")
    if isinstance(fn, FlowMap):
        raise ValueError(f"a teacher must be a callable {FORM}, got a map: pass its velocity, flow_map.velocity.")
    if _is_of_two_times(fn):
        raise ValueError(
            f"a teacher must be a callable {FORM}, got {named(fn)}, a network of two times: pass its velocity, "
            "fm.maps.AverageVelocity(net).velocity."
        )
    if not accepts(fn, 3):
        raise ValueError(
            f"a teacher must take {FORM}, got {named(fn)}: write lambda x, t, cond=None: ..., or say how it is called, "
            'teacher=fm.teacher(fn, order="xt").'
        )


def _is_of_two_times(fn: Any) -> bool:
    try:
        names = list(inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn).parameters)
    except (TypeError, ValueError):
        return False
    return names[1:3] == ["s", "t"]


@dataclass(frozen=True)
class Adapted:
    """A callable of another form as a field `(x, t, cond=None) -> like x`; see `flowmaps.teacher`.

    Args:
        fn: the callable.
        order: of its arguments.
        names: of x, t and cond, for `order="keywords"`.
        time: shape of the times.
    """

    fn: Callable[..., Tensor]
    order: Order = "xt"
    names: Mapping[str, str] = field(default_factory=dict)
    time: TimeShape = "row"
    takes_condition: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise ValueError(f"a teacher must be a callable, got {type(self.fn).__name__}.")
        for name, value, known in (("order", self.order, get_args(Order)), ("time", self.time, get_args(TimeShape))):
            if value not in known:
                raise ValueError(f"{name} of a teacher is one of {', '.join(known)}, got {value!r}.")
        if self.names and (self.order != "keywords" or not self.names.keys() <= {"x", "t", "cond"}):
            raise ValueError(
                f'names of a teacher are for order="keywords", of x, t and cond, got {dict(self.names)}: such as '
                'names={"x": "sample", "t": "timestep"}.'
            )
        object.__setattr__(self, "takes_condition", self.order == "keywords" or accepts(self.fn, 3))
        if not self.takes_condition and not accepts(self.fn, 2):
            raise ValueError(
                f"a teacher takes two arguments, or three with a condition, got {named(self.fn)}: write "
                "fm.teacher(lambda x, t, cond=None: ...)."
            )

    def __call__(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """The velocity, `(B, *shape)`."""
        if self.time == "number":
            return self._row_by_row(x, t, cond)
        return self._called(x, t[:, None] if self.time == "column" else t, cond)

    def _called(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        if self.order == "keywords":
            given = {"x": x, "t": t, **({} if cond is None else {"cond": cond})}
            return self.fn(**{self.names.get(name, name): value for name, value in given.items()})
        pair = (x, t) if self.order == "xt" else (t, x)
        if self.takes_condition:
            return self.fn(*pair, cond)
        if cond is not None:
            raise ValueError(
                f"the teacher {named(self.fn)} takes no condition, and one was given: write "
                "fm.teacher(lambda x, t, cond=None: ...) that uses it, or leaves it out."
            )
        return self.fn(*pair)

    def _row_by_row(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Each row as a batch of one with a time that is a number."""

        def one(x: Tensor, t: Tensor, cond: Condition) -> Tensor:
            return self._called(x[None], t, on_each(cond, lambda value: value[None]))[0]

        return torch.vmap(one, in_dims=(0, 0, None if cond is None else 0), randomness="different")(x, t, cond)
