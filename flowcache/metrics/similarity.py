"""PSNR, SSIM and LPIPS of videos, frame by frame.

Each takes two videos ``[frames, height, width, 3]`` of one shape, uint8 or floating point in [0, 1], and returns the
mean over the frames and the value of each frame, ``[frames]``. It raises ValueError for other videos.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ..environment import Unavailable, require

Video = Tensor | NDArray[np.generic]

#: Frames measured at once: enough to keep a device busy, few enough for the memory of a laptop.
BATCH_FRAMES = 8
#: dB of identical frames, and the most that any frame counts, so that means stay finite.
CEILING = 100.0


def psnr(generated: Video, reference: Video) -> tuple[float, Tensor]:
    """PSNR in dB, at most 100; higher is closer. torchmetrics' class takes that of the mean error over all frames."""

    def measure(ours: Tensor, theirs: Tensor) -> Tensor:
        values = peak_signal_noise_ratio(ours, theirs, data_range=1.0, reduction="none", dim=(1, 2, 3))
        return torch.nan_to_num(values, posinf=CEILING).clamp_max(CEILING)

    return measure_frames(measure, generated, reference)


def ssim(generated: Video, reference: Video) -> tuple[float, Tensor]:
    """SSIM, at most 1; higher is closer. In single precision, flat regions err by up to 3e-4.

    torchmetrics' defaults: Gaussian window of 11 x 11 with sigma 1.5, borders reflected.
    """

    def measure(ours: Tensor, theirs: Tensor) -> Tensor:
        # TF32 is too coarse for variances, which are small differences of large numbers.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none").reshape(-1)

    return measure_frames(measure, generated, reference, least=11)


def load_lpips(device: torch.device | str = "cpu") -> Callable[[Video, Video], tuple[float, Tensor]]:
    """Load LPIPS (Zhang et al. 2018, arXiv 1801.03924): a function like ``psnr``; lower is closer.

    The first use downloads AlexNet's weights to the folder of ``torch.hub``; Unavailable where that fails.
    """
    require("torchvision", "LPIPS", "metrics")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", normalize=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise Unavailable(f"LPIPS needs AlexNet's weights, which cannot be downloaded: {reason}") from error
    network.to(device)

    def measure(ours: Tensor, theirs: Tensor) -> Tensor:
        return network(ours.to(network.device), theirs.to(network.device)).reshape(-1)

    return lambda generated, reference: measure_frames(measure, generated, reference, least=31)


def measure_frames(
    measure: Callable[[Tensor, Tensor], Tensor], generated: Video, reference: Video, least: int = 1
) -> tuple[float, Tensor]:
    """Apply ``measure`` to batches ``[frames, 3, height, width]`` in [0, 1], of sides of ``least`` pixels."""
    videos = torch.as_tensor(generated), torch.as_tensor(reference)
    ours, theirs = (list(video.shape) for video in videos)
    if ours != theirs:
        raise ValueError(f"Videos: expected one shape, got generated {ours} and reference {theirs}.")
    if len(ours) != 4 or ours[3] != 3 or 0 in ours:
        raise ValueError(f"Videos: expected [frames, height, width, 3], got {ours}.")
    if min(ours[1:3]) < least:
        raise ValueError(f"The metric needs frames of at least {least} x {least}, got {ours[1:3]}.")
    batches = zip(*(map(_unit_range, video.split(BATCH_FRAMES)) for video in videos), strict=True)
    values = torch.cat([measure(*pair).cpu() for pair in batches])
    return values.mean().item(), values


def _unit_range(frames: Tensor) -> Tensor:
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    elif not frames.is_floating_point():
        raise ValueError(f"Videos: expected uint8 or floating point, got {frames.dtype}.")
    low, high = frames.min().item(), frames.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"Floating-point videos must lie in [0, 1], got values from {low:g} to {high:g}.")
    return frames.float().permute(0, 3, 1, 2).contiguous()
