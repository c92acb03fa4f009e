"""Control: keep random tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import option
from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Scores drawn from a seed: the same in all branches, and for the same number of tokens.

    Args:
        seed: of the draw.
    """

    seed: int = option(0, 0, 2**31)

    def score(self, tokens: ScoreInput) -> Tensor:
        ages = tokens.ages
        heads, count = tokens.all_heads or ages.shape[-2], ages.shape[-1]
        own = tokens.processes.tokens.share(heads)
        drawn = torch.rand((heads, count), generator=torch.Generator().manual_seed(self.seed + count))
        return drawn[own.start : own.stop].to(ages.device).expand_as(ages)
