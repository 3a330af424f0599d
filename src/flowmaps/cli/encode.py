"""The command `encode`: a data set of pictures as latents, once."""

from __future__ import annotations

from pathlib import Path

from ..data.encode import encode
from ..system.devices import pick_device
from .terminal import console, watching


def encode_data(vae: str, data: str, out: Path, *, resolution: int = 0, batch: int = 16, device: str = "auto") -> None:
    """Encode pictures into a folder and print what it holds.

    Args:
        vae, data, out, resolution, batch: as of `flowmaps.data.encode`.
        device: cpu, cuda, ..., or auto.

    Raises:
        ValueError: as of `flowmaps.data.encode`.
    """
    with watching("encode") as watch:
        options = {"resolution": resolution, "batch": batch, "device": pick_device(device)}
        latents = encode(data, vae, out, **options, watch=watch)
    spread, mean = latents.x.std().item(), latents.x.mean().item()
    console.print(
        f"{out}: {len(latents):,} latents of {' x '.join(map(str, latents.shape))}, mean {mean:.3g}, standard "
        f"deviation {spread:.3g}, {latents.classes or 'no'} classes",
        soft_wrap=True,
    )
    console.print(f"flowmaps train images --data {out} --out DIR trains on them", soft_wrap=True)
