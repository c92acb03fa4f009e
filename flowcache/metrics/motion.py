"""Where something moves in a video that a resting camera took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..extras import require
from ..video import Frames

Mask = NDArray[np.bool_]

#: Share of the newest frame in the running average that stands for what rests.
RATE = 0.3
#: Grey levels, of 255, by which a moving pixel differs from that average.
THRESHOLD = 10
#: Side, in pixels, of the blur against noise, and of the speck that is removed or hole that is filled.
SIDE = 5


def motion_masks(frames: Iterable[Frames]) -> Iterator[NDArray[np.uint8]]:
    """Masks ``[height, width]`` of what moves, 255 there and 0 elsewhere, one for each frame.

    As Physics-IQ defines them (arXiv 2501.09038, algorithm 2): the blurred grey frame against the running
    average of those so far, itself included; then opened and closed. In the first frame nothing moves.

    Args:
        frames: uint8 ``[height, width, 3]``, all of one size.

    Raises:
        Unavailable: OpenCV is not installed.
    """
    cv2 = require("cv2", "Physics-IQ", "metrics")
    square = np.ones((SIDE, SIDE), np.uint8)
    resting = None
    for frame in frames:
        grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), 0)
        resting = grey.astype(np.float64) if resting is None else cv2.accumulateWeighted(grey, resting, RATE)
        # whole grey levels, as an image of the average would hold
        moving = (np.abs(grey - np.rint(resting)) > THRESHOLD).astype(np.uint8) * 255
        for change in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
            moving = cv2.morphologyEx(moving, change, square)
        yield moving
