"""Methods side by side on one clock: what each has to show at each moment of denoising time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..trace import Trace
from ..video import Frames, VideoWriter, scale_frames
from .comparisons import step_times

BACKGROUND, FACE, EMPTY = "#14161a", "#f2f2f2", "#23262d"
WORKING, DONE, MUTED = "#4f8fd0", "#f0953a", "#9aa0aa"

_FPS = 24
_PART = 48  # frames that are encoded together
_SECONDS = (6.0, 12.0)  # shortest and longest duration of the race itself
_HEADER, _LABEL, _GAP, _BAR = 64, 46, 14, 6


@dataclass(frozen=True)
class Runner:
    """A method in the race."""

    label: str
    frames: Frames  # [frames, height, width, 3]
    finished: Sequence[tuple[float, float]]  # seconds of denoising, and share of the video clean by then

    @property
    def seconds(self) -> float:
        return self.finished[-1][0]

    def position(self, now: float) -> float | None:
        """Place in the video, 0 to 1, playing each part while the next is computed; None: no part."""
        times, shares = zip(*self.finished, strict=True)
        if times[0] <= now < times[-1]:
            return float(np.interp(now, times, (0.0, *shares[:-1])))
        return 1.0 if now >= times[-1] else None


def finished_parts(trace: Trace) -> list[tuple[float, float]]:
    """Return ``Runner.finished`` of a run; raise ValueError if no chunk became clean."""
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


def write_race(runners: Sequence[Runner], title: str, path: str | Path) -> None:
    """Write an mp4 that shows all methods on one clock.

    A panel stays empty until the first part of its video is clean, plays each part while the next one is computed,
    and repeats the video once it is whole; after the slowest, all play once together. Speed-ups are relative to the
    first. Up to four panels stand in a row.
    """
    if not runners or any(len(runner.frames) == 0 for runner in runners):
        raise ValueError("A race needs at least one video, and at least one frame of each.")
    pictures = _Stage(runners, title).play()
    with VideoWriter(path, _FPS) as writer:
        while part := list(islice(pictures, _PART)):
            writer.write(np.stack(part))


class _Stage:
    """Layout of the panels, and their frames in the size shown."""

    def __init__(self, runners: Sequence[Runner], title: str) -> None:
        self._runners, self._title = runners, title
        rows = math.ceil(len(runners) / 4)
        self._columns = math.ceil(len(runners) / rows)
        widest = max(runner.frames.shape[2] for runner in runners)
        scale = max(1, round(216 / widest)) if widest <= 216 else 320 / widest
        self._videos = [scale_frames(runner.frames, scale) for runner in runners]
        self._width = max(180, *(video[0].width for video in self._videos))
        self._height = max(video[0].height for video in self._videos)
        self._row = _LABEL + self._height + _BAR + _GAP
        width = max(self._columns * (self._width + _GAP) + _GAP, 480)
        height = _HEADER + rows * self._row + _GAP
        self._size = (width // 2 * 2, height // 2 * 2)

    def play(self) -> Iterator[Frames]:
        """Yield the race, then all videos together, then one second of rest."""
        longest = max(runner.seconds for runner in self._runners)
        count = round(float(np.clip(longest, *_SECONDS)) * _FPS)
        speed = longest / count * _FPS
        for index in range(count + 1):
            yield self._draw(longest * index / count, speed)
        frames = max(len(video) for video in self._videos)
        for index in (*range(frames), *[frames - 1] * _FPS):
            yield self._draw(longest, speed, index)

    def _draw(self, now: float, speed: float, together: int | None = None) -> Frames:
        """Draw time ``now``, ``speed`` times faster than real, or frame ``together`` of all videos."""
        picture = Image.new("RGB", self._size, BACKGROUND)
        pen = ImageDraw.Draw(picture)

        def write(x: int, y: int, text: str, size: int, colour: str, anchor: str = "ls") -> None:
            pen.text((x, y), text, fill=colour, font=_font(size), anchor=anchor)

        right, clock, note = self._size[0] - _GAP, f"{now:.1f} s", "denoising time"
        if together is None and abs(speed - 1) >= 0.05:
            note += f", {speed:.1f} x faster" if speed > 1 else f", {1 / speed:.1f} x slower"
        write(right, 36, clock, 30, FACE, "rs")
        write(right, 54, note, 13, MUTED, "rs")
        write(_GAP, 34, _fit(self._title, 18, right - _GAP - 24 - _font(30).getlength(clock)), 18, FACE)
        for index, (runner, video) in enumerate(zip(self._runners, self._videos, strict=True)):
            row, column = divmod(index, self._columns)
            left, top = _GAP + column * (self._width + _GAP), _HEADER + row * self._row
            done, state = now >= runner.seconds, "computing"
            if done:
                state = f"done in {runner.seconds:.1f} s"
                state += f", {self._runners[0].seconds / runner.seconds:.1f}x" if index else ""
            write(left, top + 18, _fit(runner.label, 15, self._width), 15, FACE)
            write(left, top + 37, state, 14, DONE if done else MUTED)
            top += _LABEL
            bottom = top + self._height + _BAR - 1
            pen.rectangle((left, top, left + self._width - 1, bottom), fill=EMPTY)
            position, shown = runner.position(now), together
            if shown is None and done:
                shown = int((now - runner.seconds) / speed * _FPS) % len(video)
            elif shown is None and position is not None:
                shown = int(position * len(video))
            if shown is not None:
                frame = video[min(shown, len(video) - 1)]
                picture.paste(frame, (left + (self._width - frame.width) // 2, top))
            if length := round(min(1.0, now / runner.seconds) * self._width):
                bar = (left, bottom + 1 - _BAR, left + length - 1, bottom)
                pen.rectangle(bar, fill=DONE if done else WORKING)
        return np.asarray(picture)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _fit(text: str, size: int, room: float) -> str:
    """Cut text to ``room`` pixels."""
    while text and _font(size).getlength(text) > room:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
