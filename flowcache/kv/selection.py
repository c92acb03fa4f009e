"""From scores to the tokens that are kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import KVCompressionConfig
from .original import weight_by_place
from .scorers import ScoreInput

#: Queries that count with granularity ``token``.
NEWEST_QUERIES = 50

_GOLDEN_RATIO = (1 + 5**0.5) / 2


def select(scores: Tensor, budget: int, group: int = 1) -> Tensor:
    """Indices of the best tokens of each head, ``[..., kept]``, best first.

    Args:
        scores: ``[..., tokens]``.
        budget: tokens to keep; with groups, as many whole groups as fit.
        group: consecutive tokens that are kept or dropped together, by their mean score.
    """
    if group == 1:
        return scores.topk(min(budget, scores.shape[-1]), dim=-1).indices
    count = min(budget, scores.shape[-1]) // group
    if count < 1:
        raise ValueError(f"budget: expected room for a group of {group} tokens, got {budget}.")
    best = group_means(scores, group).topk(count, dim=-1).indices
    return (best.unsqueeze(-1) * group + torch.arange(group, device=scores.device)).flatten(-2)


def group_means(scores: Tensor, group: int) -> Tensor:
    """Mean scores of whole groups of consecutive tokens, ``[..., groups]``; a rest is left out."""
    count = scores.shape[-1] // group
    return scores[..., : count * group].unflatten(-1, (count, group)).mean(dim=-1)


@dataclass(frozen=True)
class TokenSelector:
    """Chooses the tokens to keep, of a model with frames and chunks of that many tokens.

    ``asked_chunks``: most chunks whose queries count together with granularity ``live``; ``retime``: of the model.
    """

    config: KVCompressionConfig
    tokens_per_frame: int
    tokens_per_chunk: int
    asked_chunks: int = 1
    retime: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def asks_live(self) -> bool:
        """Whether the queries of all live chunks count, not those of one."""
        return self.config.query_granularity == "live"

    def newest(self, queries: Tensor) -> Tensor:
        """Those of a chunk's queries ``[..., tokens, heads, head_dim]`` that count."""
        whole = queries.shape[-3]
        counts = {"token": NEWEST_QUERIES, "frame": self.tokens_per_frame, "chunk": whole, "live": whole}
        newest = queries[..., -counts[self.config.query_granularity] :, :, :]
        count, most = newest.shape[-3], self.config.max_queries
        if most is not None and self.asks_live:
            most = max(1, most // self.asked_chunks)
        if most is None or count <= most:
            return newest
        # Steps of the golden section are spread evenly and never align with the rows of a frame.
        stride = round(count / _GOLDEN_RATIO)
        while math.gcd(stride, count) > 1:
            stride += 1
        return newest.index_select(-3, torch.arange(most, device=newest.device) * stride % count)

    def scores(self, tokens: ScoreInput) -> Tensor:
        """Scores that decide, ``[..., kv_heads, tokens]``."""
        scores, original = self.config.scorer.score(tokens), self.config.original
        if original is None or self.config.strategy != "token":
            return scores
        scores = scores - scores.amin(dim=-1, keepdim=True)
        return weight_by_place(scores, original.weighting, original.power, self.tokens_per_chunk)

    def choose(self, tokens: ScoreInput) -> Tensor:
        """Indices of the tokens to keep, ``[..., kv_heads, kept]``; at most the budget per head."""
        groups = {"token": 1, "frame": self.tokens_per_frame, "chunk": self.tokens_per_chunk}
        chosen = select(self.scores(tokens), tokens.budget, groups[self.config.strategy])
        original, scorer = self.config.original, self.config.scorer
        if original and original.best_first and not scorer.needs_order:
            return chosen
        # Rows are in order of time, so that kept neighbours are neighbours in the next round, too.
        return chosen.sort(dim=-1).values
