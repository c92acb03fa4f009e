"""Control: keep any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Scores drawn anew each time from a seed, the same for the same number of tokens and in all branches.

    Args:
        seed: of the draw.
    """

    seed: int = 0

    def score(self, tokens: ScoreInput) -> Tensor:
        ages = tokens.ages
        generator = torch.Generator().manual_seed(self.seed + ages.shape[-1])
        return torch.rand(ages.shape[-2:], generator=generator).to(ages.device).expand_as(ages)
