"""Physics-IQ (Motamed et al. 2025, arXiv 2501.09038): does a generated video move like the real one?

Every scene was filmed twice. The two takes differ by chance alone, and a generated video that is as close to
the first take as the second scores 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from ..environment import require
from ..video import Frames

Mask = NDArray[np.bool_]

RATE = 0.3  # of the newest frame in the running average that stands for what rests
THRESHOLD = 10  # grey levels, of 255, by which a moving pixel differs from that average
SIDE = 5  # pixels, of the blur against noise, and of the specks removed and the holes filled


@dataclass(frozen=True)
class Clip:
    """A video, uint8 ``[frames, height, width, 3]``, and its moving pixels, ``[frames, height, width]``."""

    frames: Frames
    masks: Mask

    def last(self, count: int) -> Clip:
        return Clip(self.frames[-count:], self.masks[-count:])


@dataclass(frozen=True)
class Measures:
    """Agreement of two clips: intersections over unions, 1 is best, and the error of colours in 0..1."""

    spatial_iou: float  # of the places where anything moves at any time: where
    spatiotemporal_iou: float  # of moving pixels, mean over frames: where and when
    weighted_spatial_iou: float  # of how often each place moves: where and how much
    mse: float  # how


@dataclass(frozen=True)
class PhysicsIQ:
    score: float  # percent
    generated: Measures  # means of the generated videos against the first takes
    physical: Measures  # means of the second takes against the first takes


def make_clip(frames: Iterable[Frames], size: tuple[int, int]) -> Clip:
    """Find moving pixels at the video's own size, where the thresholds hold, and scale both to ``size``.

    Algorithm 2 of Physics-IQ: the blurred grey frame against the running average of the frames so far, itself
    included; then opened and closed. In the first frame nothing moves. ``frames``, uint8
    ``[height, width, 3]``, are read one by one, so that a video need not fit into memory.
    """
    cv2 = require("cv2", "Physics-IQ", "metrics")
    square, resting, small, masks = np.ones((SIDE, SIDE), np.uint8), None, [], []
    for frame in frames:
        grey = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), 0)
        resting = grey.astype(np.float64) if resting is None else cv2.accumulateWeighted(grey, resting, RATE)
        # whole grey levels, as an image of the average would hold
        moving = (np.abs(grey - np.rint(resting)) > THRESHOLD).astype(np.uint8) * 255
        for change in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
            moving = cv2.morphologyEx(moving, change, square)
        small.append(cv2.resize(frame, size[::-1]))
        masks.append(cv2.resize(moving, size[::-1]) > 127)
    return Clip(np.stack(small), np.stack(masks))


def compare_clips(clip: Clip, other: Clip) -> Measures:
    """Compute the four measures of two clips, in either order; where nothing moves in both, the IoU is 1."""
    if clip.frames.shape != other.frames.shape:
        raise ValueError(f"Clips: expected one shape, got {clip.frames.shape} and {other.frames.shape}.")
    pairs = zip(clip.frames, other.frames, strict=True)
    # frame by frame: a whole clip in floating point would take much memory
    errors = [np.square((ours.astype(np.float32) - theirs) / 255).mean() for ours, theirs in pairs]
    overlaps = list(map(_overlap, clip.masks, other.masks))
    return Measures(
        spatial_iou=_overlap(clip.masks.any(axis=0), other.masks.any(axis=0)),
        spatiotemporal_iou=float(np.mean(overlaps)),
        weighted_spatial_iou=_overlap(clip.masks.mean(axis=0), other.masks.mean(axis=0)),
        mse=float(np.mean(errors)),
    )


def physics_iq(generated: Sequence[Measures], physical: Sequence[Measures]) -> PhysicsIQ:
    """Compute the score of the original Physics-IQ (Physics-IQ Verified has another).

    ``100 * (mean of the three overlaps as shares of the takes' - (mse of generated - mse of takes))``, from
    means over all videos, clamped to 0..100; both were measured against first takes.
    """
    if not generated or not physical:
        raise ValueError("Physics-IQ needs at least one video.")
    ours, takes = (np.mean([astuple(one) for one in measures], axis=0) for measures in (generated, physical))
    if not takes[:3].all():
        name = ("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou")[takes[:3].argmin()]
        raise ValueError(f"The two takes have a {name} of 0, which no video can be measured by.")
    score = (ours[:3] / takes[:3]).mean() - (ours[3] - takes[3])
    return PhysicsIQ(float(100 * np.clip(score, 0, 1)), *(Measures(*means.tolist()) for means in (ours, takes)))


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two maps, binary or in 0..1; 1 if both are empty."""
    union = np.maximum(one, other).sum()
    return float(np.minimum(one, other).sum() / union) if union else 1.0
