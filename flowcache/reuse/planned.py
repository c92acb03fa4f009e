"""Follow a plan that was made beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from .policy import COMPUTE, Decision, ReusePolicy


class Planned(ReusePolicy):
    """Compute every chunk at the same given local steps; decides nothing at run time.

    Args:
        computed_steps: local steps at which a chunk is computed; the first step always is.
    """

    def __init__(self, computed_steps: Sequence[int]) -> None:
        self.computed_steps = frozenset((0, *computed_steps))

    def decide(self, step, num_steps, live, indicators):
        return {c: COMPUTE if k in self.computed_steps else Decision(True) for c, k in live.items()}
