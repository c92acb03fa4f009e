"""What a generation gives, whole or part by part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .trace import Trace


@dataclass(frozen=True)
class VideoPart:
    """New frames ``[3, frames, height, width]`` in [-1, 1]; their latents ``[channels, frames', h, w]``."""

    frames: Tensor
    latents: Tensor


@dataclass(frozen=True)
class VideoOutput:
    """A generated video.

    Attributes:
        frames: ``[3, frames, height, width]`` in [-1, 1].
        latents: normalised latents of those frames, ``[channels, frames', h, w]``.
        trace: what happened.
    """

    frames: Tensor
    latents: Tensor
    trace: Trace

    @classmethod
    def join(cls, parts: Iterable[VideoPart], trace: Trace) -> VideoOutput:
        """All parts in a row."""
        parts = list(parts)
        frames, latents = (
            torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("frames", "latents")
        )
        return cls(frames, latents, trace)
