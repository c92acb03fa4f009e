"""Keep tokens from all over the past, more of those that attention cannot do without."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import option
from .attention import Blocks
from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Spread(Scorer):
    """Tokens at even steps through the past, each as long as its share of the past times its effect on attention.

    A token counts for itself and for the dropped ones before it, so that what is kept of old chunks is not halved with
    each compression. All guidance branches keep the same tokens: guidance multiplies what they differ in, so errors
    that they share matter less.

    Args:
        power: of the effect, a token's weight times the distance of its value from the output, for the query for
            which that is largest; 0: even in time.
    """

    needs_order = True

    power: float = option(1.0, 0, 10)

    def score(self, tokens: ScoreInput) -> Tensor:
        ages = tokens.ages.float()
        spans = -ages.diff(dim=-1, prepend=ages[..., :1] + 1)
        peak = move_peak(*tokens.attention, tokens.values.transpose(-3, -2))
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


def move_peak(attention: Blocks, outputs: Tensor, values: Tensor) -> Tensor:
    """Most that a key without its value would move the output of any query, ``[..., rows]``: its weight times the
    distance of its value ``[..., rows, head_dim]`` from that output.
    """
    peaks = []
    for place, weights in attention.weights():
        peaks.append(weights.mul_(torch.cdist(outputs, values[..., place, :].float())).amax(dim=-2))
    return torch.cat(peaks, dim=-1)


def _cap(lengths: Tensor, count: int) -> Tensor:
    """Lengths in steps, of which the past has ``count``; none is longer than a step."""
    for _ in range(4):
        lengths = (lengths * (count / lengths.sum(dim=-1, keepdim=True))).clamp_max(1)
    return lengths
