"""Two videos, frame by frame, for metrics that compare them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Video = Tensor | NDArray[np.generic]

#: Frames measured at once: enough to keep a device busy, few enough for the memory of a laptop.
BATCH_FRAMES = 8


def measure_frames(
    measure: Callable[[Tensor, Tensor], Tensor], generated: Video, reference: Video
) -> tuple[float, Tensor]:
    """Apply a metric to each pair of frames; the mean over frames and the values ``[frames]``.

    Args:
        measure: maps two batches ``[frames, 3, height, width]`` in [0, 1] to values ``[frames]``.
        generated, reference: ``[frames, height, width, 3]``, uint8 or floating point in [0, 1].

    Raises:
        ValueError: the shapes differ or are others, or the values are of another type or range.
    """
    generated, reference = torch.as_tensor(generated), torch.as_tensor(reference)
    if generated.shape != reference.shape:
        raise ValueError(
            f"Videos must have one shape, got generated {list(generated.shape)} "
            f"and reference {list(reference.shape)}."
        )
    if generated.ndim != 4 or generated.shape[3] != 3 or generated.numel() == 0:
        raise ValueError(f"Videos must be [frames, height, width, 3], got {list(generated.shape)}.")
    batches = zip(generated.split(BATCH_FRAMES), reference.split(BATCH_FRAMES), strict=True)
    values = torch.cat([measure(_unit_range(ours), _unit_range(theirs)).cpu() for ours, theirs in batches])
    return values.mean().item(), values


def _unit_range(frames: Tensor) -> Tensor:
    """``[frames, height, width, 3]`` as float32 ``[frames, 3, height, width]`` in [0, 1]."""
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    elif not frames.is_floating_point():
        raise ValueError(f"Videos must be uint8 or floating point, got {frames.dtype}.")
    low, high = frames.min().item(), frames.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"Floating-point videos must lie in [0, 1], got values from {low:g} to {high:g}.")
    return frames.float().permute(0, 3, 1, 2).contiguous()
