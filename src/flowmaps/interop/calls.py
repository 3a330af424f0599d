"""How networks of other libraries are called: `call(net, z, t, cond) -> like z`, at their own time and scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.two_times import Call
from ..shapes import Condition, like


class PipelineCall(nn.Module):
    """Calls a network of a pipeline of `diffusers`: `net(z, timestep=t, **cond)`.

    Args:
        needs: arguments that the condition must give; a condition that is a tensor counts as the first.
        learned_variance: cut the channels off in which the network returns a variance.
    """

    def __init__(self, needs: tuple[str, ...] = (), learned_variance: bool = False) -> None:
        super().__init__()
        self.needs, self.learned_variance = tuple(needs), learned_variance

    def forward(self, net: nn.Module, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """What the network returns, `(B, C, H, W)`."""
        out = net(z, timestep=t, **arguments_of(cond, self.needs), return_dict=False)[0]
        return out[:, : z.shape[1]] if self.learned_variance else out


class FluxCall(nn.Module):
    """Calls a Flux transformer, whose tokens are squares of 2 x 2 latents: z stays `(B, C, H, W)`.

    Args:
        needs: arguments that the condition must give.
        guidance: the guidance weight of a transformer that takes one as an input, else `None`.
    """

    def __init__(self, needs: tuple[str, ...], guidance: float | None = None) -> None:
        super().__init__()
        self.needs, self.guidance = tuple(needs), guidance

    def forward(self, net: nn.Module, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """What the transformer returns, as latents `(B, C, H, W)`."""
        options = arguments_of(cond, self.needs)
        rows, channels, height, width = z.shape
        if height % 2 or width % 2:
            raise ValueError(f"Flux takes latents of even height and width, got {height} x {width}: crop or pad them.")
        squares = z.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(height // 2, width // 2, 3, dtype=z.dtype, device=z.device)
        places[..., 1] = torch.arange(height // 2, dtype=z.dtype, device=z.device)[:, None]
        places[..., 2] = torch.arange(width // 2, dtype=z.dtype, device=z.device)
        text = torch.zeros(options["encoder_hidden_states"].shape[1], 3, dtype=z.dtype, device=z.device)
        if self.guidance is not None:
            options["guidance"] = torch.full((rows,), self.guidance, dtype=z.dtype, device=z.device)
        tokens = squares.reshape(rows, (height // 2) * (width // 2), 4 * channels)
        ids = {"img_ids": places.reshape(-1, 3), "txt_ids": text}
        out = net(tokens, timestep=t, **ids, **options, return_dict=False)[0]
        out = out.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(rows, channels, height, width)


def arguments_of(cond: Condition, needs: tuple[str, ...]) -> dict[str, Any]:
    """A condition as arguments of a network: a dictionary of them, or a tensor for the first that it needs.

    Raises:
        ValueError: one is missing, or the network takes none.
    """
    given = dict(cond) if isinstance(cond, Mapping) else {} if cond is None else {"".join(needs[:1]): cond}
    if missing := [name for name in needs if name not in given]:
        got = "no condition" if cond is None else f"{', '.join(given) or 'nothing'} alone"
        raise ValueError(
            f"the network needs {' and '.join(missing)}, got {got}: pass cond=model.condition(...), of labels or "
            "prompts, one for each row."
        )
    if "" in given:
        raise ValueError("the network takes no condition, and one was given: leave cond out.")
    return given


class PreconditionedCall(nn.Module):
    """The denoiser D(z, sigma) that a bare network F makes with EDM's preconditioning (Karras et al., 2022, table 1).

        D = d^2 / (sigma^2 + d^2) z  +-  sigma d / (sigma^2 + d^2)^(1/2) F(z / (sigma^2 + d^2)^(1/2), log(sigma) / 4)

    Args:
        call: calls F.
        data_std: d, of the data.
        negative: whether the sign is -, as for `v_prediction` in `diffusers`.
    """

    def __init__(self, call: Call, data_std: float, negative: bool = False) -> None:
        super().__init__()
        self.call, self.data_std, self.negative = call, data_std, negative

    def forward(self, net: nn.Module, z: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        """The denoiser D(z; sigma), `(B, *shape)`."""
        length = (sigma.square() + self.data_std**2).sqrt()
        out = self.call(net, z / like(length, z), 0.25 * sigma.log(), cond)
        gain = (-1 if self.negative else 1) * self.data_std * sigma / length
        return like((self.data_std / length).square(), z) * z + like(gain, z) * out


class AzulaCall(nn.Module):
    """Calls a denoiser of `azula`: the mean of its posterior, `net(z, t, **cond).mean`."""

    def forward(self, net: nn.Module, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The mean of the denoiser's posterior, `(B, *shape)`."""
        if cond is not None and not isinstance(cond, Mapping):
            raise ValueError('a denoiser of azula takes conditions by name: pass cond={"label": labels}.')
        return net(z, t, **(cond or {})).mean
