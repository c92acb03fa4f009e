"""FlowCache's chunkwise caching: every chunk decides for itself."""

from dataclasses import dataclass, replace

from torch import Tensor

from ..registry import option
from .policy import COMPUTE, Decision, DistancePolicy, relative_l1


@dataclass
class ChunkwiseReuse(DistancePolicy):
    """Skip a chunk while its own accumulated relative-L1 distance stays below a threshold.

    Chunks of one staircase stand at different noise levels, and the same step changes them by different
    amounts; so each has its own accumulator, warm-up and last steps (FlowCache, section 3.2).

    Args:
        warmup_steps, final_steps: local steps of a chunk; the last ones leave the keys and values of a finished chunk.
        final_window_steps: steps at the end of the whole staircase at which every chunk is computed.
        together: compute all live chunks when one of them starts or reaches its threshold. False: every
            chunk for itself, as the paper does.
    """

    final_window_steps: int = option(0, 0, 1000)
    together: bool = False

    def begin(self, num_chunk_steps, times, forecast):
        self._reuse_end = num_chunk_steps - self.final_steps
        #: Previous indicator and accumulated distance by chunk.
        self._states: dict[int, tuple[Tensor, float]] = {}

    def decide(self, step, num_steps, live, indicators):
        adaptive = [
            chunk
            for chunk, local_step in live.items()
            if chunk in self._states
            and step < num_steps - self.final_window_steps
            and self.warmup_steps <= local_step < self._reuse_end
        ]
        distances = relative_l1([indicators[c] for c in adaptive], [self._states[c][0] for c in adaptive])
        decisions = dict.fromkeys(live, COMPUTE)
        for chunk, distance in zip(adaptive, distances, strict=True):
            decisions[chunk] = self.accumulate(self._states[chunk][1], distance)
        if self.together:
            decisions = compute_together(decisions, live)
        for chunk, decision in decisions.items():
            # The indicator is that of the previous step, computed or not: the accumulator sums all changes.
            self._states[chunk] = (indicators[chunk], decision.accumulated if decision.reuse else 0.0)
        return decisions

    def forget(self, chunk):
        self._states.pop(chunk, None)

    def state_dict(self):
        return {"chunks": dict(self._states)}

    def load_state_dict(self, state):
        self._states = {chunk: tuple(values) for chunk, values in state["chunks"].items()}


def compute_together(decisions: dict[int, Decision], live: dict[int, int]) -> dict[int, Decision]:
    """Compute every live chunk at a step at which one of them starts or reaches its threshold.

    A chunk that is computed alone attends to keys and values of an older step, which adds more error than
    skipping the others saves. Forced steps of a chunk, except its first, do not compute the others.
    """
    # A decision with an accumulated distance was not forced; if it does not reuse, the threshold is reached.
    called = any(live[c] == 0 or (not d.reuse and d.accumulated is not None) for c, d in decisions.items())
    return {c: replace(d, reuse=False) for c, d in decisions.items()} if called else decisions
