"""What a model stores of a token."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch

from ..parallel.layout import SINGLE, Layout


@dataclass(frozen=True)
class CacheLayout:
    """What a model stores of a token.

    Attributes:
        num_branches: guidance branches, side by side in the batch dimension.
        num_heads: key-value heads.
        processes: that hold a cache together, each some branches and heads.
        all_heads: heads of all processes; 0: ``num_heads``.
    """

    num_layers: int
    num_branches: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    processes: Layout = SINGLE
    all_heads: int = 0

    def share(self, processes: Layout) -> Self:
        """What this process stores of a token."""
        branches, heads = processes.branches.share(self.num_branches), processes.tokens.share(self.num_heads)
        sizes = {"num_branches": len(branches), "num_heads": len(heads), "all_heads": self.num_heads}
        return replace(self, **sizes, processes=processes)

    def shape(self, rows: int, layers: int | None = None) -> tuple[int, ...]:
        return (layers or self.num_layers, self.num_branches, rows, self.num_heads, self.head_dim)

    def nbytes(self, rows: int, layers: int | None = None) -> int:
        """Bytes of keys and values of that many rows."""
        return 2 * math.prod(self.shape(rows, layers)) * self.dtype.itemsize
