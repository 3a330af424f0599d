"""Feature networks: what turns images into the points that Fréchet distance, kernel distance and precision compare."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..system.progress import Watch as Watch
from .efficientnet import EfficientNetLite0
from .inception import Inception

CHOICES = "'efficientnet-lite0', 'efficientnet-lite0:64', 'efficientnet-lite0:64:bf16', 'inception', 'inception:FILE'"


class Features(Protocol):
    """A feature network: any object with these three attributes.

    Attributes:
        name: names all that changes the features, such as the size of the image. It stands beside every metric, and
            metrics of two names are never compared.
        dim: D, the number of features.
    """

    @property
    def name(self) -> str:
        """What distances in these features are called by, such as `efficientnet-lite0 at 64 px`."""
        ...

    @property
    def dim(self) -> int:
        """D, the number of features."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor:
        """Features float32 `(B, D)` of images uint8 `(B, 3, H, W)`."""
        ...


@runtime_checkable
class Checksummed(Protocol):
    """A feature network with a checksum of its weights, so that its features of images may be kept in a file."""

    @property
    def checksum(self) -> str:
        """SHA-256 of the weights."""
        ...


def open_features(spec: str = "efficientnet-lite0") -> EfficientNetLite0 | Inception:
    """A feature network by its name.

    Args:
        spec: "efficientnet-lite0", at 128 pixels; "efficientnet-lite0:64", at 64 (at least 32);
            "efficientnet-lite0:64:bf16", quicker; "inception", the FID's; "inception:FILE", its weights in a file.

    Raises:
        ValueError: there is no such network, or its weights cannot be had.
    """
    name, _, rest = spec.partition(":")
    if name == "inception":
        return Inception(rest or None)
    size, _, precision = rest.partition(":")
    if name != "efficientnet-lite0" or (rest and not size.isdecimal()):
        raise ValueError(f"there are no features {spec!r}: choose one of {CHOICES}.")
    return EfficientNetLite0(int(size or 128), precision or "fp32")


def extract(
    features: Features,
    images: Tensor,
    *,
    batch: int = 32,
    device: torch.device | str | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Features of many images, a batch at a time.

    Args:
        features: the network. A `torch.nn.Module` is moved to `device`; another object must take images there.
        images: pixels, uint8, `(N, C, H, W)` with C of 1 or 3, on any device; grey ones are repeated to three channels.
        batch: images at a time; on a CPU few are quickest, on a GPU take hundreds.
        device: where to compute; by default where the images are.
        watch: progress callback.

    Returns:
        `(N, features.dim)`, float32, on the CPU.

    Raises:
        ValueError: the images are no such pixels, or there are none; `batch` is below 1; the network returned another
            shape, or values that are not finite.
    """
    check_pixels(images)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}: 32 is a good number on a CPU.")
    device = images.device if device is None else torch.device(device)
    if isinstance(features, nn.Module):
        features.to(device)
    result = torch.empty(len(images), features.dim)
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # metrics of a GPU and of a CPU are compared
    with torch.inference_mode(), exact:
        for start in range(0, len(images), batch):
            part = images[start : start + batch].to(device)
            values = features(part.expand(-1, 3, -1, -1))
            if values.shape != (len(part), features.dim):
                raise ValueError(
                    f"the features {features.name!r} must return ({len(part)}, {features.dim}) for {len(part)} "
                    f"images, got {tuple(values.shape)}: pool over pixels, and mend dim."
                )
            result[start : start + batch] = values
            if watch is not None:
                watch(f"features, {features.name}", min((start + batch) / len(images), 1.0))
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"the features {features.name!r} of some images are not finite: the network overflows.")
    return result


def spread(total: int, number: int) -> Tensor:
    """`number` of `total` rows, from the first to the last at equal distances, `(number,)`; all of them if fewer."""
    return torch.linspace(0, total - 1, min(number, total), dtype=torch.float64).round().long()


def check_pixels(images: Tensor) -> None:
    """Refuse tensors that are no images of 0..255, uint8 `(N, C, H, W)` with C of 1 or 3.

    Raises:
        ValueError: the images are not uint8 `(B, 3, H, W)`.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"images must be uint8 (N, C, H, W) with C of 1 or 3 and N at least 1, got {images.dtype} "
            f"{tuple(images.shape)}: use units.to_pixels on what a network made."
        )
