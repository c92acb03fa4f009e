"""FlowCache's score: importance minus redundancy."""

from dataclasses import dataclass

from torch import Tensor

from ...registry import option
from .base import ScoreInput
from .importance import Importance
from .redundancy import Redundancy


@dataclass(frozen=True)
class Paper(Importance):
    """``mix_lambda * importance - (1 - mix_lambda) * redundancy`` (FlowCache, section 3.3).

    Args:
        mix_lambda: weight of importance, 0 to 1.
    """

    mix_lambda: float = option(0.07, 0, 1)

    def score(self, tokens: ScoreInput) -> Tensor:
        importance = self.mix_lambda * super().score(tokens)
        return importance + (1 - self.mix_lambda) * Redundancy().score(tokens)
