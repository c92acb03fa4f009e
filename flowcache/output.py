"""What a generation gives, whole or part by part, and how it becomes a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .resume import ResumeFile
from .state import State
from .trace import Trace
from .video import VideoWriter, to_uint8


@dataclass(frozen=True)
class VideoPart:
    """New frames of a video.

    Attributes:
        frames: ``[3, frames, height, width]`` in [-1, 1].
        latents: of those frames, ``[channels, frames', h, w]``.
        state: gives what the stream needs to go on behind this part; to be called, and what it gives to be
            saved, before the next part is asked for. None where it cannot go on from.
    """

    frames: Tensor
    latents: Tensor
    state: Callable[[], State] | None = None


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
        # without what the streams would go on from
        parts = [replace(part, state=None) for part in parts]
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
    before: Path | None = None,
    size: tuple[int, int] | None = None,
    skip: int = 0,
    resume: ResumeFile | None = None,
    state: State | None = None,
) -> None:
    """Write a video, part by part as it comes; the file takes its name when it is whole.

    Args:
        parts: of the video; with ``state``, those behind where it was saved.
        path: of the mp4.
        fps: frames per second.
        trace: gets the time that writing takes.
        before: video to write first; needs ``size``.
        size: height and width of the video; None: those of its first part.
        skip: frames at the start of the parts to leave out.
        resume: where to save the state behind each part, as soon as that is on the disk; None: nowhere.
        state: what was saved there, to go on from: ``stream`` is that of the parts.

    Raises:
        ValueError: there is no frame to write.
        OSError: the file cannot be written.
    """
    with VideoWriter(path, fps, *(size or ()), state=state and state["video"]) as writer:
        if state is not None:
            skip = state["skip"]
        elif before is not None:
            writer.write_video(before)
        for part in parts:
            frames = to_uint8(part.frames)
            with trace.timer("write"):
                writer.write(frames[skip:])
            skip = max(0, skip - len(frames))
            if resume is not None and part.state is not None:
                with trace.timer("save"):
                    resume.save({"stream": part.state(), "video": writer.state_dict(), "skip": skip}, trace)
    if resume is not None:
        resume.remove()
