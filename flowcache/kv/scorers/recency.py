"""Control: keep the newest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Recency(Scorer):
    """Minus the age."""

    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.ages.float()
