"""Keep rows as they are."""

from dataclasses import dataclass

from torch import Tensor

from ..scorers import ScoreInput
from .base import Compactor, take_rows


@dataclass(frozen=True)
class Select(Compactor):
    """The kept rows, unchanged (FlowCache); what is dropped takes its attention mass with it."""

    def compact(self, tokens: ScoreInput, kept: Tensor) -> tuple[Tensor, Tensor]:
        return take_rows(tokens.keys, kept), take_rows(tokens.values, kept)
