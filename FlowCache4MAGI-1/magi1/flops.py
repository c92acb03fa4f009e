"""FLOPs of MAGI-1's transformer; a multiply-add counts as two, matrix products only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowcache.flops import PatchFlops


@dataclass(frozen=True)
class TransformerFlops(PatchFlops):
    """FLOPs of one branch.

    Left out are the keys and values of the text, made once a video, and the condition, one row a chunk.
    """

    query_dim: int
    key_dim: int
    ffn_products: int
    num_layers: int

    @classmethod
    def of(cls, config: Any) -> TransformerFlops:
        """Read the sizes from a transformer's configuration."""
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
        """The block stack on ``num_tokens`` queries, each attending to keys of video and text."""
        # queries of self and cross attention and the output of both, keys and values
        projections = 2 * num_tokens * self.dim * (4 * self.query_dim + 2 * self.key_dim)
        attention = 4 * num_tokens * self.query_dim * (num_keys + text_tokens)
        feed_forward = 2 * num_tokens * self.dim * self.ffn_products
        return float(self.num_layers * (projections + attention + feed_forward))
