"""Compute at steps that are fixed beforehand, all live chunks in the same calls."""

from __future__ import annotations

from collections.abc import Collection

from .policy import COMPUTE, Decision, ReusePolicy


class Planned(ReusePolicy):
    """Compute all live chunks together, at given steps of the youngest of them.

    A chunk that is computed alone sees neighbours with the keys and values of an older step. Computed in the
    same call they see each other as they are; and since a chunk has to be computed when it starts, that is
    the step at which the others cost least. A fixed interval is the plan ``range(0, num_chunk_steps,
    interval)``.

    Args:
        computed_steps: of the youngest live chunk, at which every live chunk is computed.
        num_chunk_steps: local steps of every chunk.
        warmup_steps: local steps at the start that a chunk computes in any case, at least 1.
        final_steps: local steps at the end that a chunk computes in any case.
    """

    def __init__(
        self,
        computed_steps: Collection[int],
        num_chunk_steps: int,
        warmup_steps: int = 1,
        final_steps: int = 1,
    ) -> None:
        self.computed_steps, self.warmup_steps = frozenset(computed_steps), max(1, warmup_steps)
        self.reuse_end = num_chunk_steps - final_steps

    def decide(self, step, num_steps, live, indicators):
        if min(live.values(), default=0) in self.computed_steps:
            return dict.fromkeys(live, COMPUTE)
        return {
            chunk: Decision(self.warmup_steps <= local_step < self.reuse_end)
            for chunk, local_step in live.items()
        }


def steps_in_staircase(plan: Collection[int], num_chunk_steps: int, stride: int) -> list[list[int]]:
    """A chunk's own steps at which it is computed, for each number of younger chunks that follow it.

    From none to as many as can be live beside it: the chunks of a video that is just so long. ``stride`` is
    the steps by which a chunk lags behind the one before it, 0 if all move together.
    """
    younger = range(max(1, -(-num_chunk_steps // stride))) if stride else range(1)
    last = num_chunk_steps - 1

    def computed(step: int, younger: int) -> bool:
        # of the youngest at that time, as far as younger ones have started
        return step in (0, last) or step - stride * min(younger, step // max(1, stride)) in plan

    return [[k for k in range(num_chunk_steps) if computed(k, count)] for count in younger]


def computed_share(plan: Collection[int], num_chunk_steps: int, stride: int) -> float:
    """Share of chunk steps that a plan computes, in the mean over the chunks of ``steps_in_staircase``.

    In a longer video the steps below ``stride`` count for more, as a younger chunk always follows.
    """
    rows = steps_in_staircase(plan, num_chunk_steps, stride)
    return sum(map(len, rows)) / (len(rows) * num_chunk_steps)
