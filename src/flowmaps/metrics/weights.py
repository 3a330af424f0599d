"""Published weights: a file checked before it is read, and convolutions with their batch normalisation folded in.

    gamma (w * x - mean) / (var + eps)^(1/2) + beta  =  (g w) * x + (beta - g mean),      g = gamma / (var + eps)^(1/2)

A feature network is only ever evaluated, so each normalisation is a scale and a shift of the convolution before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
_EPS = 1e-3  # of the batch normalisations of both published networks


def load_state(path: str | Path, sha256: str, advice: str) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU, after its checksum was found to be the published one.

    Args:
        path: a file written by `torch.save`; nothing but tensors is read from it.
        sha256: what the file's must be, in hexadecimal.
        advice: what to do about a file that is missing or another, for the error.

    Raises:
        ValueError: there is no such file, or it is another one.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no weights file {path}: {advice}")
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        raise ValueError(f"{path} is not the published weights: its SHA-256 is {got}, not {sha256}. {advice}")
    return torch.load(path, map_location="cpu", weights_only=True)


def convolution(
    state: State, conv: str, norm: str, *, stride: int = 1, padding: int | tuple[int, ...] = 0, groups: int = 1
) -> nn.Conv2d:
    """A convolution with its batch normalisation folded in, frozen; sizes are those of the weights.

    Args:
        state: of the network.
        conv: name of the convolution in `state`, which has no bias.
        norm: name of its normalisation.
        stride: of the convolution.
        padding: of the convolution; one number, or rows and columns.
        groups: of the convolution.
    """
    weight = state[f"{conv}.weight"].double()
    gain = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + _EPS).sqrt()
    bias = state[f"{norm}.bias"].double() - gain * state[f"{norm}.running_mean"].double()
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # pyright: ignore[reportArgumentType]
        stride=stride,
        padding=padding,  # pyright: ignore[reportArgumentType]
        groups=groups,
    )
    layer.load_state_dict({"weight": weight * gain.reshape(-1, 1, 1, 1), "bias": bias})
    return layer.requires_grad_(False)
