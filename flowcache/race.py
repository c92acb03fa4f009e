"""Plays videos side by side while a clock runs: what each method had to show, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .plots.over_time import step_times
from .trace import Trace
from .video import Frames, VideoWriter

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


def _pictures(stage: _Stage, longest: float, count: int) -> Iterator[Frames]:
    """The race in ``count`` pictures, then all videos together, and a moment of rest."""
    pace = longest / count * _FPS
    for index in range(count + 1):
        yield stage.draw(longest * index / count, pace)
    frames = max(len(runner.frames) for runner in stage.runners)
    for index in range(frames):
        yield stage.draw(longest, pace, together=index)
    for _ in range(_FPS):
        yield stage.draw(longest, pace, together=frames - 1)


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

    def draw(self, now: float, pace: float, together: int | None = None) -> Frames:
        """The picture at a denoising time; ``together``: the frame that all show, after the race."""
        picture = Image.new("RGB", self._size, BACKGROUND)
        pen = ImageDraw.Draw(picture)
        self._draw_header(pen, now, pace, together is not None)
        for index, runner in enumerate(self.runners):
            row, column = divmod(index, self.columns)
            left = _GAP + column * (self._width + _GAP)
            top = _HEADER + row * (_LABEL + self._height + _BAR + _GAP)
            self._draw_panel(picture, runner, (left, top), now, pace, together)
        return np.asarray(picture)

    def _draw_header(self, pen: ImageDraw.ImageDraw, now: float, pace: float, over: bool) -> None:
        right = self._size[0] - _GAP
        clock = f"{now:.1f} s"
        pen.text((right, 36), clock, fill=FACE, font=_font(30), anchor="rs")
        note = "denoising time" if over or abs(pace - 1) < 0.05 else f"denoising time, {_pace(pace)}"
        pen.text((right, 54), note, fill=MUTED, font=_font(13), anchor="rs")
        room = right - _GAP - 24 - _font(30).getlength(clock)
        pen.text((_GAP, 34), _fit(self.title, 18, room), fill=FACE, font=_font(18), anchor="ls")

    def _draw_panel(
        self,
        picture: Image.Image,
        runner: Runner,
        corner: tuple[int, int],
        now: float,
        pace: float,
        together: int | None,
    ) -> None:
        pen, (left, top) = ImageDraw.Draw(picture), corner
        frame_top, done = top + _LABEL, now >= runner.seconds
        pen.text(
            (left, top + 18), _fit(runner.label, 15, self._width), fill=FACE, font=_font(15), anchor="ls"
        )
        words = "computing"
        if done:
            speed = self.runners[0].seconds / runner.seconds
            words = f"done in {runner.seconds:.1f} s" + (
                f", {speed:.1f}x" if runner is not self.runners[0] else ""
            )
        pen.text((left, top + 37), words, fill=DONE if done else MUTED, font=_font(14), anchor="ls")
        video = self._scaled[runner.label]
        shown = self._frame_of(runner, len(video), now, pace, together)
        box = (left, frame_top, left + self._width - 1, frame_top + self._height - 1)
        pen.rectangle(box, fill=EMPTY)
        if shown is not None:
            picture.paste(video[shown], (left + (self._width - video[shown].width) // 2, frame_top))
        below = frame_top + self._height
        pen.rectangle((left, below, left + self._width - 1, below + _BAR - 1), fill=EMPTY)
        length = round(runner.share(now) * self._width)
        if length:
            colour = DONE if done else WORKING
            pen.rectangle((left, below, left + length - 1, below + _BAR - 1), fill=colour)

    def _frame_of(
        self, runner: Runner, count: int, now: float, pace: float, together: int | None
    ) -> int | None:
        """Index of the frame that a panel shows; None: none."""
        if together is not None:
            return min(together, count - 1)
        if now >= runner.seconds:
            return int((now - runner.seconds) / pace * _FPS) % count
        position = runner.position(now)
        return None if position is None else min(count - 1, int(position * count))


def _scale(frames: Frames, scale: float) -> list[Image.Image]:
    size = (max(1, round(scale * frames.shape[2])), max(1, round(scale * frames.shape[1])))
    # Whole pixels when enlarged, so that the picture shows what is there and nothing in between.
    filtering = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return [Image.fromarray(frame).resize(size, filtering) for frame in frames]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fit(text: str, size: int, room: float) -> str:
    """The text, or as much of its start as there is room for."""
    font = _font(size)
    while text and font.getlength(text) > room:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text


def _pace(pace: float) -> str:
    return f"{pace:.1f} x faster" if pace > 1 else f"{1 / pace:.1f} x slower"
