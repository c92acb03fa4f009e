"""FLOPs of a run, and of the same run without each part of the method.

A multiply-add counts as two; matrix products only.
"""

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
        """Patch embedding; the same for all branches."""
        return 2.0 * num_tokens * self.patch_features_in * self.dim

    def head(self, num_tokens: int) -> float:
        return 2.0 * num_tokens * self.patch_features_out * self.dim


class GainSplit:
    """Counts each step of a window four times, to split the gain by its causes.

    - ``vanilla``: what the original runs. A model that runs its whole window computes every chunk, each
      attending to the whole window; for others the same as ``causal``.
    - ``live_only``: only live chunks run; each attends to what it does in ``vanilla``.
    - ``causal``: only live chunks run, and attend to themselves and what the cache holds of earlier ones.
    - ``actual``: what was run.

    Args:
        model: counts an evaluation.
        lengths: tokens of each chunk of the window.
        num_given: given chunks, which run once.
        num_steps: local steps of a chunk.
    """

    def __init__(self, model: ChunkModel, lengths: Sequence[int], num_given: int, num_steps: int) -> None:
        self._model, self._lengths = model, list(lengths)
        self._num_given, self._num_steps = num_given, num_steps
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
        """FLOPs of one step, by accounting.

        Args:
            ran: chunks that went through the block stack.
            edges: chunks that went through embedding and head.
            live: local steps of the chunks that moved.
            first: whether this is the window's first step, at which given chunks run.
            cleaned: finished chunks among those that ran.
            seen: tokens that each of those saw, where a cache was compressed; None: all that it could.
        """
        block, lengths = self._model.block_flops, self._lengths
        progress = dict.fromkeys(cleaned, self._num_steps) | live
        needed = dict.fromkeys(range(self._num_given) if first else []) | progress

        def edge(chunks: Mapping[int, int | None]) -> float:
            return sum(self._model.edge_flops(lengths[c], k) for c, k in chunks.items())

        def full(chunks: Mapping[int, int | None]) -> float:
            return sum(block(lengths[c], self._ends[-1], k) for c, k in chunks.items())

        def causal(chunks: Mapping[int, int | None]) -> float:
            return sum(block(lengths[c], self._causal_keys(c, k), k) for c, k in chunks.items())

        ran_at = {c: progress.get(c) for c in ran}
        if seen is not None:
            actual = sum(block(lengths[c], seen[c], k) for c, k in ran_at.items())
        else:
            actual = (full if self._model.bidirectional else causal)(ran_at)
        actual += edge({c: progress.get(c) for c in edges})
        least = causal(needed) + edge(needed)
        counts = {"actual": actual, "vanilla": least, "live_only": least, "causal": least}
        if self._model.runs_whole_window:
            everything = {c: live.get(c) for c in range(len(lengths))}
            counts["vanilla"] = full(everything) + edge(everything)
            counts["live_only"] = full(live) + edge(live)
        return counts

    def _causal_keys(self, chunk: int, local_step: int | None) -> int:
        reach = self._model.reach(local_step)
        first = 0 if reach is None else max(0, chunk + 1 - reach)
        return self._ends[chunk] - self._ends[first] + self._lengths[first]
