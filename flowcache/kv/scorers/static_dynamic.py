"""Keep the newest tokens in heads that look close by, and in the others what changes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...registry import option
from .base import ScoreInput, Scorer
from .importance import attention_mass


@dataclass(frozen=True)
class StaticDynamic(Scorer):
    """Static and dynamic heads of Forcing-KV (2026), distinguished by what the recorded queries attend to.

    All keep the newest frame, and the first if the budget has room for it. Besides, a static head keeps the newest
    tokens, and a dynamic one the segments whose keys are least like the next that it has at the same place of a frame.

    Args:
        static: share of attention, that to the first frame left out, which a static head spends on the newest chunk
            and the frame before it, at least.
        segments: of a frame, kept or dropped as one.
    """

    needs_order = True

    static: float = option(0.5, 0, 1)
    segments: int = option(6, 1, 10000)

    def sink_chunks(self, budget: float) -> float:
        return min(1, budget)

    def score(self, tokens: ScoreInput) -> Tensor:
        ages, frame = tokens.ages.long(), tokens.tokens_per_frame
        oldest = ages.amax(dim=-1, keepdim=True)
        first, near = ages > oldest - frame, ages < tokens.tokens_per_chunk + frame
        mass = attention_mass(tokens.queries, tokens.keys)
        drawn, drawn_near = ((mass * part).sum(dim=-1, keepdim=True) for part in (~first, near & ~first))
        changes = self._segment_means(1 - similarity_to_next(tokens.keys, ages, frame), ages, frame)
        scores = torch.where(drawn_near >= self.static * drawn, -ages / oldest.clamp_min(1), changes)
        # More than a mean over a frame or a chunk can lose.
        return scores + 1000 * first + 2000 * (ages < frame)

    def _segment_means(self, values: Tensor, ages: Tensor, frame: int) -> Tensor:
        """For each token, the mean over those of its segment."""
        segments = ages // frame * self.segments + ages % frame * self.segments // frame
        places = (segments.diff(dim=-1, prepend=segments[..., :1]) != 0).cumsum(dim=-1)
        sums, counts = (
            torch.zeros_like(values).scatter_add_(-1, places, each) for each in (values, torch.ones_like(values))
        )
        return (sums / counts.clamp_min(1)).gather(-1, places)


def similarity_to_next(keys: Tensor, ages: Tensor, tokens_per_frame: int) -> Tensor:
    """Cosine similarity of each key to the next newer one at the same place of a frame, 1 where there is none.

    Args:
        keys: ``[..., tokens, kv_heads, head_dim]``.
        ages: ``[..., kv_heads, tokens]``, integers.
    """
    places = ages % tokens_per_frame
    order = (places * (ages.amax() + 1) - ages).argsort(dim=-1)  # places one after another, each from old to new
    units = normalize(keys.transpose(-3, -2).float(), dim=-1)
    units = units.gather(-2, order.unsqueeze(-1).expand_as(units))
    alike = (units[..., :-1, :] * units[..., 1:, :]).sum(dim=-1)
    followed = places.gather(-1, order).diff(dim=-1) == 0
    similarity = torch.ones_like(ages, dtype=alike.dtype)
    return similarity.scatter_(-1, order[..., :-1], alike.where(followed, 1))
