"""What the image networks share: arguments to build them again, the second time held, and a start from a velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..shapes import Batch
from .embeddings import Embedding


class Network(nn.Module):
    """A network of (x, s, t, cond) whose layers are modulated by an `Embedding`.

    A subclass keeps its constructor's arguments in `arguments`, the shape of a sample in `shape`, and its embedding in
    `embedding`.

    Attributes:
        checkpointing: keep only the inputs of each block for the backward pass, and compute the rest again.
    """

    arguments: dict[str, Any]
    shape: tuple[int, ...]
    embedding: Embedding
    checkpointing: bool = False

    @classmethod
    def from_velocity(cls, velocity: Network, **changes: Any) -> Self:
        """A map's network from one that was trained as a velocity: the same output at (x, s, s), for every t.

        Args:
            velocity: a network of this class, trained at t = s.
            changes: of its arguments: `dropout`, or `guidance=True`, whose weights start at zero.

        Raises:
            ValueError: a network of another class, or a change that would make it another function.
        """
        if type(velocity) is not cls:
            raise ValueError(f"{cls.__name__}.from_velocity takes a {cls.__name__}, got {type(velocity).__name__}.")
        net = cls(**{**velocity.arguments, **changes}).to(next(velocity.parameters()))
        own, now = velocity.arguments, net.arguments
        free = ("dropout",) if own["guidance"] else ("dropout", "guidance")
        for name in now:
            if now[name] != own[name] and name not in free:
                raise ValueError(
                    f"from_velocity may change dropout and add guidance, got {name}={now[name]!r} for a velocity with "
                    f"{name}={own[name]!r}: leave {name} out."
                )
        net.load_state_dict(velocity.state_dict(), strict=own["guidance"] == now["guidance"])
        net.checkpointing = velocity.checkpointing
        net.hold_velocity()
        return net

    def hold_velocity(self) -> None:
        """Make u_{s,t} = u_{s,s} for every t, the diagonal staying as it is: a map whose jumps follow its velocity."""
        self.embedding.hold_velocity()

    def check(self, x: Batch) -> None:
        """Refuse a batch of another shape than the network's.

        Raises:
            ValueError: x is not `(B, *shape)`.
        """
        if tuple(x.shape[1:]) != self.shape or x.ndim != 1 + len(self.shape):
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"this {type(self).__name__} takes x of shape (B, {wanted}), got {tuple(x.shape)}.")

    def block(self, layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run a block, checkpointed where that is asked for.

        Not where the weights are held fixed: those of a call by `functional_call` are gone by the backward pass.
        """
        if self.checkpointing and torch.is_grad_enabled() and next(self.parameters()).requires_grad:
            return checkpoint(layer, *inputs, use_reentrant=False)  # type: ignore[return-value]
        return layer(*inputs)


def exactly(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer without autocast: for the few numbers that modulate all others, whose rounding would not average out."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x)


def zeroed(layer: nn.Module) -> Any:
    """A layer whose weights and bias start at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
