"""What a scorer is given, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ScoreInput:
    """The tokens that may be dropped, and what looks at them.

    All may have the same dimensions in front of those given here: that of layers and branches.

    Attributes:
        keys, values: ``[tokens, kv_heads, head_dim]``, positions applied.
        queries: newest queries, ``[n, heads, head_dim]``.
        ages: age of each kept token and head, ``[kv_heads, tokens]``, larger is older.
        tokens_per_chunk: tokens of a whole chunk.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    ages: Tensor
    tokens_per_chunk: int


class Scorer(ABC):
    """Says how much each token is worth keeping."""

    @abstractmethod
    def score(self, tokens: ScoreInput) -> Tensor:
        """Scores, shaped as the ages, fp32; higher is kept."""
