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
        generator = torch.Generator().manual_seed(self.seed + ages.shape[-1])
        return torch.rand(ages.shape[-2:], generator=generator).to(ages.device).expand_as(ages)
