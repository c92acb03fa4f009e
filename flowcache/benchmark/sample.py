"""A video of a benchmark: what to make and what to call it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Room for suffixes and for the name that a file bears while it is written; a name has 255 bytes at most.
MAX_NAME_BYTES = 230


@dataclass(frozen=True)
class Sample:
    """A video to make.

    Attributes:
        name: of the file, without suffix.
        prompt: what to show.
        seed: of the noise.
        image: first frame.
        video: what to continue.

    Raises:
        ValueError: the name cannot be a file's, or it starts from an image and from a video.
    """

    name: str
    prompt: str
    seed: int
    image: Path | None = None
    video: Path | None = None

    def __post_init__(self) -> None:
        if not self.name or any(c in "/\0\n" for c in self.name) or self.name.startswith("."):
            raise ValueError(f"a video cannot be named {self.name!r}.")
        if len(self.name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"a name may have {MAX_NAME_BYTES} bytes, but this one has more: {self.name!r}.")
        if self.image is not None and self.video is not None:
            raise ValueError(f"{self.name}: a video starts from an image or from a video, not from both.")

    def as_dict(self) -> dict[str, Any]:
        """What tells it from others, for the manifest."""
        given = {"image": self.image, "video": self.video}
        sources = {key: None if path is None else str(path) for key, path in given.items()}
        return {"name": self.name, "prompt": self.prompt, "seed": self.seed, **sources}
