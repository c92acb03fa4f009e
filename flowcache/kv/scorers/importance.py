"""Keep what the newest queries attend to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import max_pool1d

from ..attention_mass import attention_mass
from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Importance(Scorer):
    """Mean attention that a token draws, or one of its neighbours (FlowCache, section 3.3).

    Args:
        pool: neighbours over which the largest is taken, odd.
    """

    pool: int = 7

    def score(self, tokens: ScoreInput) -> Tensor:
        mass = attention_mass(tokens.queries, tokens.keys)
        return max_pool1d(mass, self.pool, stride=1, padding=self.pool // 2)
