"""Structural similarity of videos."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from .frames import Video, measure_frames

WINDOW = 11
SIGMA = 1.5


def ssim(generated: Video, reference: Video) -> tuple[float, Tensor]:
    """SSIM: the video's, and that of each frame, ``[frames]``; at most 1, higher is closer.

    Gaussian window of 11 x 11 with sigma 1.5, around every pixel of every colour channel, with the frame
    reflected at its borders; a video's SSIM is the mean over its frames. In single precision, flat regions
    err by up to 3e-4.

    This is torchmetrics' ``structural_similarity_index_measure`` frame by frame, with its defaults (``k1``
    0.01, ``k2`` 0.03) and a data range of 1; torchmetrics' class has the same mean over frames.

    Args:
        generated, reference: ``[frames, height, width, 3]`` of one shape, uint8 or floating point in [0, 1];
            at least 11 pixels high and wide.

    Raises:
        ValueError: the shapes differ, or a video is of another shape, type or range.
    """
    return measure_frames(_ssim, generated, reference)


def _ssim(generated: Tensor, reference: Tensor) -> Tensor:
    if min(generated.shape[2:]) < WINDOW:
        raise ValueError(
            f"SSIM needs frames of at least {WINDOW} x {WINDOW}, got {list(generated.shape[2:])}."
        )
    # TF32 is too coarse for variances, which are small differences of large numbers.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        values = structural_similarity_index_measure(
            generated, reference, sigma=SIGMA, kernel_size=WINDOW, data_range=1.0, reduction="none"
        )
    return values.reshape(-1)
