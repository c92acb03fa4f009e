"""Attention processors that let diffusers' SkyReels-V2 blocks run chunk by chunk.

The blocks are used as they are. They see the frames of all chunks in the batch dimension,
``[branches * frames, tokens per frame, dim]``, so that the modulation of a frame broadcasts over its tokens;
the processors fold the frames back into sequences. What they need beyond the hidden states rides in the
arguments that a block hands through untouched: ``rotary_emb`` and ``encoder_hidden_states``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2AttnProcessor
from torch import Tensor

from flowcache.kv.cache import ChunkKVCache


@dataclass(frozen=True)
class PackedChunks:
    """The chunks of one packed call, as self attention needs to know them.

    Attributes:
        chunks: indices, in the order in which they are packed.
        first_chunks: oldest chunk that each sees; None: all.
        lengths: tokens of each.
        rotary: complex rotation of every packed token, ``[tokens, 1, head_dim / 2]``.
        cache: where their keys and values go, and where they find those of others.
        bidirectional: every chunk attends to all of the cache, not just to itself and what came before.
        num_branches: guidance streams in the batch.
    """

    chunks: Sequence[int]
    first_chunks: Sequence[int | None]
    lengths: Sequence[int]
    rotary: Tensor
    cache: ChunkKVCache
    bidirectional: bool
    num_branches: int


@dataclass
class TextContext:
    """Embedded prompts, ``[branches, tokens, dim]``, with the keys and values that each layer makes of them.

    They are the same at every step, so each layer projects them once per video.
    """

    embeds: Tensor
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


def rotate(tokens: Tensor, rotary: Tensor) -> Tensor:
    """Apply rotary positions to interleaved pairs.

    Args:
        tokens: ``[branches, tokens, heads, head_dim]``.
        rotary: complex, ``[tokens, 1, head_dim / 2]``.
    """
    pairs = torch.view_as_complex(tokens.to(rotary.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).type_as(tokens)


class ChunkSelfAttention(SkyReelsV2AttnProcessor):
    """Self attention of packed chunks against a KV cache; the library's own for any other call.

    Args:
        layer: index of the layer, which is its place in the cache.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: SkyReelsV2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: PackedChunks | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        packed = rotary_emb
        if not isinstance(packed, PackedChunks):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        sequences = hidden_states.reshape(packed.num_branches, -1, hidden_states.shape[-1])
        heads = (attn.heads, -1)
        query = rotate(attn.norm_q(attn.to_q(sequences)).unflatten(2, heads), packed.rotary)
        key = rotate(attn.norm_k(attn.to_k(sequences)).unflatten(2, heads), packed.rotary)
        value = attn.to_v(sequences).unflatten(2, heads)
        attended = self._attend(query, key, value, packed)
        projected = attn.to_out[0](attended.flatten(2, 3).type_as(query))
        return attn.to_out[1](projected).view_as(hidden_states)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedChunks) -> Tensor:
        """Write the chunks' keys and values, then attend; ``[branches, tokens, heads, head_dim]``."""
        lengths = list(packed.lengths)
        for chunk, keys, values in zip(
            packed.chunks, key.split(lengths, 1), value.split(lengths, 1), strict=True
        ):
            packed.cache.write(self.layer, chunk, keys, values)
        if packed.bidirectional:
            return self._dispatch(query, *packed.cache.read(self.layer))
        parts = []
        for chunk, first, queries in zip(
            packed.chunks, packed.first_chunks, query.split(lengths, 1), strict=True
        ):
            packed.cache.observe(self.layer, chunk, queries)
            parts.append(self._dispatch(queries, *packed.cache.read(self.layer, chunk, first)))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _dispatch(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )


class TextCrossAttention(SkyReelsV2AttnProcessor):
    """Cross attention to a ``TextContext``, whose keys and values are projected once; else the library's own.

    Args:
        layer: index of the layer.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: SkyReelsV2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: TextContext | Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        text = encoder_hidden_states
        if not isinstance(text, TextContext):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        key, value = self._keys_values(attn, text)
        sequences = hidden_states.reshape(key.shape[0], -1, hidden_states.shape[-1])
        query = attn.norm_q(attn.to_q(sequences)).unflatten(2, (attn.heads, -1))
        attended = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        projected = attn.to_out[0](attended.flatten(2, 3).type_as(query))
        return attn.to_out[1](projected).view_as(hidden_states)

    def _keys_values(self, attn: SkyReelsV2Attention, text: TextContext) -> tuple[Tensor, Tensor]:
        if self.layer not in text.keys_values:
            heads = (attn.heads, -1)
            key = attn.norm_k(attn.to_k(text.embeds)).unflatten(2, heads)
            text.keys_values[self.layer] = key, attn.to_v(text.embeds).unflatten(2, heads)
        return text.keys_values[self.layer]
