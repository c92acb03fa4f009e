"""What a compactor is given, and what it returns."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ...registry import check_options
from ..scorers import ScoreInput


class Compactor(ABC):
    """Makes the rows that stand for all; options are the fields of a frozen dataclass."""

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def compact(self, tokens: ScoreInput, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the kept rows, ``[branches, rows, kv_heads, head_dim]`` each.

        Args:
            tokens: all rows, ``[branches, tokens, kv_heads, head_dim]``, and the recorded queries.
            kept: indices of the rows that the scorer keeps, ``[branches, kv_heads, rows]``.
        """


def take_rows(rows: Tensor, kept: Tensor) -> Tensor:
    """Rows ``[branches, tokens, heads, head_dim]`` at indices ``[branches, heads, kept]``."""
    heads = torch.arange(kept.shape[1], device=kept.device)
    places = (kept.mT * len(heads) + heads).flatten(-2)
    # Heads are adjacent within a branch; its rows are copied whole, not number by number.
    best = [row.flatten(0, 1).index_select(0, at) for row, at in zip(rows, places, strict=True)]
    return torch.stack(best).view(len(kept), -1, *rows.shape[2:])
