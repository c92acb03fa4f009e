"""A video of a benchmark: what to make and what to call it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import one_line
from ..naming import words_of

#: A file name has 255 bytes at most, ``.mp4`` among them.
MAX_NAME_BYTES = 251


@dataclass(frozen=True)
class Sample:
    """A video to make.

    Attributes:
        name: of the file, without suffix.
        prompt: what to show.
        seed: of the noise.
        image: first frame.
        video: what to continue.
        original: the benchmark's prompt, where ``prompt`` is an augmented one.

    Raises:
        ValueError: the name cannot be a file's, or it starts from an image and from a video.
    """

    name: str
    prompt: str
    seed: int
    image: Path | None = None
    video: Path | None = None
    original: str | None = None

    def __post_init__(self) -> None:
        if not is_file_name(self.name):
            raise ValueError(f"name: expected at most {MAX_NAME_BYTES} bytes without /, got {self.name!r}.")
        if self.image is not None and self.video is not None:
            raise ValueError(f"{self.name}: a video starts from an image or from a video, not from both.")

    def as_dict(self) -> dict[str, Any]:
        """What tells it from others, for the manifest."""
        given = {"image": self.image, "video": self.video}
        sources = {key: None if path is None else str(path) for key, path in given.items()}
        augmented = {} if self.original is None else {"original": self.original}
        return {"name": self.name, "prompt": self.prompt, "seed": self.seed, **sources, **augmented}


class SamplesFailed(ValueError):
    """Some samples cannot be made or scored; the message has a line for each, and what was done in spite."""

    has_lines = True

    def __init__(self, summary: str, reasons: Mapping[Any, str], report: str = "") -> None:
        lines = [summary, *(one_line(f"  {name}: {reason}") for name, reason in reasons.items())]
        super().__init__("\n".join([*lines, report] if report else lines))


def is_file_name(name: str, max_bytes: int = MAX_NAME_BYTES) -> bool:
    """Whether a video can have this name; control characters are refused, though file systems take them."""
    controls = any(ord(character) < 32 for character in name)
    return (
        0 < len(name.encode()) <= max_bytes and "/" not in name and name not in (".", "..") and not controls
    )


def safe_name(text: str) -> str:
    """A short file name for any text: its first words and a digest, which keeps texts apart."""
    return f"{words_of(text)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
