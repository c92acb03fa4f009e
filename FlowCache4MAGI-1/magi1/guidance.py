"""Guidance: branches of a chunk and the mix of their velocities (arXiv 2505.13211, 3.2)."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

#: Share of the velocity with context, when a chunk also runs without.
PREVIOUS_WEIGHT = 0.7


@dataclass(frozen=True)
class Branch:
    """One guidance stream: with the caption (``text``) or the null caption, in a ``slot`` of the cache.

    Without a slot, a chunk attends to itself alone and stores nothing.
    """

    text: bool
    slot: int | None


@dataclass(frozen=True)
class DistilledGuidance:
    """One forward: guidance is distilled into the weights.

    When the oldest live chunk is nearly clean, it also runs without context, and the two velocities are
    mixed, which keeps errors from spreading to later chunks.
    """

    threshold: float | None = 0.3  # time above which a chunk counts as nearly clean; None: never
    weight: float = PREVIOUS_WEIGHT

    num_slots = 1  # branches of the cache
    _USUAL, _ALONE = Branch(text=True, slot=0), Branch(text=True, slot=None)

    def branches(self, time: float, oldest: bool) -> Sequence[Branch]:
        """Branches of a live chunk; ``oldest``: no other live chunk is nearer to clean."""
        nearly_clean = self.threshold is not None and time > self.threshold
        return (self._USUAL, self._ALONE) if oldest and nearly_clean else (self._USUAL,)

    def mix(self, time: float, velocities: Tensor) -> Tensor:
        """Velocity ``[channels, frames, height, width]`` from those of the branches, stacked in front."""
        if len(velocities) == 1:
            return velocities[0]
        usual, alone = velocities
        return self.weight * usual + (1 - self.weight) * alone


@dataclass(frozen=True)
class ThreeWayGuidance:
    """Three forwards: with text and earlier chunks, without text, and without either."""

    times: Sequence[float]  # from which the scales at the same place hold, rising from 0
    previous_scales: Sequence[float]  # weight of the earlier chunks
    text_scales: Sequence[float]

    num_slots = 2
    _BRANCHES = (Branch(text=True, slot=0), Branch(text=False, slot=1), Branch(text=False, slot=None))

    def __post_init__(self) -> None:
        times, scales = self.times, (*self.previous_scales, *self.text_scales)
        if not len(times) == len(self.previous_scales) == len(self.text_scales):
            raise ValueError("cfg_t_range, prev_chunk_scales and text_scales: expected one length for all.")
        if not all(map(math.isfinite, (*times, *scales))):
            raise ValueError("cfg_t_range, prev_chunk_scales and text_scales must hold finite numbers.")
        if not times or times[0] != 0 or any(after <= before for before, after in pairwise(times)):
            raise ValueError(f"cfg_t_range must hold times that rise from 0, got {list(times)}.")

    def branches(self, time: float, oldest: bool) -> Sequence[Branch]:
        return self._BRANCHES

    def mix(self, time: float, velocities: Tensor) -> Tensor:
        place = bisect_left([start - 1e-7 for start in self.times], time) - 1
        previous, text = self.previous_scales[place], self.text_scales[place]
        both, without_text, alone = velocities
        return (1 - previous) * alone + (previous - text) * without_text + text * both


Guidance = DistilledGuidance | ThreeWayGuidance
