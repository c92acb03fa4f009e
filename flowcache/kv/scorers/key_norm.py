"""Control: keep keys of small norm."""

from __future__ import annotations

from torch import Tensor

from .base import ScoreInput, Scorer


class KeyNorm(Scorer):
    """Keys of small norm draw attention (Devoto et al., 2024); so they are kept."""

    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.keys.float().norm(dim=-1).mT
