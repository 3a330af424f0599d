"""One image from its file or its bytes, by Pillow.

What has no meaning as 8 bits of grey or of red, green and blue is refused, not guessed at: transparency (over what?),
16 bits (which of them?), several frames (which one?) but of TIFF and GIF, whose first one is read.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from .pixels import Resolution, area_mean, is_multiple, middle, sides

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
FIRST_FRAME = ("MPO", "TIFF", "GIF")
"""Formats of which the first of several frames or pages is read."""
MAX_PIXELS = 2**27  # pixels of one image
GREY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def pillow() -> Any:
    """Pillow's `Image`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("images are read with Pillow: pip install 'flowmaps[images]'.") from error
    return Image


def decode(content: bytes | Path, where: str, resolution: Resolution = 0) -> np.ndarray:
    """An image as uint8 `(H, W)` if it is grey, `(H, W, 3)` if not.

    Args:
        content: of the file, or its path.
        where: name of the image in an error.
        resolution: crop it in its middle to the shape of this size and average it down to it; 0 leaves it as it is.

    Raises:
        ValueError: no such image, or one that is damaged, transparent, of more than 8 bits, or too small.
    """
    library = pillow()
    try:
        with library.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
            refusal, image = _converted(image)
    except Exception as error:  # Pillow and its formats raise errors of many kinds
        reason = (
            "it is no PNG, JPEG, BMP, WEBP, TIFF or GIF"
            if isinstance(error, library.UnidentifiedImageError)
            else str(error)
        )
        raise ValueError(f"{where} could not be read as an image ({' '.join(reason.split())}).") from None
    if refusal:
        raise ValueError(f"{where} {refusal}")
    size = sides(resolution)
    return np.array(image) if size is None else _resized(image, where, size)


def _converted(image: Any) -> tuple[str, Any]:
    """An empty message and the image in mode L or RGB; or the message of its refusal, and nothing."""
    if image.width * image.height > MAX_PIXELS:
        return f"has {image.width} x {image.height} pixels: make it smaller first.", None
    if image.mode in DEEP_MODES or any(";16B" in _raw_mode(tile[3]) for tile in image.tile):
        return (
            "has more than 8 bits a channel, of which 8 would be lost: save it as 8 bits first, for instance "
            "Image.fromarray((numpy.asarray(image) / 257).round().astype('uint8')).",
            None,
        )
    if image.format not in FIRST_FRAME and getattr(image, "n_frames", 1) > 1:
        return f"has {image.n_frames} frames: save the one that you mean.", None
    image.load()
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        return (
            "is transparent in places: put it on a background first, for instance "
            "Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA')).convert('RGB').",
            None,
        )
    if "exif" in image.info:  # a camera that was held upright
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return "", image.convert("L" if image.mode in GREY_MODES else "RGB")


def _raw_mode(arguments: Any) -> str:
    """How pixels lie in the file, `RGB;16B` for instance, of the arguments of Pillow's decoder."""
    return str(arguments[0]) if isinstance(arguments, tuple) and arguments else str(arguments)


def _resized(image: Any, where: str, size: tuple[int, int]) -> np.ndarray:
    if image.height < size[0] or image.width < size[1]:
        square = size[0] == size[1]
        asked, most = (
            (size[0], min(image.size)) if square else (f"{size[0]}x{size[1]}", f"{image.height}x{image.width}")
        )
        raise ValueError(
            f"{where} has {image.width} x {image.height} pixels, fewer than --resolution {asked}: choose a "
            f"--resolution of at most {most}, or leave the image out."
        )
    array = np.array(image)
    channels = array.transpose(2, 0, 1) if array.ndim == 3 else array
    cropped = middle(channels, *size)
    if is_multiple(cropped.shape[-2:], size):
        mean = area_mean(cropped, size)
        return mean.transpose(1, 2, 0) if mean.ndim == 3 else mean
    library = pillow()
    kept = library.fromarray(np.ascontiguousarray(cropped.transpose(1, 2, 0) if array.ndim == 3 else cropped))
    return np.array(kept.resize((size[1], size[0]), library.Resampling.BOX))
