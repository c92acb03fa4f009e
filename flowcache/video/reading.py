"""Videos in, through PyAV: upright, with square pixels, by their time stamps."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorTrc, VideoReformatter

from ..registry import SLOWEST, exact_rate
from ..user_files import check_is_file, reading
from .frames import EXACT, Frames, over_black, resize_and_crop

logger = logging.getLogger(__name__)

_LONGEST = 2**15  # side that pixels with a plausible aspect ratio come to
#: Decoders that keep the alpha channel of WebM, which FFmpeg's own drop.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
#: Transfer functions that screens without HDR show flat.
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
_LONGEST_GAP = 1 / float(SLOWEST)  # seconds between two frames; beyond, time stamps are damaged


class VideoInfo(NamedTuple):
    """A video as it is shown: upright, with square pixels."""

    num_frames: int | None  # None: not stated
    fps: Fraction | None  # of the shortest frames; None: not stated
    height: int
    width: int
    lost: tuple[str, ...] = ()  # properties that are not kept, such as sound


def probe_video(path: str | Path) -> VideoInfo:
    """Read length, rate and shown size of a video; decodes its first frame only."""
    with _open(path) as (container, stream):
        if (frame := next(_decode(container, stream), None)) is None:
            raise ValueError("it holds no frame")
        lost = {
            "sound, which is not carried over": container.streams.audio,
            "an alpha channel, which is composed over black": _has_alpha(frame),
            "HDR colours, which look flat as they are; convert it to SDR": frame.color_trc in _HDR,
        }
        rate, num_frames = _stated_rate(stream), stream.frames or None
        if num_frames and stream.duration and rate:
            shown = stream.duration * stream.time_base * rate  # an edit list may show only a part
            num_frames = num_frames if abs(num_frames - shown) <= 1 else None
        width, height = _square_size(frame, stream)[:: -1 if orientation(frame)[0] else 1]
        return VideoInfo(num_frames, rate, height, width, tuple(what for what in lost if lost[what]))


def read_video(path: str | Path) -> tuple[Frames, Fraction | None]:
    """Read all frames ``[frames, height, width, 3]`` as ``stream_video`` does, and the frames per second."""
    return np.stack(list(stream_video(path))), probe_video(path).fps


def stream_video(
    path: str | Path, fps: float | Fraction | None = None, size: tuple[int, int] | None = None
) -> Iterator[Frames]:
    """Yield frames ``[height, width, 3]`` as they are shown, all of one size.

    ``fps`` samples them by their time stamps (None: each frame once); ``size``, height and width, scales and
    crops them (None: as the first).
    """
    shown = picture = None
    with _open(path) as (container, stream):
        frames = _decode(container, stream)
        if fps is not None:
            frames = _at_rate(frames, exact_rate(fps), _stated_rate(stream) or exact_rate(fps))
        reformatter, stored_size = VideoReformatter(), None
        for frame in frames:
            if frame is not shown:  # a repeated frame is converted once
                stored_size = stored_size or _square_size(frame, stream)
                shown, picture = frame, _upright(frame, stored_size, reformatter)
                picture = picture if size is None else resize_and_crop(picture[None], *size)[0]
            yield picture
        if shown is None:
            raise ValueError("it holds no frame")


def last_frames(path: str | Path, most: int, fps: float | Fraction, size: tuple[int, int]) -> tuple[Frames, int]:
    """Read the last ``most`` frames at a rate and in a size, and the number of all frames at that rate."""
    for what in probe_video(path).lost:
        logger.warning("%s has %s.", path, what)
    last = deque(enumerate(stream_video(path, fps), 1), maxlen=most)
    return np.concatenate([resize_and_crop(frame[None], *size) for _, frame in last]), last[-1][0]


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    check_is_file(path)
    # with its protocol, as FFmpeg takes what precedes a colon in a name for one
    with reading(path, "a video"), av.open(f"file:{path}") as container:
        # FFmpeg renders any text as pictures
        if not container.streams.video or container.format.name == "tty":
            raise ValueError("it holds no video")
        yield container, container.streams.video[0]


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return container.decode(stream)
    decoder = av.CodecContext.create(name, "r")
    return (frame for packet in container.demux(stream) for frame in decoder.decode(packet))


def _stated_rate(stream: av.VideoStream) -> Fraction | None:
    try:
        return exact_rate(stream.guessed_rate) if stream.guessed_rate else None
    except ValueError:
        rate = float(stream.guessed_rate)
        raise ValueError(f"its time stamps are damaged, they come to {rate:g} frames per second") from None


def _at_rate(frames: Iterable[av.VideoFrame], fps: Fraction, stored: Fraction) -> Iterator[av.VideoFrame]:
    """Yield the frame shown at each 1/fps seconds; ``stored`` is the rate of frames without time stamps."""
    rate, start, shown, count, time = float(fps), None, None, 0, 0.0
    slack = min(1e-3, 0.1 / rate)  # time stamps are rounded, by some formats to milliseconds
    for place, frame in enumerate(frames):
        stamp = place / float(stored) if frame.time is None else frame.time
        start = stamp if start is None else start
        if abs(gap := stamp - start - time) > _LONGEST_GAP:
            raise ValueError(f"its time stamps are damaged, {gap:g} s lie between two frames")
        time = stamp - start
        while shown is not None and count / rate < time - slack:
            yield shown
            count += 1
        shown = frame
    while shown is not None and count / rate < time + 1 / float(stored) - slack:
        yield shown
        count += 1


def _square_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Return width and height with square pixels, before the frame is turned upright."""
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    if not 1 <= width <= _LONGEST:
        raise ValueError(f"its pixels have an aspect ratio of {stream.sample_aspect_ratio}")
    return width, frame.height


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether rows and columns swap, and whether each is then reversed (ISO/IEC 14496-12, section 6.2.2)."""
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).tolist()
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)


def _upright(frame: av.VideoFrame, size: tuple[int, int], reformatter: VideoReformatter) -> Frames:
    """Convert to pixels ``[height, width, 3]`` as they are shown."""
    # planes, as exact conversion to packed pixels takes seven times as long
    form = "rgba" if _has_alpha(frame) else "gbrp"
    pixels = reformatter.reformat(frame, *size, form, interpolation=EXACT).to_ndarray()
    pixels = over_black(pixels) if form == "rgba" else pixels
    swap, reverse_rows, reverse_columns = orientation(frame)
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    return pixels[:: -1 if reverse_rows else 1, :: -1 if reverse_columns else 1]


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)
