"""Frames as pictures that a browser reads while the video is made."""

import base64
import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from ..video import Frames, scale_frames

#: Pixels of the longer side of a frame on the page, at most.
LARGEST = 320
#: Frames of a strip; WebP has at most 16383 pixels a side.
LONGEST = 48


@dataclass(frozen=True)
class Part:
    """Frames that became ready together, as pictures of frames below each other: raw ones would fill the memory."""

    count: int
    strips: list[dict[str, Any]]  # pictures with their number of frames and time, for JSON

    @classmethod
    def encode(cls, frames: Frames, ready: float) -> Self:
        """Encode ``[frames, height, width, 3]`` that took ``ready`` seconds of the model's work from the start."""
        scale = min(1.0, LARGEST / max(frames.shape[1:3]))
        cuts = [frames[first : first + LONGEST] for first in range(0, len(frames), LONGEST)]
        strips = [{"count": len(cut), "ready": ready, "picture": _encode(cut, scale)} for cut in cuts]
        return cls(len(frames), strips)


def _encode(frames: Frames, scale: float) -> str:
    """A data address of frames below each other."""
    stacked = np.concatenate([np.asarray(frame) for frame in scale_frames(frames, scale)])
    file = io.BytesIO()
    Image.fromarray(stacked).save(file, "WebP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
