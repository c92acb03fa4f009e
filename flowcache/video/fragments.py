"""Pieces of an mp4 that can be put one behind the other, the file playable after each (fragmented mp4)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from .frames import EXACT, Frames
from .reading import orientation

#: Encoders, best first, with settings at which their losses are hard to see. Without frames that refer to
#: later ones, so that times rise from 0 and a fragment needs nothing of its neighbours. With AVX-512,
#: what x264's macroblock tree decides depends on earlier content of the heap; ``cpu-independent`` avoids it.
ENCODERS = {
    # imageio's quality 8
    "libx264": {"crf": "10", "preset": "medium", "bf": "0", "x264-params": "cpu-independent=1"},
    "mpeg4": {"qmin": "2", "qmax": "3", "bf": "0"},
}
#: Numbers of H.273. The matrix of BT.601 loses least of the colours, at half their resolution, and is that
#: of imageio's files; primaries and transfer are those of sRGB's relative BT.709.
BT601, BT709 = 6, 1

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

    def encode(self, frames: Frames) -> bytes:
        """What to append for these frames, ``[frames, height, width, 3]``; the first part has the header.

        Raises:
            ValueError: there is no frame.
        """
        if not len(frames):
            raise ValueError("A part must have at least one frame.")
        with self._new_part() as (file, container):
            stream = self._add_stream(container)
            for place, frame in enumerate(frames, self.num_frames):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture = picture.reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU601,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=EXACT,
                )
                picture.pts, picture.time_base = place, 1 / self._fps
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return self._count_part(file, len(frames))

    def copy(self, path: Path) -> bytes | None:
        """What to append for all packets of a video; None where they differ from this encoder's.

        Raises:
            FFmpegError: it cannot be read.
        """
        with av.open(f"file:{path}") as source:
            stream = source.streams.video[0]
            if stream.codec_context.extradata != self._configuration:
                return None
            # which the container states, not the packets
            if (stream.sample_aspect_ratio or 1) != 1 or any(orientation(next(source.decode(stream)))):
                return None
            source.seek(0)
            packets = [packet for packet in source.demux(stream) if packet.dts is not None]
            if not self._fits(packets):
                return None
            with self._new_part() as (file, container):
                copied = container.add_stream_from_template(stream)
                copied.time_base = 1 / self._fps
                for place, packet in enumerate(packets, self.num_frames):
                    packet.stream, packet.time_base = copied, 1 / self._fps
                    packet.pts = packet.dts = place
                    packet.duration = 1
                    container.mux(packet)
            return self._count_part(file, len(packets))

    def _fits(self, packets: list[av.Packet]) -> bool:
        """Whether packets begin with a keyframe and show one frame after the other at this rate."""
        return (
            bool(packets)
            and packets[0].is_keyframe
            and all(
                packet.pts == packet.dts
                and packet.pts * packet.time_base == place / self._fps
                and not (packet.is_corrupt or packet.is_discard)
                for place, packet in enumerate(packets)
            )
        )

    @cached_property
    def _configuration(self) -> bytes:
        """What decoders must know of these settings, as it stands in the header of a file."""
        encoder = FragmentEncoder(self._name, self._fps, self.height, self.width)
        part = encoder.encode(np.zeros((1, self.height, self.width, 3), np.uint8))
        with av.open(io.BytesIO(part)) as container:
            return container.streams.video[0].codec_context.extradata

    @contextmanager
    def _new_part(self) -> Iterator[tuple[io.BytesIO, av.container.OutputContainer]]:
        file = io.BytesIO()
        options = _FRAGMENT | {"fragment_index": str(self.num_parts + 1)}
        with av.open(file, mode="w", format="mp4", options=options) as container:
            yield file, container

    def _count_part(self, file: io.BytesIO, num_frames: int) -> bytes:
        """The bytes of a part that is whole; only the first keeps its header."""
        dropped = (b"ftyp", b"moov") if self.num_parts else ()
        self.num_parts += 1
        self.num_frames += num_frames
        return b"".join(box for name, box in _boxes(file.getvalue()) if name not in dropped)

    def _add_stream(self, container: av.container.OutputContainer) -> av.VideoStream:
        stream = container.add_stream(self._name, rate=self._fps)
        stream.height, stream.width, stream.pix_fmt = self.height, self.width, "yuv420p"
        stream.options = dict(ENCODERS[self._name])
        stream.thread_count = 1  # the same file on every machine
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = BT601, BT709, BT709
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
