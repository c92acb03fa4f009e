"""Peak signal-to-noise ratio of videos."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from .frames import Video, measure_frames

#: dB at which a frame counts as identical, so that a mean over frames stays finite.
CEILING = 100.0


def psnr(generated: Video, reference: Video) -> tuple[float, Tensor]:
    """PSNR in dB: the video's, and that of each frame, ``[frames]``; higher is closer.

    Identical frames have an infinite PSNR. Every frame counts with at most 100 dB, identical ones with
    just that, and a video's PSNR is the mean over its frames; so identical videos have 100 dB.

    Of a frame, this is torchmetrics' ``peak_signal_noise_ratio`` with a data range of 1, over all pixels and
    colours at once. Of a video it is not that of torchmetrics' class, which takes the PSNR of the mean error
    over all frames, where the worst of them decide.

    Args:
        generated, reference: ``[frames, height, width, 3]`` of one shape, uint8 or floating point in [0, 1].

    Raises:
        ValueError: the shapes differ, or a video is of another shape, type or range.
    """
    return measure_frames(_psnr, generated, reference)


def _psnr(generated: Tensor, reference: Tensor) -> Tensor:
    values = peak_signal_noise_ratio(generated, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return torch.nan_to_num(values, posinf=CEILING).clamp_max(CEILING)
