"""Physics-IQ: whether a generated video moves where, when, as much and in the way that the real one does.

Motamed et al. 2025, arXiv 2501.09038. Every scene was filmed twice. How far the two takes lie apart is what
chance makes of the same physics, and a video that comes as close to the first take scores 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..extras import require
from ..video import Frames
from .motion import Mask, motion_masks


@dataclass(frozen=True)
class Clip:
    """A video, uint8 ``[frames, height, width, 3]``, and what moves in it, ``[frames, height, width]``."""

    frames: Frames
    masks: Mask

    def last(self, count: int) -> Clip:
        """The last ``count`` frames, or all if there are fewer."""
        return Clip(self.frames[-count:], self.masks[-count:])


@dataclass(frozen=True)
class Measures:
    """How two clips agree; intersections over unions lie in 0..1, 1 is best.

    Attributes:
        spatial_iou: of the places where anything moves at any time: where.
        spatiotemporal_iou: of what moves, frame by frame, mean over frames: where and when.
        weighted_spatial_iou: of how often each place moves, the lesser over the greater: where and how much.
        mse: mean squared difference of colours in 0..1; 0 is best: how.
    """

    spatial_iou: float
    spatiotemporal_iou: float
    weighted_spatial_iou: float
    mse: float

    @classmethod
    def mean(cls, measures: Sequence[Measures]) -> Measures:
        """Mean of each, every clip counting alike."""
        return cls(**{f.name: float(np.mean([getattr(m, f.name) for m in measures])) for f in fields(cls)})


@dataclass(frozen=True)
class PhysicsIQ:
    """The score in percent, 0..100, and the means that it is made of.

    Attributes:
        score: see ``physics_iq``.
        generated: generated videos against first takes.
        physical: second takes against first takes.
    """

    score: float
    generated: Measures
    physical: Measures


def make_clip(frames: Iterable[Frames], size: tuple[int, int]) -> Clip:
    """Find what moves in a video, and scale both to one size.

    Motion is sought at the video's own size, where the benchmark's thresholds hold.

    Args:
        frames: uint8 ``[height, width, 3]``, taken one by one, so that a video need not fit into memory.
        size: height and width of the clip; proportions are not kept.

    Raises:
        Unavailable: OpenCV is not installed.
    """
    cv2 = require("cv2", "Physics-IQ", "metrics")
    small: list[Frames] = []
    height, width = size

    def scaled() -> Iterable[Frames]:
        for frame in frames:
            small.append(cv2.resize(frame, (width, height)))
            yield frame

    masks = [cv2.resize(mask, (width, height)) > 127 for mask in motion_masks(scaled())]
    return Clip(np.stack(small), np.stack(masks))


def compare_clips(clip: Clip, other: Clip) -> Measures:
    """The four measures of two clips of one size and length; either may be the reference.

    Where nothing moves in either, they agree: an intersection over union of 1.

    Raises:
        ValueError: sizes or lengths differ.
    """
    if clip.frames.shape != other.frames.shape:
        raise ValueError(
            f"Clips must have one shape, got {list(clip.frames.shape)} and {list(other.frames.shape)}."
        )
    frames = [_overlap(a, b) for a, b in zip(clip.masks, other.masks, strict=True)]
    return Measures(
        spatial_iou=_overlap(clip.masks.any(axis=0), other.masks.any(axis=0)),
        spatiotemporal_iou=float(np.mean(frames)),
        weighted_spatial_iou=_overlap(clip.masks.mean(axis=0), other.masks.mean(axis=0)),
        # frame by frame: a whole clip in floating point would take much memory
        mse=float(np.mean([_error(a, b) for a, b in zip(clip.frames, other.frames, strict=True)])),
    )


def physics_iq(generated: Sequence[Measures], physical: Sequence[Measures]) -> PhysicsIQ:
    """The benchmark's score: each mean overlap as a share of what two takes have, less the excess of error.

    ``100 * (mean of the three ratios - (mse of generated - mse of takes))``, cut off at 0 and 100. This is
    the score of the original Physics-IQ, of means over all videos; Physics-IQ Verified has another.

    Args:
        generated: each generated video against its first take.
        physical: each second take against its first.

    Raises:
        ValueError: there is none, or the takes never overlap in one of the measures.
    """
    if not generated or not physical:
        raise ValueError("Physics-IQ needs at least one video.")
    ours, takes = Measures.mean(generated), Measures.mean(physical)
    ratios = []
    for name in ("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou"):
        if not getattr(takes, name):
            raise ValueError(f"The two takes have a {name} of 0, which no video can be measured by.")
        ratios.append(getattr(ours, name) / getattr(takes, name))
    score = np.mean(ratios) - (ours.mse - takes.mse)
    return PhysicsIQ(float(100 * np.clip(score, 0, 1)), ours, takes)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two maps, binary or in 0..1; 1 if both are empty."""
    union = np.maximum(one, other).sum()
    return float(np.minimum(one, other).sum() / union) if union else 1.0


def _error(frame: Frames, other: Frames) -> float:
    """Mean squared difference of two frames, with colours in 0..1."""
    return float(np.square((frame.astype(np.float32) - other) / 255).mean())
