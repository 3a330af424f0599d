"""Functions that write entries of one tensor into another, and distances between all pairs of rows.

Writing is linear in both tensors together: the tangent is written by the same call, zeros standing for a missing one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import (
    composite,
    first_dual,
    named,
    paired,
    run_tangent,
    tangent_or_zero,
    tangent_rule,
    unpack,
    values_of,
)

PLACES = {
    "index_add": ("input", "dim", "index", "source"),
    "index_copy": ("input", "dim", "index", "source"),
    "index_fill": ("input", "dim", "index", "value"),
    "scatter_add": ("input", "dim", "index", "src"),
    "index_put": ("input", "indices", "values"),
    "put": ("input", "index", "source"),
    "masked_scatter": ("input", "mask", "source"),
    "select_scatter": ("input", "src"),
    "slice_scatter": ("input", "src"),
    "diagonal_scatter": ("input", "src"),
}
"""The arguments in their order; the first and the last are those that the result is linear in."""


def _writing(name: str, places: tuple[str, ...]) -> Any:
    function, written = getattr(torch, name), places[-1]

    def derivative(y: Tensor, x: Any, *args: Any, **kwargs: Any) -> Any:
        given, at = list(args), places.index(written) - 1
        if written in kwargs:
            kwargs[written] = tangent_or_zero(kwargs[written])
        else:
            given[at] = tangent_or_zero(given[at])
        return function(tangent_or_zero(x).to(y.dtype), *given, **kwargs)

    return derivative


for _name, _places in PLACES.items():
    tangent_rule(*named(_name))(_writing(_name, _places))


@composite(*named("scatter"))
def _scatter(x: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: Any = None) -> Any:
    src = value if src is None else src
    if reduce is not None:
        raise NotImplementedError("scatter(reduce=...) has no forward-mode rule: use scatter_add or scatter_reduce.")
    found = first_dual((x, src))
    out = torch.scatter(values_of(x), dim, index, values_of(src))
    if found is None:
        return out
    pair = (tangent_or_zero(x).to(out.dtype), tangent_or_zero(src))
    return paired(out, run_tangent(found.detached, _scattered, dim, index, *pair), found.detached)


def _scattered(dim: int, index: Tensor, x: Tensor, src: Any) -> Tensor:
    return torch.scatter(x, dim, index, src)


@composite(*named("scatter_reduce"))
def _scatter_reduce(x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    """Sums and means are linear; of the largest and smallest entries, ties share evenly, as in torch's gradient."""
    if reduce not in ("sum", "mean", "amax", "amin"):
        raise NotImplementedError(f"scatter_reduce(reduce={reduce!r}) has no forward-mode rule: use sum, mean or amax.")
    value = torch.scatter_reduce(values_of(x), dim, index, values_of(src), reduce, include_self=include_self)
    found = first_dual((x, src))
    if found is None:
        return value
    keep = torch.ones_like(value) if include_self else torch.ones_like(value).scatter(dim, index, 0.0)
    args = (value, (x, src), dim, index, keep, reduce)
    return paired(value, run_tangent(found.detached, _reduced, *args), found.detached)


def _reduced(value: Tensor, pair: Any, dim: int, index: Tensor, keep: Tensor, reduce: str) -> Tensor:
    """The tangent: a weighted sum of the entries that were reduced; `keep` says which of x take part."""
    (x, src), dx, ds = values_of(pair), tangent_or_zero(pair[0]), tangent_or_zero(pair[1])
    own, sent = keep, torch.ones_like(index, dtype=value.dtype)
    src, ds = (a[tuple(slice(n) for n in index.shape)] for a in (src, ds))
    if reduce in ("amax", "amin"):
        own, sent = own * (x == value), (src == value.gather(dim, index)).to(value.dtype)
    total = (own * dx).scatter_add(dim, index, sent * ds)
    return total if reduce == "sum" else total / own.scatter_add(dim, index, sent)


@composite(torch.cdist)
def _cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    """Written out: the differences of all pairs are kept, (..., P, R, D)."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


@composite(F.pdist, torch.pdist)
def _pdist(x: Any, p: float = 2.0) -> Any:
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return torch.linalg.vector_norm(x[first] - x[second], p, -1)


@tangent_rule(*named("as_strided"))
def _as_strided(y: Tensor, x: Any, size: Any, stride: Any, storage_offset: int | None = None) -> Any:
    """The tangent may be laid out otherwise: its entries are found by their number."""
    value = x.value
    start = 0 if storage_offset is None else storage_offset - value.storage_offset()
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not value.is_contiguous() or start < 0 or last >= value.numel():
        raise NotImplementedError("x.as_strided() of entries outside x, or of an x that is not contiguous: no rule.")
    return x.tangent.reshape(-1)[torch.arange(value.numel(), device=value.device).as_strided(size, stride, start)]


@tangent_rule(F.embedding_bag)
def _embedding_bag(y: Tensor, input: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    mode = kwargs.get("mode", args[4] if len(args) > 4 else "mean")
    if mode == "max" or first_dual((args, kwargs)) is not None:
        raise NotImplementedError("F.embedding_bag(mode='max'), or per_sample_weights with a tangent, has no rule.")
    return F.embedding_bag(input, unpack(weight)[1], *args, **kwargs)
