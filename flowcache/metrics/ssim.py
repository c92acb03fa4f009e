"""Structural similarity of videos."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def ssim(generated: Tensor, reference: Tensor) -> Tensor:
    """SSIM of each frame (Gaussian window 11, sigma 1.5); the mean over frames is the video's.

    Args:
        generated, reference: ``[frames, channels, height, width]`` in [0, 1], of one shape.

    Raises:
        ValueError: the shapes differ.
    """
    if generated.shape != reference.shape:
        raise ValueError(f"generated has shape {tuple(generated.shape)}, reference {tuple(reference.shape)}.")
    return structural_similarity_index_measure(generated, reference, data_range=1.0, reduction="none")
