"""Videos out: H.264 mp4 files that grow part by part."""

from __future__ import annotations

import logging
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from ..files import GrowingFile, replaced_when_done
from ..rates import exact_rate
from ..state import State
from ..user_files import reading
from .fragments import ENCODERS, FragmentEncoder, copy_packets
from .frames import Frames
from .reading import stream_video

logger = logging.getLogger(__name__)

#: Frames of a given video that are encoded at once.
_PART = 48


class VideoWriter:
    """Writes an H.264 mp4 part by part; the file takes its name only when all has gone well.

    A context manager. What is written grows as ``NAME.part.mp4`` beside it: whenever ``write`` returns, that
    file holds all frames so far and can be played, also if the process is killed right then. At the end its
    packets are copied, not encoded again, into a plain mp4 with its index in front, and the part is removed.
    After a failure an earlier file of that name stays, and so does the part with what it holds, if anything.
    The same parts give the same file, byte for byte. Where PyAV comes without libx264, the video is MPEG-4
    part 2.

    Args:
        path: the file.
        fps: frames per second.
        height, width: size that all frames must have, in pixels; default: that of the first frame.
        state: what ``state_dict`` gave of a writer that was killed; this one goes on from there, and the
            video will be the same.

    Raises:
        ValueError: ``fps`` is out of range; the part is not what ``state`` goes on from; at the
            end: no frame was written.
        OSError: the file cannot be written, at any time from entering to leaving (a full disk: ENOSPC).
    """

    def __init__(
        self,
        path: str | Path,
        fps: float | Fraction,
        height: int | None = None,
        width: int | None = None,
        *,
        state: State | None = None,
    ) -> None:
        self._path, self._fps = Path(path), exact_rate(fps)
        self._size = (height, width)
        self._encoder: FragmentEncoder | None = None
        self._num_frames = 0
        self._state = state

    @property
    def part_path(self) -> Path:
        """Where the video grows."""
        return part_of(self._path)

    def __enter__(self) -> VideoWriter:
        # Another run of that name keeps its own file, which has no name any more.
        self._part = GrowingFile(self.part_path, self._state["part"] if self._state else None)
        if self._state:
            self._size, self._num_frames = self._state["size"], self._state["num_frames"]
            self._encoder = self._new_encoder(*self._size)
            self._encoder.num_parts, self._encoder.num_frames = self._state["num_parts"], self._num_frames
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        finished = False
        with closing(self._part):
            try:
                if failure is None:
                    self._finish()
                    finished = True
            finally:
                if finished or not self._num_frames:
                    self._part.remove()
                else:
                    logger.warning("What was finished of the video is in %s.", self.part_path)

    def write(self, frames: Frames | Tensor) -> None:
        """Append frames, uint8 ``[frames, height, width, 3]``; odd sizes lose their last row or column.

        Raises:
            ValueError: the frames are of another type or shape, or of another size than those before.
        """
        if isinstance(frames, Tensor):
            frames = frames.cpu().numpy()
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(
                f"frames must be uint8 [frames, height, width, 3], got {frames.dtype} {list(frames.shape)}."
            )
        size = frames.shape[1:3]
        if any(wanted not in (None, got) for wanted, got in zip(self._size, size, strict=True)):
            raise ValueError(f"frames must all have height and width {self._size}, got {size}.")
        if self._encoder is None:
            self._size = size
            self._encoder = self._new_encoder(*size)
        if len(frames):
            self._part.append(self._encoder.encode(frames[:, : self._encoder.height, : self._encoder.width]))
            self._num_frames += len(frames)

    def write_video(self, path: Path) -> None:
        """Append a whole video, at its own speed and in this one's height and width, which must be given.

        Packets with this writer's encoding, such as those of its own files, are copied; other videos are
        encoded again.

        Raises:
            ValueError: it cannot be read.
        """
        if self._encoder is None:
            self._encoder = self._new_encoder(*self._size)
        with reading(path, "a video"):
            copied = self._encoder.copy(path)
        if copied is not None:
            self._part.append(copied)
            self._num_frames = self._encoder.num_frames
            return
        logger.info("%s is encoded again, as its size, rate or encoding differs.", path)
        frames = stream_video(path, self._fps, self._size)
        while part := list(islice(frames, _PART)):
            self.write(np.stack(part))

    def state_dict(self) -> State:
        """What is needed to go on behind the last frames; they are on the disk by then.

        Raises:
            RuntimeError: there is no frame so far.
        """
        if self._encoder is None:
            raise RuntimeError("state_dict has nothing to tell before the first frame")
        return {
            "part": self._part.state_dict(),
            "size": tuple(self._size),
            "num_frames": self._num_frames,
            "num_parts": self._encoder.num_parts,
        }

    def _new_encoder(self, height: int, width: int) -> FragmentEncoder:
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        if encoder != "libx264":
            logger.warning("PyAV comes without libx264; %s is encoded with %s.", self._path, encoder)
        return FragmentEncoder(encoder, self._fps, height - height % 2, width - width % 2)

    def _finish(self) -> None:
        if not self._num_frames:
            raise ValueError(f"{self._path} was to be written without a single frame.")
        self._part.file.seek(0)
        with replaced_when_done(self._path) as temporary:
            copy_packets(self._part.file, temporary)


def part_of(path: Path) -> Path:
    """Where a video of that path grows while it is written."""
    return path.with_name(f"{path.stem}.part.mp4")
