"""Videos out: H.264 mp4 files that grow part by part, playable after each (fragmented mp4)."""

import io
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from ..files import GrowingFile, replaced_when_done
from ..registry import exact_rate
from ..state import State
from ..user_files import reading
from .frames import EXACT, Frames
from .reading import orientation, probe_video, stream_video

logger = logging.getLogger(__name__)

#: Encoders, best first, with settings at which their losses are hard to see (crf 10: imageio's quality 8). Without
#: frames that refer to later ones, so that times rise from 0 and a fragment needs no neighbour. With AVX-512, x264's
#: macroblock tree depends on earlier content of the heap; ``cpu-independent`` avoids it.
ENCODERS = {
    "libx264": {"crf": "10", "preset": "medium", "bf": "0", "x264-params": "cpu-independent=1"},
    "mpeg4": {"qmin": "2", "qmax": "3", "bf": "0"},
}
#: Numbers of H.273. The matrix of BT.601 is that of imageio's files and loses least of the colours, at half their
#: resolution; primaries and transfer are those of BT.709, as of sRGB.
BT601, BT709 = 6, 1

#: One fragment per file, its time counted from the start of the video, and nothing behind it.
_FRAGMENT = {
    "movflags": "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
    "avoid_negative_ts": "make_non_negative",
}
_PART = 48  # frames of a video read from a file that are encoded at once


@dataclass
class FragmentEncoder:
    """Encoder of parts that share only the numbers of parts and frames; the first has the file's header."""

    encoder: str
    fps: Fraction
    height: int  # even
    width: int  # even
    num_parts: int = 0
    num_frames: int = 0

    def encode(self, frames: Frames) -> bytes:
        """Encode frames ``[frames, height, width, 3]``, at least one, and return the bytes to append."""
        with self._new_part() as (file, container):
            stream = container.add_stream(self.encoder, rate=self.fps, options=ENCODERS[self.encoder])
            stream.height, stream.width, stream.pix_fmt = self.height, self.width, "yuv420p"
            stream.thread_count = 1  # the same file on every machine
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc = BT601, BT709, BT709
            context.color_range = ColorRange.MPEG
            colours = {"dst_colorspace": Colorspace.ITU601, "dst_color_range": ColorRange.MPEG}
            for place, frame in enumerate(frames, self.num_frames):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(format="yuv420p", interpolation=EXACT, **colours)
                picture.pts, picture.time_base = place, 1 / self.fps
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return self._finish_part(file, len(frames))

    def copy(self, path: Path) -> bytes | None:
        """Return the bytes that append a video's packets; None where their encoding differs."""
        with av.open(f"file:{path}") as source:
            stream = source.streams.video[0]
            sample = FragmentEncoder(self.encoder, self.fps, self.height, self.width)
            black = sample.encode(np.zeros((1, self.height, self.width, 3), np.uint8))
            with av.open(io.BytesIO(black)) as ours:
                if stream.codec_context.extradata != ours.streams.video[0].codec_context.extradata:
                    return None
            # which the container states, not the packets
            if (stream.sample_aspect_ratio or 1) != 1 or any(orientation(next(source.decode(stream)))):
                return None
            source.seek(0)
            packets = [packet for packet in source.demux(stream) if packet.dts is not None]
            if not packets or not packets[0].is_keyframe:
                return None
            for place, packet in enumerate(packets):
                regular = packet.pts == packet.dts and packet.pts * packet.time_base == place / self.fps
                if not regular or packet.is_corrupt or packet.is_discard:
                    return None
            with self._new_part() as (file, container):
                copied = container.add_stream_from_template(stream)
                copied.time_base = 1 / self.fps
                for place, packet in enumerate(packets, self.num_frames):
                    packet.stream, packet.time_base = copied, 1 / self.fps
                    packet.pts = packet.dts = place
                    packet.duration = 1
                    container.mux(packet)
            return self._finish_part(file, len(packets))

    @contextmanager
    def _new_part(self) -> Iterator[tuple[io.BytesIO, av.container.OutputContainer]]:
        file = io.BytesIO()
        options = _FRAGMENT | {"fragment_index": str(self.num_parts + 1)}
        with av.open(file, mode="w", format="mp4", options=options) as container:
            yield file, container

    def _finish_part(self, file: io.BytesIO, num_frames: int) -> bytes:
        """Count a part; return its bytes, without the header unless it is the first."""
        dropped = (b"ftyp", b"moov") if self.num_parts else ()
        self.num_parts += 1
        self.num_frames += num_frames
        return b"".join(box for name, box in _split_boxes(file.getvalue()) if name not in dropped)


