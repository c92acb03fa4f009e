"""Control: keep keys of small norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """Keys of small norm draw attention (Devoto et al., 2024)."""

    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.keys.float().norm(dim=-1).mT
