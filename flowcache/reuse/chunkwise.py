"""FlowCache's chunkwise caching: every chunk decides for itself."""

from dataclasses import dataclass, replace

from torch import Tensor

from ..registry import option
from .policy import COMPUTE, Decision, ReusePolicy, accumulate, relative_l1


@dataclass
class ChunkwiseReuse(ReusePolicy):
    """Skip a chunk while its own accumulated relative-L1 distance stays below a threshold.

    Chunks of one staircase stand at different noise levels, and the same step changes them by different
    amounts; so each has its own accumulator, warm-up and last steps (FlowCache, section 3.2).

    Args:
        threshold: accumulated distance at which a chunk is computed; 0 never reuses.
        warmup_steps: local steps at the start that are always computed.
        final_steps: local steps at the end that are always computed, so that the keys and values of a
            finished chunk are those of its own last step.
        coefficients: polynomial over the distance, highest power first (as TeaCache fits it); None takes the
            distance itself.
        final_window_steps: steps at the end of the whole staircase at which every chunk is computed.
        together: compute all live chunks when one of them starts or reaches its threshold. False: every
            chunk for itself, as the paper does.
        indicator: tensor that is watched; None: the model's default.
    """

    threshold: float = option(0.15, 0, 1000)
    warmup_steps: int = option(5, 1, 1000)
    final_steps: int = option(1, 0, 1000)
    coefficients: tuple[float, ...] | None = option(None, -1e12, 1e12)
    final_window_steps: int = option(0, 0, 1000)
    together: bool = False
    indicator: str | None = None

    needs_indicator = True

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
            accumulated = self._states[chunk][1]
            decisions[chunk] = accumulate(accumulated, distance, self.coefficients, self.threshold)
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
