"""Pieces of an mp4 that can be put one behind the other, the file playable after each (fragmented mp4)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

#: Encoders, best first, with settings at which their losses are hard to see. Without frames that refer to
#: later ones, so that times rise from 0 and a fragment needs nothing of its neighbours. The AVX-512 code of
#: x264's macroblock tree reads memory that nobody wrote; ``cpu-independent`` avoids it.
ENCODERS = {
    "libx264": {"crf": "16", "preset": "medium", "bf": "0", "x264-params": "cpu-independent=1"},
    "mpeg4": {"qmin": "2", "qmax": "3", "bf": "0"},
}
#: BT.709 in the numbering of H.273: what players assume of most videos, and written down for the others.
BT709 = 1

#: One fragment per file, its time counted from the start of the video, and nothing behind it.
_FRAGMENT = {
    "movflags": "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
    "avoid_negative_ts": "make_non_negative",
}


class FragmentEncoder:
    """Encodes frames part by part; each part begins with a keyframe and refers to no other.

    Every part has an encoder and a muxer of its own, so that all there is to know between two parts is how
    many parts and frames there were.

    Args:
        encoder: a key of ``ENCODERS``.
        fps: frames per second.
        height, width: pixels, even.
    """

    def __init__(self, encoder: str, fps: Fraction, height: int, width: int) -> None:
        self._name, self._fps = encoder, fps
        self.height, self.width = height, width
        self.num_parts = self.num_frames = 0

    def encode(self, frames: NDArray[np.uint8]) -> bytes:
        """What to append for these frames, ``[frames, height, width, 3]``; the first part has the header.

        Raises:
            ValueError: there is no frame.
        """
        if not len(frames):
            raise ValueError("A part must have at least one frame.")
        file = io.BytesIO()
        options = _FRAGMENT | {"fragment_index": str(self.num_parts + 1)}
        with av.open(file, mode="w", format="mp4", options=options) as container:
            stream = self._add_stream(container)
            for place, frame in enumerate(frames, self.num_frames):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                picture.pts, picture.time_base = place, 1 / self._fps
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        dropped = (b"ftyp", b"moov") if self.num_parts else ()
        self.num_parts += 1
        self.num_frames += len(frames)
        return b"".join(box for name, box in _boxes(file.getvalue()) if name not in dropped)

    def _add_stream(self, container: av.container.OutputContainer) -> av.VideoStream:
        stream = container.add_stream(self._name, rate=self._fps)
        stream.height, stream.width, stream.pix_fmt = self.height, self.width, "yuv420p"
        stream.options = dict(ENCODERS[self._name])
        stream.thread_count = 1  # the same file on every machine
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        return stream


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each top-level box of an mp4 (ISO/IEC 14496-12, section 4.2)."""
    start = 0
    while start < len(content):
        size = int.from_bytes(content[start : start + 4], "big")
        header = 8
        if size == 1:  # a 64-bit size follows the name
            size, header = int.from_bytes(content[start + 8 : start + 16], "big"), 16
        if size < header:
            raise ValueError(f"An mp4 box of {size} bytes is too small.")
        yield content[start + 4 : start + 8], content[start : start + size]
        start += size


def copy_packets(source: BinaryIO, path: Path) -> None:
    """Copy a video, encoded as it is, into a plain mp4 with its index in front."""
    with (
        av.open(source, mode="r") as fragments,
        av.open(str(path), mode="w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream_from_template(fragments.streams.video[0])
        for packet in fragments.demux(video=0):
            if packet.dts is not None:  # the last one only says that there are no more
                packet.stream = stream
                container.mux(packet)
