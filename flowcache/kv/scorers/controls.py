"""Controls, with which other scorers are compared."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import option
from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Recency(Scorer):
    """Keep the newest."""

    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.ages.float()


@dataclass(frozen=True)
class SinkWindow(Scorer):
    """Keep the very first tokens, then the newest (Xiao et al., StreamingLLM, 2023).

    Args:
        sink: first tokens, as a share of a chunk.
    """

    sink: float = option(0.25, 0, 1000)

    def score(self, tokens: ScoreInput) -> Tensor:
        ages = tokens.ages.float()
        count = min(ages.shape[-1], max(1, round(self.sink * tokens.tokens_per_chunk)))
        oldest = ages.topk(count, dim=-1).values[..., -1:]
        return (ages >= oldest) * (2 * ages.amax() + 1) - ages


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """Keep keys of small norm, which draw attention (Devoto et al., 2024)."""

    def score(self, tokens: ScoreInput) -> Tensor:
        return -tokens.keys.float().norm(dim=-1).mT


@dataclass(frozen=True)
class Random(Scorer):
    """Keep random tokens: the same in all branches, and for the same number of tokens.

    Args:
        seed: of the draw.
    """

    seed: int = option(0, 0, 2**31)

    def score(self, tokens: ScoreInput) -> Tensor:
        ages = tokens.ages
        generator = torch.Generator().manual_seed(self.seed + ages.shape[-1])
        return torch.rand(ages.shape[-2:], generator=generator).to(ages.device).expand_as(ages)
