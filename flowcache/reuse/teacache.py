"""The TeaCache baseline: one decision for the whole window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .policy import Decision, ReusePolicy, polynomial, relative_l1


class TeaCache(ReusePolicy):
    """Skip all live chunks together while one accumulated distance stays below a threshold.

    The indicators of all chunks are measured as one tensor, as if the window were a single sample
    (Liu et al., "Timestep Embedding Tells", 2024; the baseline of the FlowCache paper).

    Args:
        threshold: the window is computed once its accumulated distance reaches this. 0 never reuses.
        warmup_steps: steps at the start that are always computed, at least 1.
        final_steps: steps at the end that are always computed.
        coefficients: polynomial, highest power first, applied to the distance; None leaves it as it is.
        period: steps after which the forced first and last steps recur. None: they occur once in the
            staircase. The original counts up to the chunk's number of steps and then starts anew, although
            a staircase has more steps than that.
    """

    needs_indicator = True
    joint = True

    def __init__(
        self,
        threshold: float,
        warmup_steps: int = 1,
        final_steps: int = 1,
        coefficients: Sequence[float] | None = None,
        period: int | None = None,
    ) -> None:
        self.threshold = threshold
        self.warmup_steps = max(1, warmup_steps)
        self.final_steps = final_steps
        self.coefficients = coefficients
        self.period = period
        self.begin((), None)

    def decide(
        self, step: int, num_steps: int, live: dict[int, int], indicators: dict[int, Tensor]
    ) -> dict[int, Decision]:
        indicator = torch.cat([value.flatten() for value in indicators.values()])
        # Where chunks have come or gone, there is nothing to compare with.
        same = self._chunks == list(indicators)
        decision = self._judge(step, num_steps, indicator) if same else Decision(reuse=False)
        self._accumulated = decision.accumulated if decision.reuse else 0.0
        self._previous, self._chunks = indicator, list(indicators)
        return dict.fromkeys(live, decision)

    def begin(self, times, forecast):
        self._accumulated = 0.0
        self._previous: Tensor | None = None
        self._chunks: list[int] = []

    def state_dict(self):
        return {"accumulated": self._accumulated, "previous": self._previous, "chunks": self._chunks}

    def load_state_dict(self, state):
        self._accumulated, self._previous = state["accumulated"], state["previous"]
        self._chunks = list(state["chunks"])

    def _judge(self, step: int, num_steps: int, indicator: Tensor) -> Decision:
        period = self.period or num_steps
        position = step % period
        last = max(position - period, step - num_steps) >= -self.final_steps
        forced = position < self.warmup_steps or last
        if forced:
            return Decision(reuse=False)
        (distance,) = relative_l1([indicator], [self._previous])
        change = distance if self.coefficients is None else polynomial(self.coefficients, distance)
        accumulated = self._accumulated + change
        # A fitted polynomial may be negative, so a threshold of 0 has to be asked for by name.
        return Decision(self.threshold > 0 and accumulated < self.threshold, distance, accumulated)
