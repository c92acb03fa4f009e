"""Images in, through Pillow."""

from __future__ import annotations

import logging
from pathlib import Path
from warnings import catch_warnings

import numpy as np
from PIL import Image, ImageOps

from ..user_files import check_is_file, reading
from .frames import Frames, over_black

logger = logging.getLogger(__name__)


def read_image(path: str | Path) -> Frames:
    """Read an image as ``to_pixels`` does; raise ValueError where it is missing or unreadable."""
    check_is_file(path)
    with catch_warnings(action="ignore"), reading(path, "an image"), Image.open(path) as image:
        # phones write photos as MPO, with a preview behind them
        if getattr(image, "is_animated", False) and image.format != "MPO":
            logger.warning("%s has several frames; the first is used.", path)
        return to_pixels(image, str(path))


def to_pixels(image: Image.Image, name: str) -> Frames:
    """Convert an image to pixels ``[height, width, 3]``, upright, its transparent parts over black.

    Raises ValueError for values of an unknown range.
    """
    upright = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values, full = np.asarray(upright), _full_scale(image)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= full):  # not true of NaN either
            raise ValueError(f"its values must lie between 0 and {full:g}, they go from {low:g} to {high:g}")
        grey = (values * (255 / full)).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if not image.has_transparency_data:
        return np.array(upright.convert("RGB"))
    pixels = np.asarray(upright.convert("RGBA"))
    if pixels[..., 3].min() < 255:
        logger.warning("%s is transparent in parts; they are composed over black.", name)
    return over_black(pixels)


def _full_scale(image: Image.Image) -> float:
    """Return the value of white in an image of one channel with more than 8 bits."""
    if image.mode == "F":
        return 1.0
    if image.mode == "I" and image.format not in ("PPM", "PNG"):  # which Pillow scales to 16 bits
        raise ValueError("whole numbers of 32 bits have no known range; save it with 8 or 16 bits")
    bits = getattr(image, "tag_v2", {}).get(258, (16,))  # BitsPerSample of a TIFF
    return 2.0 ** bits[0] - 1
