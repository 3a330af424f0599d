"""Autoencoders of `diffusers`: pictures to latents of about unit scale, and back.

    z = (E(picture) - shift) scale,        picture = D(z / scale + shift)

E is the mean of the encoder's posterior; shift and scale are `shift_factor` and `scaling_factor` of the autoencoder's
configuration, or, channel by channel, its `latents_mean` and `scaling_factor / latents_std`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..system.devices import pick_device
from .pixels import HALF_RANGE

DECODED_AT_ONCE = 16
"""Pictures of a call of the decoder."""
INSTALL = "pip install 'flowmaps[diffusers]'"


class Codec:
    """An autoencoder with the scale of its latents.

    Args:
        vae: of `diffusers`, such as `AutoencoderKL`.
    """

    def __init__(self, vae: Any) -> None:
        config, self.vae = vae.config, vae
        means, stds = config.get("latents_mean"), config.get("latents_std")
        if means is None or stds is None:  # one number for all channels
            means, stds = [float(config.get("shift_factor") or 0.0)], [1.0]
        scale = float(config.get("scaling_factor") or 1.0)
        self.scale = torch.tensor([scale / std for std in stds]).reshape(-1, 1, 1)
        self.shift = torch.tensor(list(means)).reshape(-1, 1, 1)

    @property
    def _like(self) -> Tensor:
        return next(self.vae.parameters())

    @property
    def channels(self) -> int:
        """Of the pictures."""
        return int(self.vae.config.get("in_channels", 3))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """`(B, C, H, W)` pictures in [-1, 1] -> latents `(B, channels, h, w)`, float32 on the CPU."""
        out = self.vae.encode(pictures.to(self._like))
        found = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
        return (found.float().cpu() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """`(B, channels, h, w)` latents -> `(B, C, H, W)` pictures in about [-1, 1], on the device of the decoder."""
        z = z / self.scale.to(z) + self.shift.to(z)
        return self.vae.decode(z.to(self._like), return_dict=False)[0]

    def pixels(self, z: Tensor) -> Tensor:
        """`(B, channels, h, w)` latents -> pixels `(B, C, H, W)`, uint8 on the CPU, a few at a time."""
        parts = []
        for part in z.split(DECODED_AT_ONCE):
            pictures = self.decode(part).float() * HALF_RANGE + HALF_RANGE
            parts.append(pictures.nan_to_num(HALF_RANGE).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(parts)


def open_vae(source: str | Path, device: torch.device | str = "cpu") -> Any:
    """An autoencoder by the folder of its `save_pretrained`, the folder of a pipeline with one, or a name on the hub.

    Raises:
        ValueError: `diffusers` is not installed, or there is no such autoencoder.
    """
    try:
        from diffusers.models.auto_model import AutoModel
    except ImportError as error:
        raise ValueError(f"autoencoders are those of diffusers: {INSTALL}.") from error
    path, places = Path(source), ({}, {"subfolder": "vae"})
    if path.is_dir():
        inside = (path / "vae" / "config.json").exists() and not (path / "config.json").exists()
        path, places = path / "vae" if inside else path, ({},)
    reason = ""
    for place in places:
        try:
            vae = AutoModel.from_pretrained(str(path), **place)
        except (OSError, ValueError) as error:
            reason = reason or " ".join(str(error).split())[:300]
            continue
        if not hasattr(vae, "encode") or not hasattr(vae, "decode"):
            raise ValueError(f"{source} is a {type(vae).__name__}, no autoencoder: give the folder or name of a VAE.")
        return vae.eval().requires_grad_(False).to(device)
    raise ValueError(
        f"diffusers cannot read an autoencoder at {source} ({reason}): give a folder of its save_pretrained, of a "
        "pipeline with one, or a name on the Hugging Face hub."
    )


@lru_cache(maxsize=1)
def codec_at(folder: str) -> Codec:
    """The autoencoder in a folder beside latents, on the best device of this machine.

    Raises:
        ValueError: it is not there.
    """
    if not Path(folder).is_dir():
        raise ValueError(
            f"the autoencoder of these latents is not at {folder}, where they were encoded: put it back, or train on "
            "the latents where they are now."
        )
    return Codec(open_vae(folder, pick_device("auto")))
