"""What a model stores of a token."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheLayout:
    """What a model stores of a token.

    Attributes:
        num_branches: guidance branches, side by side in the batch dimension.
        num_heads: key-value heads.
    """

    num_layers: int
    num_branches: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def shape(self, rows: int, layers: int | None = None) -> tuple[int, ...]:
        return (layers or self.num_layers, self.num_branches, rows, self.num_heads, self.head_dim)

    def nbytes(self, rows: int, layers: int | None = None) -> int:
        """Bytes of keys and values of that many rows."""
        return 2 * math.prod(self.shape(rows, layers)) * self.dtype.itemsize
