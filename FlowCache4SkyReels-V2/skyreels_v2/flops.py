"""What SkyReels-V2's transformer costs; a multiply-add counts as two, matrix products only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TransformerFlops:
    """FLOPs of one branch of the transformer, from its sizes.

    The keys and values of the text are projected once per video and left out; so is everything that only
    depends on the time.
    """

    dim: int
    ffn_dim: int
    num_layers: int
    text_tokens: int
    patch_features_in: int
    patch_features_out: int

    @classmethod
    def of(cls, config: Any, text_tokens: int) -> TransformerFlops:
        """Sizes from a diffusers transformer configuration and the length of the padded prompt."""
        dim = config.num_attention_heads * config.attention_head_dim
        patch = math.prod(config.patch_size)
        sizes = (dim, config.ffn_dim, config.num_layers, text_tokens)
        return cls(*sizes, config.in_channels * patch, config.out_channels * patch)

    def blocks(self, num_tokens: int, num_keys: int) -> float:
        """The block stack on ``num_tokens`` queries that see ``num_keys`` keys."""
        # q, k, v and output of self attention, q and output of cross attention
        projections = 6 * 2 * num_tokens * self.dim**2
        attention = 4 * num_tokens * self.dim * (num_keys + self.text_tokens)
        feed_forward = 4 * num_tokens * self.dim * self.ffn_dim
        return float(self.num_layers * (projections + attention + feed_forward))

    def embed(self, num_tokens: int) -> float:
        """The patch embedding; the same for all branches."""
        return 2.0 * num_tokens * self.patch_features_in * self.dim

    def head(self, num_tokens: int) -> float:
        """The output projection."""
        return 2.0 * num_tokens * self.patch_features_out * self.dim
