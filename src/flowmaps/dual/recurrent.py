"""Recurrent layers, step by step: `nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells, and packed sequences.

    RNN:   h' = f(W x + b + U h + c),  f = tanh or relu
    LSTM:  i, f, o = sigmoid, g = tanh of (W x + b + U h + c),    c' = f c + i g,  h' = o tanh(c')
    GRU:   r, z = sigmoid(W x + b + U h + c),  n = tanh(W_n x + b_n + r (U_n h + c_n)),  h' = (1 - z) n + z h

The products with the inputs of all steps are one product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import composite, paired, run_tangent

_VF: Any = torch._VF  # type: ignore[attr-defined]
State = tuple[Any, ...]
Cell = Callable[[Any, State, list[Any]], State]
"""`cell(W x + b, state, weights) -> new state`; weights: U, c, and an LSTM's projection."""


def _plain(activation: Any) -> Cell:
    def cell(x: Any, state: State, weights: list[Any]) -> State:
        return (activation(x + F.linear(state[0], *weights)),)

    return cell


def _lstm(x: Any, state: State, weights: list[Any]) -> State:
    h, c = state
    i, f, g, o = (x + F.linear(h, *weights[:2])).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if len(weights) < 3 else F.linear(h, weights[2])), c


def _gru(x: Any, state: State, weights: list[Any]) -> State:
    (h,) = state
    xr, xz, xn = x.chunk(3, -1)
    hr, hz, hn = F.linear(h, *weights).chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return (n + z * (h - n),)


def _sweep(x: Any, sizes: list[int], state: State, weights: list[Any], cell: Cell, backward: bool) -> Any:
    """One layer in one direction over packed rows, `sizes[k]` of them at step k."""
    inputs = F.linear(x, *weights[:2]).split(sizes)
    outputs: list[Any] = [None] * len(sizes)
    for step in reversed(range(len(sizes))) if backward else range(len(sizes)):
        rows = sizes[step]
        new = cell(inputs[step], tuple([s[:rows] for s in state]), weights[2:])
        outputs[step] = new[0]
        state = tuple([n if rows == len(s) else torch.cat([n, s[rows:]]) for n, s in zip(new, state, strict=True)])
    return torch.cat(outputs), state


def _layers(x: Any, sizes: list[int], states: State, weights: Any, options: Any, cell: Cell) -> tuple[Any, State]:
    """All layers over packed rows; states and final states of shape (layers * directions, rows, width)."""
    biased, layers, dropout, training, both = options
    directions, final = 2 if both else 1, []
    each = len(weights) // (layers * directions)
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            own = list(weights[place * each : (place + 1) * each])
            w, u, *rest = own
            ordered = [w, rest.pop(0), u, rest.pop(0), *rest] if biased else [w, None, u, None, *rest]
            begin = tuple([s[place] for s in states])
            out, end = _sweep(x, sizes, begin, ordered, cell, direction == 1)
            outputs.append(out)
            final.append(end)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and training and layer < layers - 1:
            x = F.dropout(x, dropout, True)
    return x, tuple([torch.stack(list(parts)) for parts in zip(*final, strict=True)])


def _network(cell: Cell) -> Callable[..., Any]:
    """The rule of `torch.lstm`, `gru`, ...: (input, hx, weights, ..., batch_first), or (data, batch_sizes, hx, ...)."""

    def handler(x: Any, second: Any, third: Any, *options: Any) -> Any:
        if isinstance(options[0], (list, tuple)):  # packed
            states = tuple(third) if isinstance(third, (list, tuple)) else (third,)
            out, final = _layers(x, [int(n) for n in second], states, options[0], options[1:6], cell)
            return out, *final
        *settings, batch_first = options
        states = tuple(second) if isinstance(second, (list, tuple)) else (second,)
        alone = x.dim() == 2
        x, states = (x.unsqueeze(1), tuple([s.unsqueeze(1) for s in states])) if alone else (x, states)
        steps_first = x if alone or not batch_first else x.transpose(0, 1)
        length, rows = steps_first.shape[:2]
        flat = steps_first.reshape(length * rows, -1)
        out, final = _layers(flat, [rows] * length, states, third, settings, cell)
        out = out.reshape(length, rows, -1)
        if alone:
            return out.squeeze(1), *[f.squeeze(1) for f in final]
        return (out.transpose(0, 1) if batch_first else out), *final

    return handler


def _single(cell: Cell, states: int) -> Callable[..., Any]:
    """The rule of a cell: (input, hx, w_ih, w_hh, b_ih, b_hh)."""

    def handler(x: Any, hx: Any, w: Any, u: Any, b: Any = None, c: Any = None) -> Any:
        state = tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)
        new = cell(F.linear(x, w, b), state, [u, c])
        return new if states > 1 else new[0]

    return handler


for _name, _cell, _states in (
    ("rnn_tanh", _plain(torch.tanh), 1),
    ("rnn_relu", _plain(torch.relu), 1),
    ("gru", _gru, 1),
    ("lstm", _lstm, 2),
):
    composite(getattr(_VF, _name))(_network(_cell))
    composite(getattr(_VF, f"{_name}_cell"))(_single(_cell, _states))


@composite(_VF._pack_padded_sequence)
def _pack(x: Any, lengths: Tensor, batch_first: bool) -> Any:
    data, sizes = _VF._pack_padded_sequence(x.value, lengths, batch_first)
    if x.tangent is None:
        return data, sizes
    packed = run_tangent(x.detached, _VF._pack_padded_sequence, x.tangent, lengths, batch_first)[0]
    return paired(data, packed, x.detached), sizes


@composite(_VF._pad_packed_sequence)
def _unpack(x: Any, sizes: Tensor, batch_first: bool, padding: float, total: int) -> Any:
    data, lengths = _VF._pad_packed_sequence(x.value, sizes, batch_first, padding, total)
    if x.tangent is None:
        return data, lengths
    padded = run_tangent(x.detached, _VF._pad_packed_sequence, x.tangent, sizes, batch_first, 0.0, total)[0]
    return paired(data, padded, x.detached), lengths
