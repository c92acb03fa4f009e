"""What a run costs in FLOPs, and what the same run would have cost without each part of the method.

A multiply-add counts as two; matrix products only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .chunk_model import ChunkModel


@dataclass(frozen=True)
class PatchFlops:
    """FLOPs of a transformer's edges: its patch embedding and its output projection."""

    dim: int
    patch_features_in: int
    patch_features_out: int

    def embed(self, num_tokens: int) -> float:
        """The patch embedding; the same for all branches."""
        return 2.0 * num_tokens * self.patch_features_in * self.dim

    def head(self, num_tokens: int) -> float:
        """The output projection."""
        return 2.0 * num_tokens * self.patch_features_out * self.dim


class GainSplit:
    """Counts each step of a window four ways, so that the gain can be told apart.

    - ``vanilla``: what the original runs at every step. For a model that runs its whole window, every chunk,
      and each attends to the whole window; for others the same as ``causal``.
    - ``live_only``: only live chunks run, each still attends to the whole window, if the original does;
    - ``causal``: only live chunks run, and attend to themselves and what the cache holds of earlier ones;
    - ``actual``: what was really run.

    Args:
        model: tells what an evaluation costs.
        lengths: tokens of each chunk of the window.
        num_given: given chunks, which run once.
        num_steps: local steps of a chunk.
    """

    def __init__(self, model: ChunkModel, lengths: Sequence[int], num_given: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._model, self._lengths, self._num_given = model, list(lengths), num_given
        self._ends = list(accumulate(lengths))

    def step(
        self,
        ran: Sequence[int],
        edges: Sequence[int],
        live: dict[int, int],
        first: bool,
        cleaned: Sequence[int] = (),
        seen: Mapping[int, int] | None = None,
    ) -> dict[str, float]:
        """Cost of one step.

        Args:
            ran: chunks that went through the block stack.
            edges: chunks that went through embedding and head.
            live: chunks that moved, with their local steps.
            first: whether this is the window's first step, at which given chunks run.
            cleaned: finished chunks among those that ran.
            seen: tokens that those that ran saw, where a cache was compressed; None: all that they could.
        """
        model = self._model
        progress = dict.fromkeys(cleaned, self._num_steps) | live
        needed = dict.fromkeys(range(self._num_given) if first else []) | progress
        causal = sum(self._causal(c, k) + self._edge(c, k) for c, k in needed.items())
        counts = {
            "actual": self._ran(ran, progress, seen) + sum(self._edge(c, progress.get(c)) for c in edges),
            "vanilla": causal,
            "live_only": causal,
            "causal": causal,
        }
        if model.runs_whole_window:
            everything = range(len(self._lengths))
            counts["vanilla"] = sum(
                self._full(c, live.get(c)) + self._edge(c, live.get(c)) for c in everything
            )
            counts["live_only"] = sum(self._full(c, k) + self._edge(c, k) for c, k in live.items())
        return counts

    def _ran(self, ran: Sequence[int], progress: dict[int, int], seen: Mapping[int, int] | None) -> float:
        attended = self._full if self._model.bidirectional else self._causal
        if seen is None:
            return sum(attended(c, progress.get(c)) for c in ran)
        return sum(self._model.block_flops(self._lengths[c], seen[c], progress.get(c)) for c in ran)

    def _edge(self, chunk: int, local_step: int | None) -> float:
        return self._model.edge_flops(self._lengths[chunk], local_step)

    def _full(self, chunk: int, local_step: int | None) -> float:
        return self._model.block_flops(self._lengths[chunk], self._ends[-1], local_step)

    def _causal(self, chunk: int, local_step: int | None) -> float:
        reach = self._model.reach(local_step)
        first = 0 if reach is None else max(0, chunk + 1 - reach)
        keys = self._ends[chunk] - self._ends[first] + self._lengths[first]
        return self._model.block_flops(self._lengths[chunk], keys, local_step)
