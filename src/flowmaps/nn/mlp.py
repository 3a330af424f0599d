"""A multilayer perceptron of (x, s, t, cond), for data of a few to a few hundred dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..shapes import Batch, Condition, GuidedCondition, Time
from .embeddings import Fourier, embedded_condition, numbers_embedding, weight_features
from .limits import MAX_DEPTH, MAX_FREQUENCIES, MAX_SIZE, check_bool, check_integer


class MLP(nn.Module):
    """u_{s,t}(x): features of x, s and t - s, then `depth` hidden layers of `width`, residual if asked.

    With `space_frequencies = K` the features of x are x and sin, cos of pi k x / 2 axis by axis, k = 1..K: sharp
    edges at a known scale are learned in minutes rather than hours (Tancik et al., "Fourier features let networks
    learn high frequency functions", 2020, arXiv 2006.10739). Data should lie in about [-2, 2].

    Args:
        dim: length of x, the network takes `(B, dim)`.
        width: hidden width.
        depth: number of hidden layers, at least 1.
        residual: add each hidden layer to its input.
        classes: number of classes; `cond` is then `(B,)` integer labels, where `classes` itself means no class, as
            `None` does for the whole batch (to be learned, it must be among the labels of training).
        condition_dim: how many numbers `cond` has: `cond` is then `(B, condition_dim)` of about unit scale, with
            classes too a `Conditions(label, numbers)`. A row of NaN means no condition, as `None` does for the whole
            batch (to be learned, it must be among the rows of training).
        time_frequencies: frequencies of the features of s and t - s; 0 for the plain times.
        space_frequencies: frequencies of the features of x; 0 for plain x.
        modulation: width of an embedding of (s, t) by which each layer after the first is scaled and shifted (Perez et
            al., "FiLM: visual reasoning with a general conditioning layer", 2018, arXiv 1709.07871); 0 for none.
        guidance: take a guidance weight w for each row: `cond` may be a `GuidedCondition(cond, weight)`; without one
            w is 1.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 256,
        depth: int = 4,
        residual: bool = False,
        classes: int | None = None,
        condition_dim: int | None = None,
        time_frequencies: int = 0,
        space_frequencies: int = 0,
        modulation: int = 0,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.classes, self.residual = dim, classes, residual
        self.arguments = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "residual": residual,
            "classes": classes,
            "condition_dim": condition_dim,
            "time_frequencies": time_frequencies,
            "space_frequencies": space_frequencies,
            "modulation": modulation,
            "guidance": guidance,
        }
        _check_sizes(self.arguments)
        self.guidance = guidance
        self.space_frequencies = space_frequencies
        self.time = Fourier(time_frequencies)
        extra = 2 * self.time.width + 2 * guidance
        self.first = nn.Linear(dim * (1 + 2 * space_frequencies) + extra, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, dim)
        self.embed = nn.Linear(extra, modulation) if modulation else None
        films = [nn.Linear(modulation, 2 * width) for _ in self.hidden if modulation]
        for film in films:
            nn.init.zeros_(film.weight)
            nn.init.zeros_(film.bias)
        self.films = nn.ModuleList(films)
        self.label = None if classes is None else nn.Embedding(classes + 1, width)  # the last row: no class
        self.numbers = numbers_embedding("MLP", condition_dim, width)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """`(B, dim), (B,), (B,), (B,) or None -> (B, dim)`.

        Raises:
            ValueError: x is not `(B, dim)`, or labels or numbers that the network does not take, or out of range.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"this MLP takes x of shape (B, {self.dim}), got {tuple(x.shape)}: flatten each sample.")
        times = torch.cat([self.time(s), self.time(t - s), *self._weights(cond, x)], 1)
        h = self.first(torch.cat([self._space(x), times], 1))
        for given in embedded_condition(self, cond, x, "MLP"):
            h = h + given
        h = self.act(h)
        embedded = None if self.embed is None else self.act(self.embed(times))
        for k, layer in enumerate(self.hidden):
            y = layer(h)
            if embedded is not None:
                scale, shift = self.films[k](embedded).chunk(2, 1)
                y = y * (1 + scale) + shift
            y = self.act(y)
            h = h + y if self.residual else y
        return self.last(h)

    def _space(self, x: Tensor) -> Tensor:
        if not self.space_frequencies:
            return x
        k = 0.5 * math.pi * torch.arange(1, self.space_frequencies + 1, device=x.device, dtype=x.dtype)
        phase = (x[:, :, None] * k).flatten(1)
        return torch.cat([x, torch.cos(phase), torch.sin(phase)], 1)

    def _weights(self, cond: Condition, x: Tensor) -> list[Tensor]:
        """The features of the guidance weight, in a list; none if the network takes no weight."""
        if not self.guidance:
            if isinstance(cond, GuidedCondition):
                raise ValueError("this MLP takes no guidance weight, got one: build it with guidance=True.")
            return []
        return [weight_features(cond, x.new_ones(x.shape[:1]))]

    @torch.no_grad()
    def zero_second_time(self) -> None:
        """Put the weights of the second time to zero: then u_{s,t} = u_{s,s} for every t, and jumps are Euler steps.

        A map starts like this from a trained velocity. What the features of t - s contribute at t = s is added to the
        bias, so that the velocity u_{s,s} stays as it is.
        """
        width = self.time.width
        at_zero = self.time(self.first.weight.new_zeros(1))[0]
        for layer in [self.first] if self.embed is None else [self.first, self.embed]:
            end = layer.in_features - 2 * self.guidance
            columns = layer.weight[:, end - width : end]
            layer.bias += columns @ at_zero
            columns.zero_()


def _check_sizes(sizes: dict) -> None:
    waves = ("time_frequencies", "space_frequencies")
    check_integer("MLP", 1, MAX_SIZE, **{name: sizes[name] for name in ("dim", "width")})
    check_integer("MLP", 1, MAX_DEPTH, depth=sizes["depth"])
    check_integer("MLP", 1, MAX_SIZE, **({} if sizes["classes"] is None else {"classes": sizes["classes"]}))
    check_integer("MLP", 0, MAX_FREQUENCIES, **{name: sizes[name] for name in waves})
    check_integer("MLP", 0, MAX_SIZE, modulation=sizes["modulation"])
    check_bool("MLP", **{name: sizes[name] for name in ("residual", "guidance")})
