"""FlowCache's chunkwise caching: every chunk decides for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .policy import COMPUTE, Decision, ReusePolicy, computed_together, polynomial, relative_l1


@dataclass
class _ChunkState:
    previous_indicator: Tensor
    accumulated: float = 0.0


class ChunkwiseReuse(ReusePolicy):
    """Skip a chunk while its own accumulated relative-L1 distance stays below a threshold.

    Chunks of one staircase stand at different noise levels, and the same step changes them by different
    amounts; so each has its own accumulator, warm-up and last steps (FlowCache, section 3.2).

    Args:
        threshold: a chunk is computed once its accumulated distance reaches this. 0 never reuses.
        warmup_steps: local steps at the start that are always computed, at least 1.
        final_steps: local steps at the end that are always computed, so that the keys and values a finished
            chunk leaves behind are those of its own last step.
        num_chunk_steps: local steps of every chunk.
        coefficients: polynomial, highest power first, that maps the measured distance to the expected change
            of the output (as TeaCache fits it); None leaves it as it is.
        final_window_steps: steps at the end of the whole staircase at which every chunk is computed.
        together: compute all live chunks when one of them starts or has reached the threshold. False: every
            chunk for itself, as the paper does.
    """

    needs_indicator = True

    def __init__(
        self,
        threshold: float,
        num_chunk_steps: int,
        warmup_steps: int = 1,
        final_steps: int = 1,
        coefficients: Sequence[float] | None = None,
        final_window_steps: int = 0,
        together: bool = False,
    ) -> None:
        self.threshold = threshold
        self.final_window_steps = final_window_steps
        self.together = together
        self.num_chunk_steps = num_chunk_steps
        self.warmup_steps = max(1, warmup_steps)
        self.final_steps = final_steps
        self.coefficients = coefficients
        self._states: dict[int, _ChunkState] = {}

    def decide(
        self, step: int, num_steps: int, live: dict[int, int], indicators: dict[int, Tensor]
    ) -> dict[int, Decision]:
        may_reuse = step < num_steps - self.final_window_steps
        adaptive = [c for c, local_step in live.items() if may_reuse and self._may_reuse(c, local_step)]
        distances = relative_l1(
            [indicators[c] for c in adaptive], [self._states[c].previous_indicator for c in adaptive]
        )
        decisions = dict.fromkeys(live, COMPUTE)
        for chunk, distance in zip(adaptive, distances, strict=True):
            decisions[chunk] = self._judge(self._states[chunk], distance)
        if self.together:
            decisions = computed_together(decisions, live)
        for chunk in live:
            self._remember(chunk, indicators[chunk], decisions[chunk])
        return decisions

    def forget(self, chunk: int) -> None:
        self._states.pop(chunk, None)

    def begin(self, times, forecast):
        self._states.clear()

    def state_dict(self):
        return {"chunks": {c: (s.previous_indicator, s.accumulated) for c, s in self._states.items()}}

    def load_state_dict(self, state):
        self._states = {chunk: _ChunkState(*values) for chunk, values in state["chunks"].items()}

    def _may_reuse(self, chunk: int, local_step: int) -> bool:
        in_between = self.warmup_steps <= local_step < self.num_chunk_steps - self.final_steps
        return in_between and chunk in self._states

    def _judge(self, state: _ChunkState, distance: float) -> Decision:
        change = distance if self.coefficients is None else polynomial(self.coefficients, distance)
        accumulated = state.accumulated + change
        # A fitted polynomial may be negative, so a threshold of 0 has to be asked for by name.
        reuse = self.threshold > 0 and accumulated < self.threshold
        return Decision(reuse=reuse, distance=distance, accumulated=accumulated)

    def _remember(self, chunk: int, indicator: Tensor, decision: Decision) -> None:
        # Consecutive steps are compared, also across a reuse: the accumulator sums the way travelled.
        accumulated = decision.accumulated if decision.reuse else 0.0
        self._states[chunk] = _ChunkState(indicator, accumulated)
