"""Keep what the newest queries attend to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import max_pool1d

from ...registry import option
from ..attention_mass import attention_mass
from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Importance(Scorer):
    """Mean attention that a token or one of its neighbours draws (FlowCache, section 3.3).

    Args:
        pool: tokens over which the largest is taken, odd.
    """

    pool: int = option(7, 1, 999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool % 2 == 0:
            raise ValueError(f"pool: expected an odd number, got {self.pool}.")

    def score(self, tokens: ScoreInput) -> Tensor:
        mass = attention_mass(tokens.queries, tokens.keys)
        return max_pool1d(mass, self.pool, stride=1, padding=self.pool // 2)
