"""Keep tokens from all over the past, more of them where attention is."""

from dataclasses import dataclass

from torch import Tensor

from ...registry import option
from .base import ScoreInput, Scorer
from .importance import attention_peak, group_queries


@dataclass(frozen=True)
class Spread(Scorer):
    """Tokens at even steps through the past, each as long as its peak of attention and its share of the past.

    A token counts for itself and for the dropped ones before it, so that what is kept of old chunks is not halved with
    each compression. All guidance branches keep the same tokens: guidance multiplies what they differ in, so errors
    that they share matter less.

    Args:
        power: of the most attention that any query pays a token; 0: even in time.
    """

    power: float = option(0.5, 0, 10)

    def score(self, tokens: ScoreInput) -> Tensor:
        # Each query head counts for itself.
        queries = group_queries(tokens.queries, tokens.keys.shape[-2]).transpose(-3, -2)
        ages = tokens.ages.float()
        spans = -ages.diff(dim=-1, prepend=ages[..., :1] + 1)
        peak = attention_peak(queries, tokens.keys)
        if peak.ndim > 2:  # one branch has no dimension for branches
            others = tokens.processes.branches
            peak = others.gather(peak, 0, [len(peak)] * others.size)
            peak = peak.mean(dim=tuple(range(peak.ndim - 2)), keepdim=True)
        lengths = peak.clamp_min(1e-12) ** self.power * spans.clamp_min(1)
        steps = _cap(lengths, min(tokens.budget, lengths.shape[-1]))
        ends = steps.double().cumsum(dim=-1) + 0.5
        hit = ends.floor() > (ends - steps).floor()
        # Where rounding leaves a step without a token of its own, the longest of the others is kept.
        return hit + 0.5 * lengths / lengths.amax(dim=-1, keepdim=True)


def _cap(lengths: Tensor, count: int) -> Tensor:
    """Lengths in steps, of which the past has ``count``; none is longer than a step."""
    for _ in range(4):
        lengths = (lengths * (count / lengths.sum(dim=-1, keepdim=True))).clamp_max(1)
    return lengths
