"""What MAGI-1's transformer costs; a multiply-add counts as two, matrix products only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowcache.flops import PatchFlops


@dataclass(frozen=True)
class TransformerFlops(PatchFlops):
    """FLOPs of one branch of the transformer, from its sizes.

    The keys and values of the text are projected once per video and left out; so is the condition, which is
    one row for a whole chunk.
    """

    query_dim: int
    key_dim: int
    ffn_products: int
    num_layers: int

    @classmethod
    def of(cls, config: Any) -> TransformerFlops:
        """Sizes from a transformer's configuration."""
        patch = config.t_patch_size * config.patch_size**2
        return cls(
            dim=config.hidden_size,
            query_dim=config.num_attention_heads * config.kv_channels,
            key_dim=config.num_query_groups * config.kv_channels,
            ffn_products=config.ffn_hidden_size * (3 if config.gated_linear_unit else 2),
            num_layers=config.num_layers,
            patch_features_in=config.in_channels * patch,
            patch_features_out=config.out_channels * patch,
        )

    def blocks(self, num_tokens: int, num_keys: int, text_tokens: int) -> float:
        """The block stack on ``num_tokens`` queries that see ``num_keys`` keys and so many of the text."""
        # queries of self and cross attention, keys, values, and the output of both
        projections = 2 * num_tokens * self.dim * (2 * self.query_dim + 2 * self.key_dim + 2 * self.query_dim)
        attention = 4 * num_tokens * self.query_dim * (num_keys + text_tokens)
        feed_forward = 2 * num_tokens * self.dim * self.ffn_products
        return float(self.num_layers * (projections + attention + feed_forward))
