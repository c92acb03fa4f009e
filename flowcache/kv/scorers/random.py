"""Control: keep any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Scores drawn anew each time from a seed, the same for the same number of tokens.

    Args:
        seed: of the draw.
    """

    seed: int = 0

    def score(self, tokens: ScoreInput) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + tokens.keys.shape[0])
        shape = (tokens.keys.shape[1], tokens.keys.shape[0])
        return torch.rand(shape, generator=generator).to(tokens.keys.device)
