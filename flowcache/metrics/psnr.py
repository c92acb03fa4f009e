"""Peak signal-to-noise ratio of videos."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

#: dB at which a frame counts as identical, so that a mean over frames stays finite
CEILING = 100.0


def psnr(generated: Tensor, reference: Tensor) -> Tensor:
    """PSNR of each frame in dB, at most 100; the mean over frames is the video's.

    Args:
        generated, reference: ``[frames, channels, height, width]`` in [0, 1], of one shape.

    Raises:
        ValueError: the shapes differ.
    """
    if generated.shape != reference.shape:
        raise ValueError(f"generated has shape {tuple(generated.shape)}, reference {tuple(reference.shape)}.")
    values = peak_signal_noise_ratio(generated, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return torch.nan_to_num(values, posinf=CEILING).clamp_max(CEILING)
