"""Frames and pixels of the latents of Wan's VAE."""

import math

TEMPORAL_STRIDE = 4  # pixel frames per latent frame, after the first
SPATIAL_STRIDE = 16  # pixels per token side: VAE 8, patch 2


def latent_frames(num_frames: int) -> int:
    """Count the latent frames of pixel frames: the first stands alone, then four share one."""
    return (num_frames - 1) // TEMPORAL_STRIDE + 1


def pixel_frames(num_latent_frames: int) -> int:
    """Count the pixel frames of latent frames from the start of a video."""
    return max(0, (num_latent_frames - 1) * TEMPORAL_STRIDE + 1)


def first_latent(frame: float) -> int:
    """Index of the first latent frame that shows nothing before a pixel frame."""
    return math.ceil((frame - 1) / TEMPORAL_STRIDE) + 1 if frame > 0 else 0
