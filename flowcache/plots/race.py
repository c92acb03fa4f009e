"""Plays videos side by side while a clock runs: what each method had to show, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..trace import Trace
from ..video import Frames, VideoWriter
from .over_time import step_times

BACKGROUND, FACE, EMPTY = "#14161a", "#f2f2f2", "#23262d"
WORKING, DONE, MUTED = "#4f8fd0", "#f0953a", "#9aa0aa"

_FPS = 24
_PART = 48  # frames that are encoded together
_SECONDS = (6.0, 12.0)  # the race itself, at least and at most
_HEADER, _LABEL, _GAP, _BAR = 64, 46, 14, 6


@dataclass(frozen=True)
class Runner:
    """A method in the race.

    Attributes:
        label: its name.
        frames: its video, ``[frames, height, width, 3]``.
        finished: denoising time in seconds at which a part of the video was there, and which share of the
            whole was there then; in order, the last one being 1.
    """

    label: str
    frames: Frames
    finished: Sequence[tuple[float, float]]

    @property
    def seconds(self) -> float:
        """When it was done."""
        return self.finished[-1][0]

    def position(self, now: float) -> float | None:
        """Where in its video (0 to 1) a viewer is who plays each part while the next one is made.

        None: there is nothing to show yet.
        """
        shown = 0.0
        for (start, share), (end, _) in zip(self.finished, self.finished[1:], strict=False):
            if start <= now < end:
                return shown + (share - shown) * (now - start) / (end - start)
            shown = share if start <= now else shown
        return 1.0 if now >= self.seconds else None

    def share(self, now: float) -> float:
        """Part of the computing that is done, 0 to 1."""
        return min(1.0, now / self.seconds)


def finished_parts(trace: Trace) -> list[tuple[float, float]]:
    """``Runner.finished`` of a run: when its chunks were clean.

    Raises:
        ValueError: the trace holds no chunk that was finished.
    """
    parts, done = [], 0
    for record, end in zip(trace.steps, step_times(trace), strict=True):
        window = trace.windows[record.window]
        clean = [event.chunk for event in record.events if event.local_step == window.num_steps - 1]
        if clean:
            done += sum(window.chunk_frames[chunk] for chunk in clean)
            parts.append((float(end), float(done)))
    if not parts:
        raise ValueError("The trace holds no chunk that was finished; there is nothing to play.")
    return [(end, amount / done) for end, amount in parts]


def _batched(pictures: Iterator[Frames], count: int) -> Iterator[list[Frames]]:
    """So many pictures at a time."""
    while part := list(islice(pictures, count)):
        yield part


def write_race(runners: Sequence[Runner], title: str, path: str | Path, columns: int | None = None) -> None:
    """Write an mp4 that shows all methods at once, on one clock of denoising time.

    A panel stays empty until a first part of its video is there, plays each part while the next one is
    computed, and begins anew when all is done. When the slowest is done, all play once more together.

    Args:
        runners: the first is what the others' speed-up is measured by.
        title: above all.
        path: of the mp4.
        columns: panels in a row; default: up to four, in rows as even as can be.

    Raises:
        ValueError: there are no runners, or one has no frame.
        OSError: the file cannot be written.
    """
    if not runners or any(len(runner.frames) == 0 for runner in runners):
        raise ValueError("A race needs at least one video, and at least one frame of each.")
    rows = -(-len(runners) // (columns or 4))
    stage = _Stage(runners, title, columns or -(-len(runners) // rows))
    longest = max(runner.seconds for runner in runners)
    length = float(np.clip(longest, *_SECONDS))
    with VideoWriter(path, _FPS) as writer:
        for part in _batched(_pictures(stage, longest, round(length * _FPS)), _PART):
            writer.write(np.stack(part))


class _Moment(NamedTuple):
    """A picture's time.

    Attributes:
        now: denoising time in seconds.
        pace: how many times faster than it was that is shown.
        together: the frame that all show, after the race.
    """

    now: float
    pace: float
    together: int | None = None


def _pictures(stage: _Stage, longest: float, count: int) -> Iterator[Frames]:
    """The race in ``count`` pictures, then all videos together, and a moment of rest."""
    pace = longest / count * _FPS
    for index in range(count + 1):
        yield stage.draw(_Moment(longest * index / count, pace))
    frames = max(len(runner.frames) for runner in stage.runners)
    for index in (*range(frames), *[frames - 1] * _FPS):
        yield stage.draw(_Moment(longest, pace, index))


@dataclass
class _Stage:
    """Where everything stands; frames are scaled once."""

    runners: Sequence[Runner]
    title: str
    columns: int
    _scaled: Mapping[str, list[Image.Image]] = field(init=False)

    def __post_init__(self) -> None:
        widest = max(runner.frames.shape[2] for runner in self.runners)
        scale = max(1, round(216 / widest)) if widest <= 216 else 320 / widest
        self._scaled = {runner.label: _scale(runner.frames, scale) for runner in self.runners}
        frames = [video[0] for video in self._scaled.values()]
        self._width = max(180, *(frame.width for frame in frames))
        self._height = max(frame.height for frame in frames)
        rows = -(-len(self.runners) // self.columns)
        width = self.columns * (self._width + _GAP) + _GAP
        self._size = (
            max(width, 480) // 2 * 2,
            (_HEADER + rows * (_LABEL + self._height + _BAR + _GAP) + _GAP) // 2 * 2,
        )

    def draw(self, moment: _Moment) -> Frames:
        """The picture of a moment."""
        picture = Image.new("RGB", self._size, BACKGROUND)
        self._draw_header(ImageDraw.Draw(picture), moment)
        for index, runner in enumerate(self.runners):
            row, column = divmod(index, self.columns)
            left = _GAP + column * (self._width + _GAP)
            top = _HEADER + row * (_LABEL + self._height + _BAR + _GAP)
            self._draw_words(ImageDraw.Draw(picture), runner, (left, top), moment)
            self._draw_video(picture, runner, (left, top + _LABEL), moment)
        return np.asarray(picture)

    def _draw_header(self, pen: ImageDraw.ImageDraw, moment: _Moment) -> None:
        right, pace = self._size[0] - _GAP, moment.pace
        clock, note = f"{moment.now:.1f} s", "denoising time"
        if moment.together is None and abs(pace - 1) >= 0.05:
            note += f", {pace:.1f} x faster" if pace > 1 else f", {1 / pace:.1f} x slower"
        pen.text((right, 36), clock, fill=FACE, font=_font(30), anchor="rs")
        pen.text((right, 54), note, fill=MUTED, font=_font(13), anchor="rs")
        title = _fit(self.title, 18, right - _GAP - 24 - _font(30).getlength(clock))
        pen.text((_GAP, 34), title, fill=FACE, font=_font(18), anchor="ls")

    def _draw_words(
        self, pen: ImageDraw.ImageDraw, runner: Runner, corner: tuple[int, int], moment: _Moment
    ) -> None:
        """Name and state of a method."""
        left, top = corner
        words, colour = "computing", MUTED
        if moment.now >= runner.seconds:
            words, colour = f"done in {runner.seconds:.1f} s", DONE
            if runner is not self.runners[0]:
                words += f", {self.runners[0].seconds / runner.seconds:.1f}x"
        name = _fit(runner.label, 15, self._width)
        pen.text((left, top + 18), name, fill=FACE, font=_font(15), anchor="ls")
        pen.text((left, top + 37), words, fill=colour, font=_font(14), anchor="ls")

    def _draw_video(
        self, picture: Image.Image, runner: Runner, corner: tuple[int, int], moment: _Moment
    ) -> None:
        """What there is of a video, and below it a bar of what is computed."""
        pen, (left, top) = ImageDraw.Draw(picture), corner
        right, bottom = left + self._width - 1, top + self._height - 1
        pen.rectangle((left, top, right, bottom + _BAR), fill=EMPTY)
        video = self._scaled[runner.label]
        shown = _frame_of(runner, len(video), moment)
        if shown is not None:
            picture.paste(video[shown], (left + (self._width - video[shown].width) // 2, top))
        length = round(runner.share(moment.now) * self._width)
        if length:
            colour = DONE if moment.now >= runner.seconds else WORKING
            pen.rectangle((left, bottom + 1, left + length - 1, bottom + _BAR), fill=colour)


def _frame_of(runner: Runner, count: int, moment: _Moment) -> int | None:
    """Index of the frame that a panel shows; None: none."""
    if moment.together is not None:
        return min(moment.together, count - 1)
    if moment.now >= runner.seconds:
        return int((moment.now - runner.seconds) / moment.pace * _FPS) % count
    position = runner.position(moment.now)
    return None if position is None else min(count - 1, int(position * count))


def _scale(frames: Frames, scale: float) -> list[Image.Image]:
    size = (max(1, round(scale * frames.shape[2])), max(1, round(scale * frames.shape[1])))
    # Whole pixels when enlarged, so that the picture shows what is there and nothing in between.
    filtering = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return [Image.fromarray(frame).resize(size, filtering) for frame in frames]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fit(text: str, size: int, room: float) -> str:
    """The text, or as much of its start as there is room for."""
    font = _font(size)
    while text and font.getlength(text) > room:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
