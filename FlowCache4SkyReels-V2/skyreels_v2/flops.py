"""FLOPs of SkyReels-V2's transformer: matrix products only, a multiply-add counts as two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flowcache.flops import PatchFlops


@dataclass(frozen=True)
class TransformerFlops(PatchFlops):
    """FLOPs of one branch, without the work done once per video: text projections and time embeddings."""

    ffn_dim: int
    num_layers: int
    text_tokens: int

    @classmethod
    def of(cls, config: Any, text_tokens: int) -> TransformerFlops:
        """Sizes from a diffusers transformer configuration and the length of the padded prompt."""
        patch = math.prod(config.patch_size)
        return cls(
            dim=config.num_attention_heads * config.attention_head_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            text_tokens=text_tokens,
            patch_features_in=config.in_channels * patch,
            patch_features_out=config.out_channels * patch,
        )

    def blocks(self, num_tokens: int, num_keys: int) -> float:
        """FLOPs of the block stack on ``num_tokens`` queries that see ``num_keys`` keys."""
        # q, k, v and output of self attention, q and output of cross attention
        projections = 6 * 2 * num_tokens * self.dim**2
        attention = 4 * num_tokens * self.dim * (num_keys + self.text_tokens)
        feed_forward = 4 * num_tokens * self.dim * self.ffn_dim
        return float(self.num_layers * (projections + attention + feed_forward))

    def text_projections(self) -> float:
        """FLOPs of the text's keys and values in all layers, for models that project them in every call."""
        return 4.0 * self.num_layers * self.text_tokens * self.dim**2
