"""Frames as arrays, tensors and images."""

from __future__ import annotations

import numpy as np
import torch
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Frames = NDArray[np.uint8]

#: Conversion between YUV and RGB that rounds to nearest; swscale's default rounds down, so that a video
#: darkens with each generation.
EXACT = (
    Interpolation.LANCZOS
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


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
