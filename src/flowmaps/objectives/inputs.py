"""What a caller hands to an objective: rows of data, their partners and conditions, checked in the caller's words,
and repeated where a row has several draws.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..maps import FlowMap
from ..modules import accepts, named
from ..nn import MLP, Network
from ..nn.embeddings import label_rows
from ..shapes import Condition, check_condition, label_and_numbers, label_of, on_each


def check_map(flow_map: Any) -> None:
    """Refuse what is no flow map, such as its network.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(flow_map, FlowMap):
        raise ValueError(
            f"an objective trains a flow map, got {type(flow_map).__name__}: pass fm.maps.AverageVelocity(net) for a "
            "network net(x, s, t, cond=None)."
        )


def check_draws(draws: Any) -> None:
    """Refuse a number of draws that is none.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    if type(draws) is not int or draws < 1:
        raise ValueError(f"draws must be a whole number of at least 1, got {draws!r}.")


def repeated(rows: Condition, times: int) -> Condition:
    """Rows of data or conditions, `(B, ...)`, so many times one after the other, `(times B, ...)`; `None` stays."""
    return rows if times == 1 else on_each(rows, lambda value: value.repeat(times, *[1] * (value.ndim - 1)))


def copy_of(rows: Condition, number: int, length: int) -> Condition:
    """One of the copies that `repeated` made of `length` rows, counted from 0."""
    return on_each(rows, lambda value: value[number * length : (number + 1) * length])


def check_inputs(flow_map: FlowMap, x1: Any, x0: Any, cond: Condition) -> None:
    """Refuse rows, partners and conditions that the map cannot take.

    Raises:
        ValueError: they are no tensors, or of another shape or type.
    """
    if not isinstance(x1, Tensor):
        raise ValueError(f"x1 must be a tensor (B, *shape) of floating-point numbers, got {_advice(x1)}.")
    if x1.ndim < 2 or not x1.dtype.is_floating_point or not len(x1):
        raise ValueError(f"x1 must be a floating-point batch (B, *shape), got {x1.dtype} {tuple(x1.shape)}.")
    if x0 is not None and (not isinstance(x0, Tensor) or x0.shape != x1.shape):
        got = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
        raise ValueError(f"x0 and x1 must have one shape, got {got} and {tuple(x1.shape)}.")
    dtype = next((value.dtype for value in flow_map.parameters() if value.is_floating_point()), x1.dtype)
    if x1.dtype != dtype:
        raise ValueError(f"x1 is {x1.dtype}, the weights of the map {dtype}: pass x1.to({dtype}).")
    check_condition(cond, x1)
    _check_network(getattr(flow_map, "net", None), x1, cond)


def _advice(x1: Any) -> str:
    """What was got in the place of a tensor, and what to write."""
    if isinstance(x1, (list, tuple)):
        kinds = ", ".join(type(part).__name__ for part in x1[:3])
        return f"a {type(x1).__name__} of {kinds}: call objective(x1, cond=labels) for a pair"
    kind = type(x1)
    if kind.__module__.startswith("numpy"):
        return f"a {kind.__module__}.{kind.__name__}: pass torch.from_numpy(x1).float()"
    return f"a {kind.__name__}: pass torch.as_tensor(x1)"


def _check_network(net: Any, x1: Tensor, cond: Condition) -> None:
    """Refuse a network of other arguments, and labels that a network of flowmaps' own does not take."""
    net = getattr(net, "_orig_mod", net)  # of a compiled one
    if isinstance(net, nn.Module) and not accepts(net, 4):
        raise ValueError(
            f"the network of a map takes (x, s, t, cond=None), times of shape (B,), got {named(net)}: write its "
            "forward so."
        )
    if not isinstance(net, (MLP, Network)) or cond is None:
        return
    own = (net if isinstance(net, MLP) else net.embedding).numbers
    label, numbers = (label_of(cond), None) if own is None else label_and_numbers(cond)
    classes = net.arguments.get("classes")
    if classes is not None and label is not None:
        label_rows(label, classes, x1)
    if own is not None and numbers is not None:
        own.check(numbers, x1)
