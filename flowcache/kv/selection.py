"""From scores to the tokens that are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scorers import ScoreInput, Scorer

STRATEGIES = GRANULARITIES = ("token", "frame", "chunk")

#: Queries that count with granularity ``token``.
NEWEST_QUERIES = 50

_GOLDEN_RATIO = (1 + 5**0.5) / 2

#: How a score is weighted by a token's place among those that may be dropped, oldest first.
WEIGHTINGS = ("no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian")


def weight_by_place(scores: Tensor, weighting: str, power: float, tokens_per_chunk: int) -> Tensor:
    """Scores ``[..., tokens]`` weighted as the original FlowCache does on MAGI-1.

    All but ``no_weight`` and ``hard_code`` multiply by a curve over the place ``x`` from 0 to 1, and expect
    scores of at least 0.

    Args:
        scores: higher is kept.
        weighting: one of ``WEIGHTINGS``. ``hard_code`` gives the first chunk up; ``gaussian`` favours the
            beginning, the others the end.
        power: of the polynomials.
        tokens_per_chunk: for ``hard_code``.

    Raises:
        ValueError: unknown weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"score_weighting_method must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}.")
    if weighting == "no_weight":
        return scores
    if weighting == "hard_code":
        given_up = torch.arange(scores.shape[-1], device=scores.device) < tokens_per_chunk
        return scores - 1e6 * given_up
    x = torch.linspace(0, 1, scores.shape[-1], device=scores.device)
    if weighting == "upper_convex_polynomial":
        return scores * 2 * (1 - (1 - x) ** power)
    curves = {
        "exponential": lambda: 1 - torch.exp(-2 * x),
        "polynomial": lambda: x**power,
        "gaussian": lambda: torch.exp(-0.5 * (x * (len(x) - 1) / (len(x) / 4)) ** 2),
    }
    curve = curves[weighting]()
    low, high = curve.amin(), curve.amax()
    return scores * (0.1 + 0.9 * (curve - low) / (high - low).clamp_min(1e-12))


def select(scores: Tensor, budget: int, group: int = 1) -> Tensor:
    """Indices of the best tokens of each head, ``[..., kept]``, best first.

    Args:
        scores: ``[..., tokens]``, higher is kept.
        budget: tokens to keep; with groups, as many whole groups as fit.
        group: consecutive tokens that stay or go together, by their mean: those of a frame or a chunk.

    Raises:
        ValueError: no group fits into the budget.
    """
    if group == 1:
        return scores.topk(min(budget, scores.shape[-1]), dim=-1).indices
    count = min(budget, scores.shape[-1]) // group
    if count < 1:
        raise ValueError(f"budget must hold at least one group of {group} tokens, got {budget}.")
    means = group_means(scores, group)
    best = means.topk(count, dim=-1).indices
    return (best.unsqueeze(-1) * group + torch.arange(group, device=scores.device)).flatten(-2)


def group_means(scores: Tensor, group: int) -> Tensor:
    """Mean scores of whole groups of consecutive tokens, ``[..., groups]``; a rest is left out."""
    count = scores.shape[-1] // group
    return scores[..., : count * group].unflatten(-1, (count, group)).mean(dim=-1)


@dataclass(frozen=True)
class TokenSelector:
    """Chooses the tokens that stay.

    Args:
        scorer: says how much each token is worth.
        tokens_per_frame, tokens_per_chunk: sizes of groups.
        strategy: ``token``; or ``frame`` or ``chunk``, to let so many consecutive tokens stay or go together.
        query_granularity: which of the newest queries count: the last 50 (``token``), those of the last
            ``frame``, or of the whole ``chunk``.
        max_queries: of those, so many are asked at most, spread over all of them; None: each.
        weighting, power: see ``weight_by_place``; with strategy ``token`` alone.
        in_time: let kept tokens lie in the order of time, so that neighbours stay neighbours in the next
            round. False: best first, as in the original.
    """

    scorer: Scorer
    tokens_per_frame: int
    tokens_per_chunk: int
    strategy: str = "token"
    query_granularity: str = "token"
    max_queries: int | None = None
    weighting: str = "no_weight"
    power: float = 1.0
    in_time: bool = True

    def newest(self, queries: Tensor) -> Tensor:
        """Those queries ``[..., tokens, heads, head_dim]`` that count."""
        counts = {"token": NEWEST_QUERIES, "frame": self.tokens_per_frame, "chunk": queries.shape[-3]}
        newest = queries[..., -counts[self.query_granularity] :, :, :]
        count = newest.shape[-3]
        if self.max_queries is None or count <= self.max_queries:
            return newest
        # Steps of the golden section fall evenly, but never into step with the rows of a frame.
        stride = round(count / _GOLDEN_RATIO)
        while math.gcd(stride, count) > 1:
            stride += 1
        places = torch.arange(self.max_queries, device=newest.device) * stride % count
        return newest.index_select(-3, places)

    def scores(self, tokens: ScoreInput) -> Tensor:
        """Scores by which is chosen, ``[..., kv_heads, tokens]``."""
        scores = self.scorer.score(tokens)
        if self.strategy != "token":
            return scores
        scores = scores - scores.amin(dim=-1, keepdim=True)
        return weight_by_place(scores, self.weighting, self.power, self.tokens_per_chunk)

    def choose(self, tokens: ScoreInput, budget: int) -> Tensor:
        """Indices of the tokens to keep, ``[..., kv_heads, kept]``; at most ``budget`` a head."""
        group = {"token": 1, "frame": self.tokens_per_frame, "chunk": self.tokens_per_chunk}[self.strategy]
        chosen = select(self.scores(tokens), budget, group)
        # What was kept before lies in the order of time as well, so the order of rows is that of time.
        return chosen.sort(dim=-1).values if self.in_time else chosen
