"""FLOPs of MAGI-1's transformer; a multiply-add counts as two, matrix products only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowcache.flops import PatchFlops


@dataclass(frozen=True)
class TransformerFlops(PatchFlops):
    """FLOPs of one branch; without the keys and values of the text, made once a video, and the condition."""

    config: Any

    @classmethod
    def of(cls, config: Any) -> TransformerFlops:
        patch = config.t_patch_size * config.patch_size**2
        return cls(config.hidden_size, config.in_channels * patch, config.out_channels * patch, config)

    def blocks(self, num_tokens: int, num_keys: int, text_tokens: int) -> float:
        """The block stack on ``num_tokens`` queries, each attending to keys of video and text."""
        config = self.config
        query_dim = config.num_attention_heads * config.kv_channels
        key_dim = config.num_query_groups * config.kv_channels
        # queries of self and cross attention and the output of both, keys and values
        projections = 2 * num_tokens * self.dim * (4 * query_dim + 2 * key_dim)
        attention = 4 * num_tokens * query_dim * (num_keys + text_tokens)
        products = config.ffn_hidden_size * (3 if config.gated_linear_unit else 2)
        feed_forward = 2 * num_tokens * self.dim * products
        return float(config.num_layers * (projections + attention + feed_forward))
