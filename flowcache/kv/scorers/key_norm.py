"""Control: keep keys of small norm, which draw attention (Devoto et al., 2024)."""

from dataclasses import dataclass

from torch import Tensor

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class KeyNorm(Scorer):
    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.keys.float().norm(dim=-1).mT
