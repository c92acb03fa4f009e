"""Control: keep the newest."""

from dataclasses import dataclass

from torch import Tensor

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Recency(Scorer):
    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.ages.float()
