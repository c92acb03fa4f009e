"""Frames as pictures that a browser reads while the video is made."""

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ..video import Frames, scale_frames

#: Pixels of the longer side of a frame on the page, at most.
LARGEST = 320
#: Frames of a strip; WebP has at most 16383 pixels a side.
LONGEST = 48


@dataclass(frozen=True)
class Part:
    """Frames that became ready together."""

    frames: Frames  # ``[frames, height, width, 3]``
    ready: float  # seconds of the model's work before them

    @cached_property
    def strips(self) -> list[dict[str, Any]]:
        """Pictures of frames below each other, with the number of frames and the time, for JSON."""
        scale = min(1.0, LARGEST / max(self.frames.shape[1:3]))
        cuts = [self.frames[first : first + LONGEST] for first in range(0, len(self.frames), LONGEST)]
        return [{"count": len(cut), "ready": self.ready, "picture": _encode(cut, scale)} for cut in cuts]


def _encode(frames: Frames, scale: float) -> str:
    """A data address of frames below each other."""
    stacked = np.concatenate([np.asarray(frame) for frame in scale_frames(frames, scale)])
    file = io.BytesIO()
    Image.fromarray(stacked).save(file, "WebP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
