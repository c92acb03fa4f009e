"""Control: keep the newest."""

from __future__ import annotations

from torch import Tensor

from .base import ScoreInput, Scorer


class Recency(Scorer):
    """The newer, the better."""

    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.ages.float()
