"""Keep the first tokens, the newest, and between them those that the queries point at."""

from dataclasses import dataclass

from torch import Tensor

from ...registry import option
from .attention import group_queries
from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Participative(Scorer):
    """Participative compression of Deep Forcing: by the sum of a key's products with the recorded queries.

    No softmax: what points at many queries stays, whichever key each of them attends to. ``retimed`` closes the gaps.

    Args:
        sink: first tokens that stay, as a share of the budget (Deep Forcing: 10 of 16 frames).
        recent: newest tokens that stay, likewise (4 of 16).
    """

    sink: float = option(0.625, 0, 1)
    recent: float = option(0.25, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sink + self.recent > 1:
            raise ValueError(
                f"recent: expected at most {1 - self.sink:g} beside sink {self.sink:g}, got {self.recent}."
            )

    def sink_chunks(self, budget: float) -> float:
        return self.sink * budget

    def score(self, tokens: ScoreInput) -> Tensor:
        keys, ages = tokens.keys.transpose(-3, -2).float(), tokens.ages
        queries = group_queries(tokens.queries, keys.shape[-3]).float().sum(dim=-2)
        scores, stays = (keys @ queries.unsqueeze(-1)).squeeze(-1), ages < 0
        for share, oldest in ((self.sink, True), (self.recent, False)):
            if count := min(round(share * tokens.budget), ages.shape[-1]):
                bound = ages.topk(count, dim=-1, largest=oldest).values[..., -1:]
                stays = stays | (ages >= bound if oldest else ages <= bound)
        return scores.where(~stays, scores.amax(dim=-1, keepdim=True) + 1)
