"""What a generation gives, whole or part by part, and how it becomes a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .trace import Trace
from .video import Frames, VideoWriter, to_uint8


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


def write_parts(
    parts: Iterable[VideoPart],
    path: Path,
    fps: float,
    trace: Trace,
    *,
    before: Frames | None = None,
    skip: int = 0,
) -> None:
    """Write a video, part by part as it comes; the file takes its name when it is whole.

    Args:
        parts: of the video.
        path: of the mp4.
        fps: frames per second.
        trace: gets the time that writing takes.
        before: frames ``[frames, height, width, 3]`` to write first.
        skip: frames at the start of the parts to leave out.

    Raises:
        ValueError: there is no frame to write.
        OSError: the file cannot be written.
    """
    with VideoWriter(path, fps) as writer:
        if before is not None:
            writer.write(before)
        for part in parts:
            frames = to_uint8(part.frames)
            with trace.timer("write"):
                writer.write(frames[skip:])
            skip = max(0, skip - len(frames))
