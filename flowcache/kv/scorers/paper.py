"""FlowCache's score: importance minus redundancy."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .base import ScoreInput, Scorer
from .importance import Importance
from .redundancy import Redundancy


@dataclass(frozen=True)
class Paper(Scorer):
    """``mix_lambda * importance - (1 - mix_lambda) * redundancy`` (FlowCache, section 3.3).

    Args:
        mix_lambda: weight of importance, 0 to 1.
        importance, redundancy: its two halves.
    """

    mix_lambda: float = 0.07
    importance: Importance = field(default_factory=Importance)
    redundancy: Redundancy = field(default_factory=Redundancy)

    def score(self, tokens: ScoreInput) -> Tensor:
        wanted = self.mix_lambda * self.importance.score(tokens)
        return wanted + (1 - self.mix_lambda) * self.redundancy.score(tokens)
