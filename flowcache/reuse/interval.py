"""Run the model every N steps, on all live chunks in the same call."""

import math
from dataclasses import dataclass

from ..registry import option
from .policy import COMPUTE, Decision, ReusePolicy


@dataclass
class Interval(ReusePolicy):
    """Compute all live chunks at every ``interval``-th step of the youngest.

    A chunk that is computed alone attends to keys and values of an older step. Computed in one call, chunks
    see each other as they are; and a chunk must be computed when it starts, which is therefore the step at
    which computing the others costs least.

    Args:
        interval: steps from one computed step to the next; None: ``scale`` times the square root of a chunk's
            number of steps, at least 2. (A fixed interval computes too much where steps are many; a fixed
            number of computed steps skips nothing where they are few.)
        scale: of the interval.
        bend: above 0, ``num_steps / interval`` computed steps up to the last but one, denser towards the end, where
            the noise falls fastest (``spread_steps``): for chunks that all move together. 0: an even interval.
        warmup_steps: local steps at the start that a chunk always computes.
        final_steps: local steps at the end that a chunk always computes.
    """

    interval: int | None = option(None, 1, 1000)
    scale: float = option(0.75, 0.001, 1000)
    bend: float = option(0.0, 0, 1)
    warmup_steps: int = option(1, 1, 1000)
    final_steps: int = option(1, 0, 1000)

    reads_tensors = False

    def begin(self, num_chunk_steps, times, forecast):
        every = self.interval_for(num_chunk_steps)
        even = range(0, num_chunk_steps, every)
        self._computed = spread_steps(num_chunk_steps, every, self.bend) if self.bend and every > 1 else even
        self._reuse_end = num_chunk_steps - self.final_steps

    def decide(self, step, num_steps, live, indicators):
        if min(live.values(), default=0) in self._computed:
            return dict.fromkeys(live, COMPUTE)
        return {
            chunk: Decision(self.warmup_steps <= local_step < self._reuse_end) for chunk, local_step in live.items()
        }

    def reads_fresh(self, clean_pass):
        # A chunk that is still in its warm-up, except at its first step, is computed without older ones.
        return self.warmup_steps <= 1 and (clean_pass or self.final_steps >= 1)

    def interval_for(self, num_chunk_steps: int) -> int:
        return self.interval or max(2, round(self.scale * math.sqrt(num_chunk_steps)))

    def describe(self, num_chunk_steps=None):
        options = super().describe()
        if num_chunk_steps is not None:
            options["interval"] = self.interval_for(num_chunk_steps)
        return options


def spread_steps(num_steps: int, interval: int, bend: float) -> set[int]:
    """About ``num_steps / interval`` steps from the first to the last but one.

    With a share x from 0 to 1 of the computed steps, the share x + bend x^3 (1 - x) of all steps is reached: where a
    chunk starts the distance is even, behind the middle wider, and at the end narrower.
    """
    count = max(2, round(num_steps / interval))
    last = max(num_steps - 2, num_steps // 2)
    shares = (i / (count - 1) for i in range(count))
    return {round(last * (x + bend * x**3 * (1 - x))) for x in shares}
