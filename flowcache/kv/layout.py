"""What a model stores of a token."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheLayout:
    """What a model stores of a token.

    Attributes:
        num_layers: layers of the transformer.
        num_branches: guidance branches, side by side in the batch dimension.
        num_heads: key-value heads.
        head_dim: channels of a head.
        dtype, device: of the stored tensors.
    """

    num_layers: int
    num_branches: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def shape(self, rows: int, layers: int | None = None) -> tuple[int, ...]:
        """Shape of the keys or values of ``rows`` tokens."""
        return (layers or self.num_layers, self.num_branches, rows, self.num_heads, self.head_dim)
