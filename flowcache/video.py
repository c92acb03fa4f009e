"""Videos and images in and out, through PyAV and Pillow."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .files import GrowingFile, replaced_when_done
from .fragments import ENCODERS, FragmentEncoder, copy_packets
from .state import State

logger = logging.getLogger(__name__)

Frames = NDArray[np.uint8]


def to_uint8(video: Tensor) -> Frames:
    """``[3, frames, height, width]`` in [-1, 1] to ``[frames, height, width, 3]`` in 0..255."""
    scaled = ((video.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def to_float(frames: Frames) -> Tensor:
    """``[frames, height, width, 3]`` in 0..255 to ``[3, frames, height, width]`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


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
        ValueError: ``fps`` is not a positive number; the part is not what ``state`` goes on from; at the
            end: no frame was written.
        OSError: the file cannot be written, at any time from entering to leaving (a full disk: ENOSPC).
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        height: int | None = None,
        width: int | None = None,
        *,
        state: State | None = None,
    ) -> None:
        if not (fps > 0 and math.isfinite(fps)):
            raise ValueError(f"fps must be a positive number, got {fps}.")
        self._path = Path(path)
        self._fps = Fraction(fps).limit_denominator(1001)
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


class VideoInfo(NamedTuple):
    """What the header of a video says; ``num_frames`` is None where it says nothing of it."""

    num_frames: int | None
    fps: float
    height: int
    width: int


def probe_video(path: str | Path) -> VideoInfo:
    """Length, rate and size of a video from its header; no frame is decoded, no rotation applied.

    Raises:
        ValueError: the file is missing, unreadable or holds no video.
    """
    _check_exists(path)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 0)
            return VideoInfo(stream.frames or None, fps, stream.height, stream.width)
    except (OSError, IndexError, ValueError, av.FFmpegError) as error:
        raise ValueError(f"{path} cannot be read as a video.") from error


def read_video(path: str | Path, size: tuple[int, int] | None = None) -> tuple[Frames, float]:
    """Frames ``[frames, height, width, 3]``, turned the way the camera was held, and frames per second.

    Args:
        path: the file.
        size: height and width to scale and crop each frame to as soon as it is read; None leaves them.

    Raises:
        ValueError: the file is missing, unreadable or holds no frame.
    """
    frames = [
        frame if size is None else resize_and_crop(frame[None], *size)[0] for frame in stream_video(path)
    ]
    return np.stack(frames), probe_video(path).fps


def stream_video(path: str | Path, fps: float | None = None) -> Iterator[Frames]:
    """Frames ``[height, width, 3]`` one by one, turned the way the camera was held.

    Args:
        path: the file.
        fps: give the frame that is shown at each of that many times a second, by the frames' time stamps, so
            that some are left out or repeated; None: each once.

    Raises:
        ValueError: the file is missing, unreadable or holds no frame.
    """
    _check_exists(path)
    found = False
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            decoded = container.decode(stream)
            for frame in decoded if fps is None else _at_rate(decoded, fps, stream.average_rate):
                found = True
                yield _upright(frame)
    except (OSError, IndexError, ValueError, av.FFmpegError) as error:
        raise ValueError(f"{path} cannot be read as a video.") from error
    if not found:
        raise ValueError(f"{path} holds no frame.")


def _at_rate(frames: Iterable[av.VideoFrame], fps: float, stored: Fraction | None) -> Iterator[av.VideoFrame]:
    """The frame that is shown at each of ``fps`` times a second; ``stored`` is the rate of the frames."""
    stored = float(stored or fps)
    start = shown = None
    count, time = 0, 0.0
    for place, frame in enumerate(frames):
        stamp = place / stored if frame.time is None else frame.time
        start = stamp if start is None else start
        time = stamp - start
        # Time stamps are rounded, by some formats to milliseconds.
        while shown is not None and count / fps < time - 1e-3:
            yield shown
            count += 1
        shown = frame
    while shown is not None and count / fps < time + 1 / stored - 1e-3:
        yield shown
        count += 1


def _upright(frame: av.VideoFrame) -> Frames:
    """Pixels ``[height, width, 3]``; the file says by how much to turn them counterclockwise."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def read_image(path: str | Path) -> Frames:
    """Pixels ``[height, width, 3]`` of an image, turned the way its camera was held.

    Raises:
        ValueError: the file is missing or unreadable.
    """
    _check_exists(path)
    try:
        with Image.open(path) as image:
            return np.array(_eight_bit(ImageOps.exif_transpose(image)).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image.") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, which Pillow would clip."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def _check_exists(path: str | Path) -> None:
    try:
        exists = Path(path).is_file()
    except OSError:  # longer than a path may be
        exists = False
    if not exists:
        raise ValueError(f"{path} does not exist or is not a file.")


def resize_and_crop(frames: Frames, height: int, width: int) -> Frames:
    """Scale frames ``[frames, h, w, 3]`` to cover ``height`` x ``width`` and cut off the overhang evenly."""
    if frames.shape[1:3] == (height, width):
        return frames
    fitted = [ImageOps.fit(Image.fromarray(f), (width, height), Image.Resampling.LANCZOS) for f in frames]
    return np.stack([np.asarray(image) for image in fitted])


def contact_sheet(
    videos: Mapping[str, Frames], path: str | Path, columns: int = 8, scale: float | None = None
) -> None:
    """Save a PNG with a row for each video: its label above evenly spaced frames, first and last included.

    Args:
        videos: label to frames ``[frames, height, width, 3]``; sizes and lengths may differ.
        path: of the picture; an earlier one stays if this fails.
        columns: the most frames in a row; a shorter video shows each frame once.
        scale: enlargement of a frame; default: the widest comes to about 240 pixels.

    Raises:
        ValueError: there is no video, or one without a frame.
    """
    if not videos or any(len(frames) == 0 for frames in videos.values()):
        raise ValueError("A contact sheet needs at least one video, and at least one frame of each.")
    if scale is None:
        scale = 240 / max(frames.shape[2] for frames in videos.values())
    rows = [_sheet_row(label, frames, columns, scale) for label, frames in videos.items()]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with replaced_when_done(path) as temporary:
        sheet.save(temporary, format="PNG")


def _sheet_row(label: str, frames: Frames, columns: int, scale: float) -> Image.Image:
    """One video of a contact sheet."""
    height, width = (max(1, round(scale * side)) for side in frames.shape[1:3])
    margin, gap, title = 8, 3, 24
    shown = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
    font = ImageFont.load_default(size=15)
    total_width = max(len(shown) * (width + gap) - gap, math.ceil(font.getlength(label))) + 2 * margin
    row = Image.new("RGB", (total_width, title + height + margin), "white")
    ImageDraw.Draw(row).text((margin, title - 6), label, fill="black", font=font, anchor="ls")
    # Whole pixels when enlarged, so that the picture shows what is there and nothing in between.
    filtering = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for column, index in enumerate(shown):
        picture = Image.fromarray(frames[index]).resize((width, height), filtering)
        row.paste(picture, (margin + column * (width + gap), title))
    return row
