"""What a run costs in FLOPs, and what the same run would have cost without each part of the method.

A multiply-add counts as two; matrix products only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from .chunk_model import ChunkModel


class GainSplit:
    """Counts each step of a window four ways, so that the gain can be told apart.

    - ``vanilla``: every chunk of the window runs, each attends to the whole window;
    - ``live_only``: only live chunks run, each still attends to the whole window;
    - ``causal``: only live chunks run, and attend to themselves and what the cache holds of earlier ones;
    - ``actual``: what was really run.

    Args:
        model: tells what an evaluation costs.
        lengths: tokens of each chunk of the window.
        num_given: given chunks, which run once.
    """

    def __init__(self, model: ChunkModel, lengths: Sequence[int], num_given: int) -> None:
        self._lengths = list(lengths)
        self._num_given = num_given
        total = sum(lengths)
        self._edges = [model.edge_flops(n) for n in lengths]
        self._full = [model.block_flops(n, total) for n in lengths]
        self._causal = [
            model.block_flops(n, end) for n, end in zip(lengths, accumulate(lengths), strict=True)
        ]
        self._actual = self._full if model.bidirectional else self._causal

    def step(
        self, ran: Sequence[int], edges: Sequence[int], live: Sequence[int], first: bool
    ) -> dict[str, float]:
        """Cost of one step.

        Args:
            ran: chunks that went through the block stack.
            edges: chunks that went through embedding and head.
            live: chunks that moved.
            first: whether this is the window's first step, at which given chunks run.
        """
        everything = range(len(self._lengths))
        needed = [*range(self._num_given), *live] if first else live
        return {
            "actual": sum(self._actual[c] for c in ran) + sum(self._edges[c] for c in edges),
            "vanilla": sum(self._full[c] + self._edges[c] for c in everything),
            "live_only": sum(self._full[c] + self._edges[c] for c in live),
            "causal": sum(self._causal[c] + self._edges[c] for c in needed),
        }
