"""The honest control: compute at fixed intervals."""

from __future__ import annotations

from .policy import COMPUTE, Decision, ReusePolicy


class FixedInterval(ReusePolicy):
    """Compute a chunk at its first and last steps and, in between, at every ``interval``-th step of the loop.

    The steps are counted for the whole staircase, not for each chunk, so that all chunks are computed in the
    same calls of the model.

    Args:
        interval: steps from one computed step to the next; 1 never reuses.
        num_chunk_steps: local steps of every chunk.
        warmup_steps: local steps at the start that are always computed.
        final_steps: local steps at the end that are always computed.
    """

    def __init__(
        self, interval: int, num_chunk_steps: int, warmup_steps: int = 1, final_steps: int = 1
    ) -> None:
        self.interval, self.warmup_steps = interval, warmup_steps
        self.last_reuse = num_chunk_steps - final_steps

    def decide(self, step, num_steps, live, indicators):
        def reuse(local_step: int) -> bool:
            return step % self.interval != 0 and self.warmup_steps <= local_step < self.last_reuse

        return {chunk: Decision(True) if reuse(k) else COMPUTE for chunk, k in live.items()}
