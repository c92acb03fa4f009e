"""Control: keep the first tokens and the newest."""

from dataclasses import dataclass

from torch import Tensor

from ...registry import option
from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class SinkWindow(Scorer):
    """The very first tokens, then the newest (Xiao et al., StreamingLLM, 2023).

    Args:
        sink: first tokens, as a share of a chunk.
    """

    sink: float = option(0.25, 0, 1000)

    def sink_chunks(self, budget: float) -> float:
        return self.sink

    def score(self, tokens: ScoreInput) -> Tensor:
        ages = tokens.ages.float()
        count = min(ages.shape[-1], max(1, round(self.sink * tokens.tokens_per_chunk)))
        oldest = ages.topk(count, dim=-1).values[..., -1:]
        return (ages >= oldest) * (2 * ages.amax() + 1) - ages
