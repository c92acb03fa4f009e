"""Videos and images in and out, through PyAV and Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from .files import replaced_when_done

Frames = NDArray[np.uint8]


def to_uint8(video: Tensor) -> Frames:
    """``[3, frames, height, width]`` in [-1, 1] to ``[frames, height, width, 3]`` in 0..255."""
    scaled = ((video.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def to_float(frames: Frames) -> Tensor:
    """``[frames, height, width, 3]`` in 0..255 to ``[3, frames, height, width]`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


class VideoWriter:
    """Writes an H.264 mp4 frame by frame; the file takes its name only when all has gone well.

    Args:
        path: the file; an earlier one of that name stays until the new one is whole.
        fps: frames per second.
    """

    def __init__(self, path: str | Path, fps: int) -> None:
        self._target = replaced_when_done(path)
        self._fps = fps
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        self._container = av.open(str(self._target.__enter__()), mode="w", format="mp4")
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            try:
                if exception[0] is None and self._stream is not None:
                    self._container.mux(self._stream.encode())
            finally:
                self._container.close()
        except BaseException as error:
            self._target.__exit__(type(error), error, error.__traceback__)
            raise
        self._target.__exit__(*exception)

    def write(self, frames: Frames) -> None:
        """Append frames, ``[frames, height, width, 3]``; odd sizes lose their last row or column."""
        height, width = (side - side % 2 for side in frames.shape[1:3])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=Fraction(self._fps))
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
            self._stream.options = {"crf": "16", "preset": "medium"}
            self._stream.thread_count = 1  # the same file on every machine
        for frame in frames[:, :height, :width]:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))


def read_video(path: str | Path) -> tuple[Frames, float]:
    """Frames ``[frames, height, width, 3]`` and frames per second of a file.

    Raises:
        ValueError: the file is missing, unreadable or holds no frame.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            fps = float(stream.average_rate or 0)
    except (OSError, IndexError, ValueError, av.FFmpegError) as error:
        raise ValueError(f"{path} cannot be read as a video.") from error
    if not frames:
        raise ValueError(f"{path} holds no frame.")
    return np.stack(frames), fps


def read_image(path: str | Path) -> Frames:
    """Pixels ``[height, width, 3]`` of an image, turned the way its camera was held.

    Raises:
        ValueError: the file is missing or unreadable.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image.") from error


def resize_and_crop(frames: Frames, height: int, width: int) -> Frames:
    """Scale frames ``[frames, h, w, 3]`` to cover ``height`` x ``width`` and cut off the overhang evenly."""
    if frames.shape[1:3] == (height, width):
        return frames
    fitted = [ImageOps.fit(Image.fromarray(f), (width, height), Image.Resampling.LANCZOS) for f in frames]
    return np.stack([np.asarray(image) for image in fitted])


def contact_sheet(videos: Mapping[str, Frames], path: str | Path, columns: int = 9, scale: int = 2) -> None:
    """Save a PNG with a row for each video: its label and evenly spaced frames.

    Args:
        videos: label to frames ``[frames, height, width, 3]``; all of one size.
        path: of the picture.
        columns: frames of a row.
        scale: enlargement of a frame.
    """
    first = next(iter(videos.values()))
    height, width = (scale * side for side in first.shape[1:3])
    title, gap = 14, 2
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(videos) * (height + title + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, frames) in enumerate(videos.items()):
        top = row * (height + title + gap)
        draw.text((2, top + 1), label, fill="black")
        for column, index in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            picture = Image.fromarray(frames[index]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (width + gap), top + title))
    with replaced_when_done(path) as temporary:
        sheet.save(temporary)
