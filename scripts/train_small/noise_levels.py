"""Noise levels to train diffusion forcing with, the ones that sampling meets among them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from skyreels_v2.solver import noise_grid

BLOCK = 5  # latent frames


def draw_levels(rng: np.random.Generator, num_frames: int, causal: bool) -> Tensor:
    """A noise level for every latent frame, ``[frames]``, 0 (clean) to 1 (not begun).

    Half are rows of a staircase as sampling walks it, the rest are one level for each block or one for all.
    Then some samples get given frames: a clean or slightly noisy first block, a clean first frame, or clean
    first and last frames.
    """
    num_blocks = -(-num_frames // BLOCK)
    kind = rng.random()
    if kind < 0.5:
        levels = _staircase(rng, num_blocks)
    elif kind < 0.8:
        levels = _shifted(rng.random(num_blocks), rng)
    else:
        levels = np.repeat(_shifted(rng.random(1), rng), num_blocks)
    frames = np.repeat(levels, BLOCK)[:num_frames]
    return torch.from_numpy(_with_given(rng, frames, causal)).float()


def is_trained_on(levels: Tensor) -> Tensor:
    """Where there is something to learn: not where noise is too weak to see, nor before the first step."""
    return (levels > 0.02) & (levels < 1)


def _staircase(rng: np.random.Generator, num_blocks: int) -> np.ndarray:
    steps, lag = int(rng.choice([30, 50])), int(rng.choice([3, 5, 5, 10]))
    grid = noise_grid(steps, float(rng.choice([3, 5, 8, 8])))
    row = int(rng.integers(steps + (num_blocks - 1) * lag))
    # what a finished block shows: nothing left, or the noise of its last step, as its cached keys do
    finished = 0.0 if rng.random() < 0.5 else grid[-2]
    places = [row - lag * block for block in range(num_blocks)]
    return np.array([1.0 if p < 0 else grid[p] if p < steps else finished for p in places])


def _shifted(uniform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shift = np.exp(rng.uniform(0, np.log(8)))
    return np.clip(shift * uniform / (1 + (shift - 1) * uniform), 0.002, 0.999)


def _with_given(rng: np.random.Generator, frames: np.ndarray, causal: bool) -> np.ndarray:
    kind = rng.random()
    if kind < 0.25 and len(frames) > BLOCK:
        frames[:BLOCK] = rng.choice([0.0, 0.02])
    elif kind < 0.40:
        frames[0] = 0.0
    elif kind < 0.45 and not causal and len(frames) > 1:
        frames[0] = frames[-1] = 0.0
    return frames
