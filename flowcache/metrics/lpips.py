"""Learned perceptual image patch similarity of videos (Zhang et al. 2018, arXiv 1801.03924)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..extras import Unavailable, require
from .frames import Video, measure_frames

#: Pixels below which AlexNet has nothing left to pool.
SMALLEST = 31


def load_lpips(device: torch.device | str = "cpu") -> Callable[[Video, Video], tuple[float, Tensor]]:
    """A function like ``psnr`` and ``ssim``: LPIPS of a video and its frames, ``[frames]``; lower is closer.

    torchmetrics' LPIPS on AlexNet, averaged over the frame; a video's LPIPS is the mean over its frames. The
    first use downloads AlexNet's weights to where ``torch.hub`` keeps them.

    Args:
        device: where the network runs; the videos may lie anywhere.

    Raises:
        Unavailable: torchvision or its weights cannot be had.
    """
    require("torchvision", "LPIPS", "metrics")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", normalize=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise Unavailable(f"LPIPS needs AlexNet's weights, which cannot be had: {reason}") from error
    return partial(measure_frames, partial(_lpips, network.to(device)))


def _lpips(network: Callable[[Tensor, Tensor], Tensor], generated: Tensor, reference: Tensor) -> Tensor:
    if min(generated.shape[2:]) < SMALLEST:
        raise ValueError(
            f"LPIPS needs frames of at least {SMALLEST} x {SMALLEST}, got {list(generated.shape[2:])}."
        )
    return network(generated.to(network.device), reference.to(network.device)).reshape(-1)
