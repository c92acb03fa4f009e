"""The TeaCache baseline: one decision for the whole window."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .policy import COMPUTE, DistancePolicy, relative_l1


@dataclass
class TeaCache(DistancePolicy):
    """Skip all live chunks together while one accumulated distance stays below a threshold.

    The indicators of all chunks are measured as one tensor, as if the window were a single sample
    (Liu et al., "Timestep Embedding Tells", 2024; the baseline of the FlowCache paper).
    """

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
            decision = self.accumulate(self._accumulated, distance)
        self._accumulated = decision.accumulated if decision.reuse else 0.0
        self._previous, self._chunks = indicator, chunks
        return dict.fromkeys(live, decision)

    def state_dict(self):
        return {"accumulated": self._accumulated, "previous": self._previous, "chunks": self._chunks}

    def load_state_dict(self, state):
        self._accumulated, self._previous = state["accumulated"], state["previous"]
        self._chunks = list(state["chunks"])
