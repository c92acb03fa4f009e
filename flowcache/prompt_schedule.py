"""Prompts that change while a video runs: from which second each holds, and which text each chunk has."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from .state import State

#: What separates prompts: the start or a semicolon, seconds, a colon.
_TIME = r"([+-]?\d+(?:\.\d*)?|\.\d+)\s*s?\s*:"
_EXAMPLE = '"0: a red circle; 5s: a blue circle"'


@dataclass(frozen=True)
class PromptSchedule:
    """Prompts of a video, each with the second from which it holds, counted from the video's first frame.

    A chunk has the newest prompt that holds when the chunk starts, at all of its steps.

    Args:
        entries: pairs of time and prompt; the first time is 0, and times rise.
    """

    entries: tuple[tuple[float, str], ...]

    def __post_init__(self) -> None:
        try:
            entries = tuple((float(time), prompt) for time, prompt in self.entries)
        except (TypeError, ValueError) as error:
            got = f"expected pairs of seconds and prompt, got {self.entries!r}"
            raise ValueError(f"prompt_schedule: {got}.") from error
        object.__setattr__(self, "entries", entries)
        times = [time for time, _ in entries]
        if not times or times[0] != 0 or not all(after > before for before, after in pairwise(times)):  # nor NaN
            got = ", ".join(f"{time:g}" for time in times) or "none"
            raise ValueError(f"prompt_schedule: expected rising times from 0 on, got {got}.")
        for time, prompt in self.entries:
            if isinstance(prompt, str) and not prompt.strip():
                raise ValueError(f"prompt_schedule: expected text, got an empty prompt at {time:g} s.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``0: PROMPT; 5s: PROMPT``: only a semicolon before a time and its colon separates prompts."""
        first, *parts = re.split(rf"(?:^|;)\s*{_TIME}", text)
        prompts = [prompt.strip().rstrip("; ") for prompt in parts[1::2]]
        if first.strip() or not parts or any(re.match(_TIME, prompt) for prompt in prompts):
            raise ValueError(f"prompt_schedule: expected seconds and prompts, as {_EXAMPLE}, got {text[:300]!r}.")
        return cls(tuple(zip(map(float, parts[::2]), prompts, strict=True)))

    def __str__(self) -> str:
        return "; ".join(f"{time:g}: {prompt}" for time, prompt in self.entries)

    def check(self, clean: Callable[[str], str], video: Any) -> None:
        """Raise ValueError for a prompt of which ``clean`` leaves nothing, and for one after the last chunk's start.

        ``video``: its settings, with ``fps``, ``num_frames`` and ``last_chunk_frame``, where its last chunk starts.
        """
        from .prompts import check_prompt  # transformers takes long to import

        last, length = video.last_chunk_frame / video.fps, video.num_frames / video.fps
        for time, prompt in self.entries:
            check_prompt("prompt_schedule", prompt, clean)
            if frame_at(time, video.fps) > video.last_chunk_frame:
                expected = f"times up to {last:.4g} s, when the last chunk starts"
                raise ValueError(f"prompt_schedule: expected {expected}, got {time:g} s in a video of {length:.4g} s.")


def frame_at(time: float, fps: float) -> float:
    """Frames before a time in seconds; rounded, as 1.1 s of 30 frames are a little more than 33."""
    return round(time * fps, 6)


class PromptTrack:
    """Texts of a video, equal prompts as one, and which of them each chunk has.

    Args:
        prompt: one prompt, or a schedule; None: an embedding.
        fps: frames per second.
        first_latent: the first latent frame that shows nothing before a frame.
        offset: latent frame of the video at which the window starts; below 0 where other frames precede the video.
    """

    def __init__(
        self,
        prompt: str | PromptSchedule | None = None,
        fps: float = 1.0,
        first_latent: Callable[[float], int] = int,
        offset: int = 0,
    ) -> None:
        self.offset, self.prompts = offset, list[str | None]()
        self._fps, self._first_latent = fps, first_latent
        self._starts: list[tuple[int, int]] = []  # latent frame and text
        entries = prompt.entries if isinstance(prompt, PromptSchedule) else ((0.0, prompt),)
        for time, each in entries:
            self._starts.append((first_latent(frame_at(time, fps)), self._add(each)))

    @property
    def last_start(self) -> int:
        """Latent frame of the video from which the newest prompt holds."""
        return self._starts[-1][0]

    @property
    def last_second(self) -> float:
        """Second of the first frame that the newest prompt can show."""
        frame = 0
        while self._first_latent(frame + 1) <= self.last_start:
            frame += 1
        return frame / self._fps

    def find(self, start_frame: int) -> int:
        """Index of the text of a chunk that starts at a latent frame of the window."""
        frame = max(0, start_frame + self.offset)
        return next(text for start, text in reversed(self._starts) if start <= frame)

    def switch(self, prompt: str, start_frame: int) -> bool:
        """Give a prompt to chunks from a latent frame of the window on; returns whether its text is new."""
        frame, known = start_frame + self.offset, len(self.prompts)
        self._starts = [(start, text) for start, text in self._starts if start < frame]
        self._starts.append((max(0, frame), self._add(prompt)))
        return len(self.prompts) > known

    def state_dict(self) -> State:
        return {"prompts": list(self.prompts), "starts": list(self._starts)}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state of the same prompts, with those that were sent since."""
        self.prompts, self._starts = list(state["prompts"]), [tuple(each) for each in state["starts"]]

    def _add(self, prompt: Any) -> int:
        if prompt not in self.prompts:
            self.prompts.append(prompt)
        return self.prompts.index(prompt)
