"""`encode`: a data set of pictures as latents, once, with its labels and the autoencoder beside them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..system.files import sync_folder
from .latents import FILE, VAE, Latents, open_latents, save_latents
from .open import open_data
from .pixels import HALF_RANGE, Watch, quiet
from .sources import Images
from .vae import Codec, open_vae


def encode(
    data: str,
    vae: str | Path,
    out: str | Path,
    *,
    resolution: int = 0,
    batch: int = 16,
    device: torch.device | str = "cpu",
    watch: Watch = quiet,
) -> Latents:
    """Encode pictures by an autoencoder of `diffusers` into a folder, which is complete or not there at all.

    Args:
        data: pictures, as of `open_data`; their labels and the names of their classes are kept.
        vae: folder or name of the autoencoder, or of a pipeline with one.
        out: the folder, which must not exist.
        resolution: of the pictures, as of `open_data`.
        batch: pictures at a time.
        device: of the autoencoder.
        watch: progress callback.

    Returns:
        The latents, as `--data OUT` gives them.

    Raises:
        ValueError: no such pictures or autoencoder, they do not go together, or `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    if batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}.")
    codec, source = Codec(open_vae(vae, device)), open_data(data, resolution=resolution, watch=watch)
    if not isinstance(source, Images):
        raise ValueError(f"{data} has no pictures: give a data set of images, which an autoencoder encodes.")
    parts, total = list[Tensor](), len(source.pixels)
    for first in range(0, total, batch):
        pictures = source.pixels[first : first + batch].float() / HALF_RANGE - 1
        parts.append(_encoded(codec, pictures))
        if not first:
            _check_size(codec, parts[0], pictures)
        watch(f"{min(first + batch, total):,} of {total:,}", min(first + batch, total) / total)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        new = Path(temporary) / "latents"
        new.mkdir()
        codec.vae.save_pretrained(new / VAE)
        save_latents(
            new / FILE, torch.cat(parts), source.labels, names=_names(source), label_type=source.units.label_type
        )
        sync_folder(new)
        new.rename(out)
        sync_folder(out.parent)
    return open_latents(str(out))


def _encoded(codec: Codec, pictures: Tensor) -> Tensor:
    """The latents of a few pictures.

    Raises:
        ValueError: pictures of another number of channels, or latents that are not finite.
    """
    if pictures.shape[1] == 1 and codec.channels == 3:
        pictures = pictures.expand(-1, 3, -1, -1)
    if pictures.shape[1] != codec.channels:
        raise ValueError(f"the autoencoder takes {codec.channels} channels, the pictures have {pictures.shape[1]}.")
    z = codec.encode(pictures)
    if not bool(z.isfinite().all()):
        raise ValueError("the autoencoder gives latents that are not finite: take another, or another --device.")
    return z


def _check_size(codec: Codec, z: Tensor, pictures: Tensor) -> None:
    """Refuse pictures of a size that the autoencoder does not give back."""
    size, back = (" x ".join(map(str, x.shape[2:])) for x in (pictures, codec.decode(z[:1])))
    if size != back:
        raise ValueError(
            f"pictures of {size} do not decode to that size, but to {back}: give "
            "--resolution, a multiple of its factor."
        )


def _names(source: Images) -> tuple[str, ...]:
    """The names of the classes; their numbers where some class has no rows and none has a name."""
    classes = source.classes or 0
    return source.units.names or (tuple(map(str, range(classes))) if source.labels is not None else ())
