"""What the image networks have in common: constructor arguments, activation checkpointing, a start from a velocity.

A map can start from a trained velocity v: the same network with the weights of its second time put to zero has
u_{s,t}(x) = v_s(x) for every t.
"""

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

    Attributes:
        arguments: of the constructor, with which `load` builds the network again; set by the subclass, as the next two.
        shape: of a sample.
        embedding: of times, label and guidance weight.
        checkpointing: activation checkpointing: keep only the inputs of each block, and compute the rest again in the
            backward pass.
    """

    arguments: dict[str, Any]
    shape: tuple[int, ...]
    embedding: Embedding
    checkpointing: bool = False

    @classmethod
    def from_velocity(cls, velocity: Network, **changes: Any) -> Self:
        """Return a copy of a network that was trained as a velocity, with its output v_s(x) = u_{s,s}(x) for every t.

        Args:
            velocity: a network of this class, trained at t = s.
            changes: of its constructor's arguments: `dropout`, or `guidance=True`, whose weights start at zero.

        Raises:
            ValueError: a network of another class, or a change of another argument.
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
        net.zero_second_time()
        return net

    def zero_second_time(self) -> None:
        """Put the weights of the second time to zero: then u_{s,t} = u_{s,s} for every t, and jumps are Euler steps."""
        self.embedding.zero_second_time()

    def check_shape(self, x: Batch) -> None:
        """Check that x is `(B, *shape)`.

        Raises:
            ValueError: x has another shape.
        """
        if tuple(x.shape[1:]) != self.shape or x.ndim != 1 + len(self.shape):
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"this {type(self).__name__} takes x of shape (B, {wanted}), got {tuple(x.shape)}.")

    def run_block(self, layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Call a block, with activation checkpointing if `checkpointing` is set and the weights take gradients.

        The weights of a `functional_call` no longer exist in its backward pass, so that they cannot be checkpointed.
        """
        if self.checkpointing and torch.is_grad_enabled() and next(self.parameters()).requires_grad:
            return checkpoint(layer, *inputs, use_reentrant=False)  # type: ignore[return-value]
        return layer(*inputs)


def without_autocast(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer without autocast: for modulations, which are few numbers that multiply many."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x)


def zero_initialised(layer: nn.Module) -> Any:
    """The layer, with its weights and bias put to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
