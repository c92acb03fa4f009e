"""Parts of a video as a generation yields them, and how they become a file."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

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
        state: gives the state from which the stream resumes behind this part; to be called, and its result
            saved, before the next part is requested. None where the stream cannot resume.
    """

    frames: Tensor
    latents: Tensor
    state: Callable[[], State] | None = None


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
    """Write a video part by part; the file takes its name when it is whole.

    Args:
        parts: of the video; with ``state``, those behind it.
        trace: gets the time of writing.
        before: video to write first; needs ``size``.
        size: height and width of the video; None: those of its first part.
        skip: frames at the start of the parts to leave out.
        resume: where to save the state behind each part, once the part is on disk.
        state: saved state to resume from.
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
