"""FLOPs of a run, and of the same run without each part of the method.

A multiply-add counts as two; matrix products only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .chunk_model import ChunkModel


@dataclass(frozen=True)
class TransformerFlops:
    """FLOPs of one branch, without what is made once a video: keys and values of the text, and the condition."""

    dim: int
    query_dim: int  # channels of all query heads
    key_dim: int
    ffn_dim: int  # rows of all matrices of a feed-forward
    num_layers: int
    patch_features_in: int
    patch_features_out: int
    head_dim: int = 128

    @property
    def num_heads(self) -> int:
        return self.query_dim // self.head_dim

    @property
    def num_kv_heads(self) -> int:
        return self.key_dim // self.head_dim

    def embed(self, num_tokens: int) -> float:
        """Patch embedding; the same for all branches."""
        return 2.0 * num_tokens * self.patch_features_in * self.dim

    def head(self, num_tokens: int) -> float:
        return 2.0 * num_tokens * self.patch_features_out * self.dim

    def blocks(self, num_tokens: int, num_keys: int, text_tokens: int) -> float:
        """The block stack on ``num_tokens`` queries, each attending to keys of video and text."""
        # queries of self and cross attention and the output of both, keys and values
        projections = 2.0 * num_tokens * self.dim * (4 * self.query_dim + 2 * self.key_dim)
        attention = 4 * num_tokens * self.query_dim * (num_keys + text_tokens)
        return self.num_layers * (projections + attention + 2 * num_tokens * self.dim * self.ffn_dim)

    def text(self, text_tokens: int) -> float:
        """Keys and values of the text in all layers, for models that project them in every call."""
        return 4.0 * self.num_layers * text_tokens * self.dim * self.key_dim


class GainSplit:
    """Counts each step of a window four times, to split the gain by its causes.

    - ``vanilla``: what the original runs. A model that runs its whole window computes every chunk, each
      attending to the whole window; for others the same as ``causal``.
    - ``live_only``: only live chunks run; each attends to what it does in ``vanilla``.
    - ``causal``: only live chunks run, and attend to themselves and what the cache holds of earlier ones.
    - ``actual``: what was run.

    ``lengths`` are tokens of each chunk; the ``num_given`` given ones run once.
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

        Chunks in ``ran`` went through the block stack, those in ``edges`` through embedding and head, and ``live``
        has the local steps of those that moved; ``cleaned`` ones ran again. At the window's ``first`` step, given
        chunks run. ``seen`` are the tokens that each saw of a compressed cache; None: all that it could.
        """
        model, lengths = self._model, self._lengths
        progress = dict.fromkeys(cleaned, self._num_steps) | live
        needed = dict.fromkeys(range(self._num_given) if first else []) | progress

        def edge(chunks: Mapping[int, int | None]) -> float:
            return sum(model.edge_flops(lengths[c], k) for c, k in chunks.items())

        def stack(chunks: Mapping[int, int | None], keys: Callable[[int, int | None], int]) -> float:
            return sum(model.block_flops(lengths[c], keys(c, k), k) for c, k in chunks.items())

        def whole(chunk: int, local_step: int | None) -> int:
            return self._ends[-1]

        saw = whole if model.bidirectional else self._causal_keys
        saw = saw if seen is None else lambda chunk, _: seen[chunk]
        actual = stack({c: progress.get(c) for c in ran}, saw) + edge({c: progress.get(c) for c in edges})
        least = stack(needed, self._causal_keys) + edge(needed)
        counts = {"actual": actual, "vanilla": least, "live_only": least, "causal": least}
        if model.runs_whole_window:
            everything = {c: live.get(c) for c in range(len(lengths))}
            counts["vanilla"] = stack(everything, whole) + edge(everything)
            counts["live_only"] = stack(live, whole) + edge(live)
        return counts

    def _causal_keys(self, chunk: int, local_step: int | None) -> int:
        reach = self._model.reach(local_step)
        first = 0 if reach is None else max(0, chunk + 1 - reach)
        return self._ends[chunk] - self._ends[first] + self._lengths[first]
