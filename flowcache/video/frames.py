"""Frames and images: reading through Pillow, and conversions between arrays, tensors and images."""

import logging
from pathlib import Path
from warnings import catch_warnings

import numpy as np
import torch
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..user_files import check_is_file, reading

logger = logging.getLogger(__name__)

Frames = NDArray[np.uint8]

#: Conversion between YUV and RGB that rounds to nearest; swscale's default darkens a video with each generation.
EXACT = Interpolation.LANCZOS | Interpolation.ACCURATE_RND
EXACT |= Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


def to_uint8(video: Tensor) -> Frames:
    """``[3, frames, height, width]`` in [-1, 1] to ``[frames, height, width, 3]`` in 0..255."""
    scaled = ((video.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def to_float(frames: Frames) -> Tensor:
    """``[frames, height, width, 3]`` in 0..255 to ``[3, frames, height, width]`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def resize_and_crop(frames: Frames, height: int, width: int) -> Frames:
    """Scale frames ``[frames, h, w, 3]`` to cover ``height`` x ``width``, and crop evenly."""
    if frames.shape[1:3] == (height, width):
        return frames
    fitted = [ImageOps.fit(Image.fromarray(f), (width, height), Image.Resampling.LANCZOS) for f in frames]
    return np.stack([np.asarray(image) for image in fitted])


def scale_frames(frames: Frames, scale: float) -> list[Image.Image]:
    """Enlarge frames for a picture by whole pixels, without interpolation, or reduce them."""
    height, width = (max(1, round(scale * side)) for side in frames.shape[1:3])
    filtering = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return [Image.fromarray(frame).resize((width, height), filtering) for frame in frames]


def over_black(pixels: Frames) -> Frames:
    """Compose ``[height, width, 4]`` with straight alpha over black: ``[height, width, 3]``."""
    return (pixels[..., :3] * (pixels[..., 3:] / 255)).round().astype(np.uint8)


def read_image(path: str | Path) -> Frames:
    """Read an image as ``to_pixels`` does; raise ValueError where it is missing or unreadable."""
    check_is_file(path)
    with catch_warnings(action="ignore"), reading(path, "an image"), Image.open(path) as image:
        # phones write photos as MPO, with a preview behind them
        if getattr(image, "is_animated", False) and image.format != "MPO":
            logger.warning("%s has several frames; the first is used.", path)
        return to_pixels(image, str(path))


def to_pixels(image: Image.Image, name: str) -> Frames:
    """Convert an image to pixels ``[height, width, 3]``, upright, over black; ValueError for an unknown range."""
    upright = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # one channel of more than 8 bits
        if image.mode == "I" and image.format not in ("PPM", "PNG"):  # which Pillow scales to 16 bits
            raise ValueError("whole numbers of 32 bits have no known range; save it with 8 or 16 bits")
        bits = getattr(image, "tag_v2", {}).get(258, (16,))  # BitsPerSample of a TIFF
        values, full = np.asarray(upright), 1.0 if image.mode == "F" else 2.0 ** bits[0] - 1
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
