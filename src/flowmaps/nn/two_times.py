"""A second time for any network of one time: a velocity v_s(x) becomes u_{s,t}(x), exact at t = s.

The output e of the layer that embeds the time (or of any early layer) gets a term that is zero at t = s,

    e  ->  e + W_2 silu(W_1 (F(t - s) - F(0)) / sqrt(n)),        W_2 = 0 at first,

F the n Fourier features: u_{s,s} = v_s always, and u_{s,t} = v_s for every t until the map is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from ..shapes import Batch, Condition, Time
from .embeddings import Fourier
from .lora import add_adapters, merge

Call = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
"""Calls a network of one time: `call(net, x, t, cond) -> like x`."""
NAMES = ("time_embedding", "time_text_embed", "time_embed", "t_embedder", "time_mlp", "map_layer1")
"""What libraries call the layer that embeds the time."""


def plain_call(net: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """`net(x, t)`, with `cond` as third argument if there is one."""
    return net(x, t) if cond is None else net(x, t, cond)


class SecondTime(nn.Module):
    """A layer and, added to its output, the embedding of t - s.

    Args:
        layer: whose output is `(B, width)`, `(B, ..., width)`, or, for a convolution, `(B, width, ...)`.
        width: of its output.
        frequencies: of the features of t - s.
    """

    _gap: Tensor | None = None  # t - s, `(B,)`; only while the network is called
    _reached = False

    def __init__(self, layer: nn.Module, width: int, frequencies: int) -> None:
        super().__init__()
        self.layer, self.time = layer, Fourier(frequencies)
        self.axis = 1 if any(isinstance(part, nn.modules.conv._ConvNd) for part in layer.modules()) else -1
        self.first = nn.Linear(self.time.width, width, bias=False)
        self.last = nn.Linear(width, width, bias=False)
        self.act = nn.SiLU()
        nn.init.zeros_(self.last.weight)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """The output of the layer, with the term in t - s."""
        out = self.layer(*inputs, **options)
        if self._gap is None:
            raise RuntimeError("the second time is missing: call the TwoTimes, not the network inside it.")
        self._reached = True
        kind = self.first.weight.dtype
        features = self.time.relative_to_zero(self._gap.to(torch.promote_types(self._gap.dtype, kind))).to(kind)
        term = self.last(self.act(self.first(features * self.time.width**-0.5))).to(out.dtype)
        between = (1,) * (out.ndim - 2)
        shape = (*term.shape, *between) if self.axis == 1 else (term.shape[0], *between, term.shape[1])
        return out + term.reshape(shape)


class TwoTimes(nn.Module):
    """A network of `(x, s, t, cond)` made of a copy of one of `(x, t, cond)`, whose function it is at t = s.

    Args:
        net: a network that was trained as a velocity, or, with `call`, whatever `call` makes a velocity of. It is
            copied.
        embedding: dotted path, such as `"time_embed"`, of the layer that embeds the time; several paths, where each
            block has its own; found by its name or class unless given. Any layer whose output reaches the whole network
            does, such as the first one of an MLP.
        call: `call(net, x, t, cond) -> like x`, `net(x, t)` or `net(x, t, cond)` unless given; a module's weights
            and buffers become part of this one.
        width: of that layer's output; that of its last linear layer or convolution unless given.
        frequencies: of the features of t - s.
        lora: rank of adapters of all linear layers and convolutions (`peft`); then they and the second time are
            trained alone. None unless given.

    Attributes:
        net: the copy.
        embeddings: paths in it of the layers with a second time.

    Raises:
        ValueError: there is no layer of that path, none is found, or its width cannot be told.
    """

    def __init__(
        self,
        net: nn.Module,
        embedding: str | tuple[str, ...] | None = None,
        call: Call | None = None,
        *,
        width: int | None = None,
        frequencies: int = 8,
        lora: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise ValueError(
                f"a second time is for a torch.nn.Module, of which a copy is made, got {type(net).__name__}: pass the "
                "network itself, and how it is called by call=lambda net, x, t, cond: ..."
            )
        self.net = copy.deepcopy(net)
        for value in self.net.parameters():
            value.requires_grad_(value.is_floating_point() or value.is_complex())  # a teacher is often frozen
        self.call = plain_call if call is None else call
        self._width, self._frequencies, self._lora = width, frequencies, lora
        given = (embedding,) if isinstance(embedding, str) else embedding
        self.embeddings = tuple(given) if given else find_embeddings(self.net)
        for path in self.embeddings:
            self._give_second_time(path, width, frequencies)
        if lora is not None:
            slots = [module for module in self.net.modules() if isinstance(module, SecondTime)]
            add_adapters(self.net, lora, {part for slot in slots for part in (slot.first, slot.last)})

    def _give_second_time(self, path: str, width: int | None, frequencies: int) -> None:
        """Wrap the layer of a path, at each path where the network has it."""
        layer = _layer(self.net, path)
        if isinstance(layer, SecondTime):  # under another of its paths
            return
        paths = [name for name, part in self.net.named_modules(remove_duplicate=False) if part is layer]
        made = SecondTime(layer, width or _width(layer, path), frequencies).train(layer.training)
        first = next((p for p in layer.parameters() if p.is_floating_point()), None)
        for part in () if first is None else (made.time, made.first, made.last):
            part.to(first.device, first.dtype)  # type: ignore[union-attr]
        for name in paths:
            self.net.set_submodule(name, made)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the constructor; `net` has the layers of the second time in it by now."""
        options = {"width": self._width, "frequencies": self._frequencies, "lora": self._lora}
        return {"net": self.net, "embedding": self.embeddings, "call": self.call, **options}

    def forward(self, x: Batch, s: Time, t: Time, cond: Condition = None) -> Batch:
        """`(B, *shape), (B,), (B,), cond -> (B, *shape)`."""
        with self._second_time(t - s):
            return self.call(self.net, x, s, cond)

    @contextmanager
    def _second_time(self, gap: Tensor) -> Iterator[None]:
        slots = [self.net.get_submodule(path) for path in self.embeddings]  # one twice, where two paths lead to it
        for slot in slots:
            slot._gap, slot._reached = gap, False  # type: ignore[assignment]
        try:
            yield
            for path, slot in zip(self.embeddings, slots, strict=True):
                if not slot._reached:
                    raise ValueError(f"the network does not call its layer {path}: name another with embedding=...")
        finally:
            for slot in slots:
                slot._gap = None  # type: ignore[assignment]

    @property
    def lora(self) -> int | None:
        """Rank of its adapters; `None` without."""
        return self._lora

    @property
    def base(self) -> dict[str, Tensor]:
        """The weights under its adapters, which are never trained; none without adapters."""
        return {} if self._lora is None else {k: v for k, v in self.named_parameters() if not v.requires_grad}

    def merged(self) -> TwoTimes:
        """A copy whose adapters are merged into its weights: a plain module with the same output."""
        other = copy.deepcopy(self)
        merge(other.net)
        other._lora = None
        return other.requires_grad_(True)

    def save_adapter(self, file: str | Path) -> Path:
        """Write the weights that are trained alone, the adapters and the second time, as safetensors.

        Raises:
            ValueError: there are no adapters.
        """
        if self._lora is None:
            raise ValueError("this network has no adapters: make it with lora=RANK, or write all of it by fm.save.")
        trained = {name: value.detach().cpu().contiguous() for name, value in self._trained().items()}
        safetensors.save_file(trained, file)
        return Path(file)

    def load_adapter(self, file: str | Path) -> None:
        """Read what `save_adapter` wrote of a network with the same adapters.

        Raises:
            ValueError: the file has other weights.
        """
        weights, own = safetensors.load_file(file), self._trained()
        if {name: value.shape for name, value in weights.items()} != {name: v.shape for name, v in own.items()}:
            raise ValueError(f"{file} is of another network, or of adapters of another rank: give lora= as it was.")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])

    def _trained(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def zero_second_time(self) -> None:
        """Start again from u_{s,t} = v_s for every t."""
        for path in self.embeddings:
            nn.init.zeros_(self.net.get_submodule(path).last.weight)  # type: ignore[arg-type, union-attr]


def find_embeddings(net: nn.Module) -> tuple[str, ...]:
    """Paths of the layers of a network that embed its time, by their names and classes; the outermost of nested ones.

    Raises:
        ValueError: there is none.
    """
    found: list[str] = []
    for known in (lambda path, module: path.rpartition(".")[2] in NAMES, _embeds_time):
        for path, module in net.named_modules():
            has_weights = next(module.parameters(), None) is not None
            inside = any(path.startswith(f"{outer}.") for outer in found)
            if path and has_weights and not inside and known(path, module):
                found.append(path)
        if found:
            return tuple(found)
    layers = [path for path, module in net.named_modules() if path and isinstance(module, nn.Linear)][:5]
    raise ValueError(
        f"no layer of {type(net).__name__} is known to embed the time: name one with embedding=..., such as the "
        f"first layer that sees it. Its first linear layers are {', '.join(layers) or 'none'}."
    )


def _embeds_time(path: str, module: nn.Module) -> bool:
    """Whether a layer is of a class such as `TimestepEmbedding`; `TimestepEmbedSequential` is a stack of blocks."""
    kind = type(module).__name__
    return "Timestep" in kind and "Embed" in kind and not isinstance(module, nn.Sequential)


def _layer(net: nn.Module, path: str) -> nn.Module:
    try:
        if not path:
            raise AttributeError
        return net.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in net.named_children())
        raise ValueError(
            f"{type(net).__name__} has no layer {path!r} for embedding=...: its own layers are {names}, theirs follow "
            "after a dot."
        ) from None


def _width(layer: nn.Module, path: str) -> int:
    for module in reversed(list(layer.modules())):
        for name in ("out_features", "out_channels"):
            if isinstance(found := getattr(module, name, None), int):
                return found
    raise ValueError(f"the width of the output of {path} ({type(layer).__name__}) cannot be told: pass width=...")