def _split_boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and bytes of each top-level box of an mp4 (ISO/IEC 14496-12, section 4.2)."""
    while content:
        size = int.from_bytes(content[:4], "big")
        if size == 1:  # a 64-bit size follows the name
            size = int.from_bytes(content[8:16], "big")
        yield content[4:8], content[:size]
        content = content[size:]


class VideoWriter:
    """Context manager that writes an H.264 mp4 part by part; the file gets its name when it is complete.

    The frames grow as ``NAME.part.mp4`` beside it: whenever ``write`` returns, that file holds all frames so far and
    can be played, also if the process is killed then. At the end its packets are copied into a plain mp4 with its
    index in front, and the part is removed. After a failure an earlier file of that name stays, and so does the part.
    The same parts give the same file, byte for byte.

    ``height`` and ``width`` are those of all frames, by default of the first; ``state`` is the ``state_dict`` of a
    writer that was killed, to continue its file. Raises ValueError for a rate out of range, a part that is not the
    file of ``state`` and, at the end, no frame; OSError whenever the file cannot be written.
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
        self._path, self._fps, self._size, self._state = Path(path), exact_rate(fps), (height, width), state
        self.part_path = part_path(self._path)
        self._encoder: FragmentEncoder | None = None

    def __enter__(self) -> Self:
        # Another run of that name keeps its own file, which has no name any more.
        self._part = GrowingFile(self.part_path, self._state["part"] if self._state else None)
        if self._state:
            self._start_encoder(self._state["size"], self._state["num_parts"], self._state["num_frames"])
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        keep = self._part.length > 0
        with closing(self._part):
            try:
                if failure is None:
                    if not keep:
                        raise ValueError(f"{self._path}: expected at least one frame, got none.")
                    self._finish()
                    keep = False
            finally:
                if keep:
                    logger.warning("The finished part of the video is in %s.", self.part_path)
                else:
                    self._part.remove()

    def write(self, frames: Frames | Tensor) -> None:
        """Append frames, uint8 ``[frames, height, width, 3]``; odd sizes lose their last row or column."""
        frames = frames.cpu().numpy() if isinstance(frames, Tensor) else frames
        size, got = frames.shape[1:3], f"{frames.dtype} {list(frames.shape)}"
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames: expected uint8 [frames, height, width, 3], got {got}.")
        if any(wanted not in (None, got) for wanted, got in zip(self._size, size, strict=True)):
            raise ValueError(f"frames: expected height and width {self._size}, got {size}.")
        self._start_encoder(size)
        height, width = self._encoder.height, self._encoder.width
        if len(frames):
            self._part.append(self._encoder.encode(frames[:, :height, :width]))

    def write_video(self, path: Path) -> None:
        """Append a whole video, at its own speed and in this one's height and width, which must be given.

        Packets in this writer's encoding are copied; other videos are encoded again.
        """
        self._start_encoder(self._size)
        with reading(path, "a video"):
            copied = self._encoder.copy(path)
        if copied is not None:
            return self._part.append(copied)
        logger.info("%s is encoded again, as its size, rate or encoding differs.", path)
        frames = stream_video(path, self._fps, self._size)
        while part := list(islice(frames, _PART)):
            self.write(np.stack(part))

    def state_dict(self) -> State:
        """Flush the frames so far to the disk; return the state to continue from."""
        if self._encoder is None:
            raise RuntimeError("state_dict needs at least one frame.")
        counts = {"num_frames": self._encoder.num_frames, "num_parts": self._encoder.num_parts}
        return {"part": self._part.state_dict(), "size": tuple(self._size), **counts}

    def _start_encoder(self, size: tuple[int, int], *counts: int) -> None:
        """Make the encoder for frames of a size, the first time; ``counts`` are those of a writer that was killed."""
        if self._encoder is not None:
            return
        name = next(name for name in ENCODERS if name in av.codecs_available)
        if name != "libx264":
            logger.warning("PyAV comes without libx264; %s is encoded with %s.", self._path, name)
        self._size, (height, width) = size, size
        self._encoder = FragmentEncoder(name, self._fps, height - height % 2, width - width % 2, *counts)

    def _finish(self) -> None:
        """Copy the packets into a plain mp4 with its index in front."""
        self._part.file.seek(0)
        with (
            replaced_when_done(self._path) as temporary,
            av.open(self._part.file, mode="r") as fragments,
            av.open(str(temporary), mode="w", format="mp4", options={"movflags": "faststart"}) as container,
        ):
            stream = container.add_stream_from_template(fragments.streams.video[0])
            for packet in fragments.demux(video=0):
                if packet.dts is not None:  # the last one only says that there are no more
                    packet.stream = stream
                    container.mux(packet)


def enlarge_video(path: Path, factor: int) -> Path:
    """Copy a video to ``NAME.4x.mp4``, each pixel ``factor`` times as wide and high; returns that path.

    Players blur a video of few pixels when they enlarge it.
    """
    rate, enlarged = probe_video(path).fps, path.with_name(f"{path.stem}.{factor}x.mp4")
    frames = stream_video(path)
    with VideoWriter(enlarged, rate) as writer:
        while part := list(islice(frames, _PART)):
            writer.write(np.stack(part).repeat(factor, axis=1).repeat(factor, axis=2))
    return enlarged


def part_path(path: Path) -> Path:
    """Return the path at which a video of that path grows while it is written."""
    return path.with_name(f"{path.stem}.part.mp4")
