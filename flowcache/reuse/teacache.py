"""The TeaCache baseline: one decision for the whole window."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import option
from .policy import COMPUTE, ReusePolicy, accumulate, relative_l1


@dataclass
class TeaCache(ReusePolicy):
    """Skip all live chunks together while one accumulated distance stays below a threshold.

    The indicators of all chunks are measured as one tensor, as if the window were a single sample
    (Liu et al., "Timestep Embedding Tells", 2024; the baseline of the FlowCache paper).

    Args:
        threshold: accumulated distance at which the window is computed; 0 never reuses.
        warmup_steps: steps at the start that are always computed.
        final_steps: steps at the end that are always computed.
        coefficients: polynomial over the distance, highest power first; None takes the distance itself.
        indicator: tensor that is watched; None: the model's default.
    """

    threshold: float = option(0.15, 0, 1000)
    warmup_steps: int = option(5, 1, 1000)
    final_steps: int = option(1, 0, 1000)
    coefficients: tuple[float, ...] | None = option(None, -1e12, 1e12)
    indicator: str | None = None

    needs_indicator = True
    joint = True

    def begin(self, num_chunk_steps, times, forecast):
        self._accumulated = 0.0
        self._previous: Tensor | None = None
        self._chunks: list[int] = []

    def decide(self, step, num_steps, live, indicators):
        indicator, chunks = torch.cat([value.flatten() for value in indicators.values()]), list(indicators)
        decision = COMPUTE
        # After chunks have started or finished, there is nothing to compare with.
        if chunks == self._chunks and self.warmup_steps <= step < num_steps - self.final_steps:
            (distance,) = relative_l1([indicator], [self._previous])
            decision = accumulate(self._accumulated, distance, self.coefficients, self.threshold)
        self._accumulated = decision.accumulated if decision.reuse else 0.0
        self._previous, self._chunks = indicator, chunks
        return dict.fromkeys(live, decision)

    def state_dict(self):
        return {"accumulated": self._accumulated, "previous": self._previous, "chunks": self._chunks}

    def load_state_dict(self, state):
        self._accumulated, self._previous = state["accumulated"], state["previous"]
        self._chunks = list(state["chunks"])
