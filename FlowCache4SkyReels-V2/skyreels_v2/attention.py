"""Attention processors that let diffusers' SkyReels-V2 blocks run chunk by chunk.

The blocks are unchanged. They see the frames of all chunks in the batch dimension,
``[branches * frames, tokens per frame, dim]``, so that the modulation of a frame broadcasts over its tokens;
the processors fold the frames back into sequences. Their further inputs ride in the arguments that a block
passes through untouched: ``rotary_emb`` and ``encoder_hidden_states``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2AttnProcessor
from torch import Tensor

from flowcache import blockwise
from flowcache.blockwise import map_tokens
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import ChunkKVCache


@dataclass(frozen=True)
class PackedChunks:
    """The chunks of one packed call, in their order, for self attention.

    ``rotary`` is the complex rotation of every token, ``[tokens, 1, head_dim / 2]``. ``bidirectional``: every
    chunk attends to all of the cache, not just to itself and earlier chunks. ``branch``: the only one in the call;
    None: all are.
    """

    inputs: Sequence[ChunkInput]
    lengths: list[int]
    rotary: Tensor
    cache: ChunkKVCache
    bidirectional: bool
    branch: int | None = None

    def pick(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Tensors ``[branches, ...]`` as the cache takes them."""
        return tensors if self.branch is None else [each[0] for each in tensors]

    def read(self, layer: int, last_chunk: int | None = None, first_chunk: int | None = None) -> Sequence[Tensor]:
        """Keys and values from the cache, ``[branches, tokens, heads, head_dim]``."""
        seen = self.cache.read(layer, last_chunk, first_chunk, self.branch)
        return seen if self.branch is None else [each.unsqueeze(0) for each in seen]


@dataclass
class TextContext:
    """Embedded prompts, ``[branches, tokens, dim]``, and their keys and values by layer.

    These are the same at every step, so each layer projects them once per video. ``branch``: the only one in the
    call; None: all are.
    """

    embeds: Tensor
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    branch: int | None = None


def rotate(tokens: Tensor, rotary: Tensor) -> Tensor:
    """Rotate interleaved pairs of ``[branches, tokens, heads, head_dim]`` by ``PackedChunks.rotary``."""
    pairs = torch.view_as_complex(tokens.to(rotary.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).type_as(tokens)


class _LayerProcessor(SkyReelsV2AttnProcessor):
    """Attention of one layer on frames folded back into sequences, ``[branches, tokens, dim]``."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def _dispatch(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )

    @staticmethod
    def _project(attn: SkyReelsV2Attention, attended: Tensor, like: Tensor) -> Tensor:
        projected = attn.to_out[0](attended.flatten(2, 3).type_as(like))
        return attn.to_out[1](projected).view_as(like)


class BlockwiseFeedForward(FeedForward):
    """Diffusers' feed-forward on blocks of frames."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[frames, tokens, dim]`` to the same shape."""
        size = max(1, blockwise.MAX_TOKENS // hidden_states.shape[1])
        return map_tokens(super().forward, hidden_states, size=size)


class ChunkSelfAttention(_LayerProcessor):
    """Self attention of ``PackedChunks`` against a KV cache; diffusers' own for any other call."""

    def __call__(
        self,
        attn: SkyReelsV2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: PackedChunks | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if not isinstance(packed := rotary_emb, PackedChunks):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        cache, branch, heads = packed.cache, packed.branch, (attn.heads, -1)
        branches = cache.layout.num_branches if branch is None else 1
        sequences = hidden_states.reshape(branches, -1, hidden_states.shape[-1])
        rotary = packed.rotary.unsqueeze(0)
        query = map_tokens(rotate, attn.norm_q(attn.to_q(sequences)).unflatten(2, heads), rotary, dim=1)
        key = map_tokens(rotate, attn.norm_k(attn.to_k(sequences)).unflatten(2, heads), rotary, dim=1)
        value = attn.to_v(sequences).unflatten(2, heads)
        queries, keys, values = (x.split(packed.lengths, dim=1) for x in (query, key, value))
        for item, *written in zip(packed.inputs, keys, values, strict=True):
            cache.write(self.layer, item.chunk, *packed.pick(written), branch)
        if packed.bidirectional:
            return self._project(attn, self._dispatch(query, *packed.read(self.layer)), hidden_states)
        parts = []
        for item, own in zip(packed.inputs, queries, strict=True):
            cache.observe(self.layer, item.chunk, *packed.pick([own]), branch)
            parts.append(self._dispatch(own, *packed.read(self.layer, item.chunk, item.first_chunk)))
        attended = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return self._project(attn, attended, hidden_states)


class TextCrossAttention(_LayerProcessor):
    """Cross attention to a ``TextContext``; diffusers' own for any other call."""

    def __call__(
        self,
        attn: SkyReelsV2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: TextContext | Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        text, heads = encoder_hidden_states, (attn.heads, -1)
        if not isinstance(text, TextContext):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if self.layer not in text.keys_values:
            key = attn.norm_k(attn.to_k(text.embeds)).unflatten(2, heads)
            text.keys_values[self.layer] = key, attn.to_v(text.embeds).unflatten(2, heads)
        seen = text.keys_values[self.layer]
        if text.branch is not None:
            seen = [each[text.branch].unsqueeze(0) for each in seen]
        sequences = hidden_states.reshape(len(seen[0]), -1, hidden_states.shape[-1])
        query = attn.norm_q(attn.to_q(sequences)).unflatten(2, heads)
        return self._project(attn, self._dispatch(query, *seen), hidden_states)
