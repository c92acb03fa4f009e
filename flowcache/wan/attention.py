"""Diffusers' Wan block on the chunks of a packed call."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2TransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from .. import blockwise
from ..attention import choose_backend
from ..blockwise import map_tokens
from ..chunk_model import ChunkInput
from ..kv.cache import ChunkKVCache
from ..parallel import SequenceShares

# Compilers read the fields of frozen dataclasses, and would compile again whenever one changes; these are not frozen.


@dataclass(eq=False)
class PackedChunks:
    """The chunks of one packed call, in their order, for self attention.

    ``lengths`` are all tokens of each chunk; ``shares`` says which of a frame's are this process's own. ``rotary`` is
    cosine and sine of every own token, ``[1, frames, tokens per frame, 1, head_dim / 2, 2]``. ``bidirectional``: every
    chunk attends to all of the cache, not just to itself and earlier chunks. ``branch``: the only one in the call;
    None: all are.
    """

    inputs: Sequence[ChunkInput]
    lengths: list[int]
    rotary: Tensor
    cache: ChunkKVCache
    bidirectional: bool
    shares: SequenceShares
    branch: int | None = None

    def pick(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Tensors ``[branches, ...]`` as the cache takes them."""
        return tensors if self.branch is None else [each[0] for each in tensors]

    def read(self, layer: int, last_chunk: int | None = None, first_chunk: int | None = None) -> Sequence[Tensor]:
        """Keys and values from the cache, ``[branches, tokens, heads, head_dim]``."""
        seen = self.cache.read(layer, last_chunk, first_chunk, self.branch)
        return seen if self.branch is None else [each.unsqueeze(0) for each in seen]


@dataclass(eq=False)
class TextContext:
    """An embedded prompt, and the negative one, ``[branches, tokens, dim]``."""

    embeds: Tensor
    _projected: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop keys and values; they are projected again when they are next read."""
        self._projected.clear()

    def keys_values(self, layer: int, attn: SkyReelsV2Attention, branch: int | None = None) -> Sequence[Tensor]:
        """Keys and values, ``[branches, tokens, heads, head_dim]``; the same at every step, so projected once.

        ``branch``: the only one in the call; None: all are.
        """
        if layer not in self._projected:
            projected = attn.norm_k(attn.to_k(self.embeds)), attn.to_v(self.embeds)
            self._projected[layer] = tuple(x.unflatten(-1, (attn.heads, -1)) for x in projected)
        seen = self._projected[layer]
        return seen if branch is None else [each[branch].unsqueeze(0) for each in seen]


#: Frames of a packed call that share a text, in their order.
TextRuns = Sequence[tuple[TextContext, int]]


def rotate(tokens: Tensor, rotary: Tensor) -> Tensor:
    """Rotate interleaved pairs of ``[..., heads, head_dim]``, which it may overwrite, by ``PackedChunks.rotary``.

    The complex product is one kernel where real ones are seven; compilers fuse these, and do not know complex numbers.
    """
    pairs = tokens.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs).mul_(torch.view_as_complex(rotary))).flatten(-2)


def modulate(norm: nn.Module, hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise in fp32, then scale and shift; ``scale`` includes the 1."""
    normed = norm(hidden.float())
    return torch.addcmul(shift, normed, scale, out=normed)


class ChunkwiseBlock(SkyReelsV2TransformerBlock):
    """Diffusers' block, with the same parameters, on ``PackedChunks``; diffusers' ``forward`` for any other call.

    As in the original, hidden states are fp32 inside a block and queries and keys until they are rotated; diffusers
    rounds both earlier. What works on single tokens runs on some frames at a time, so that it needs little memory.

    ``_attend`` is not compiled, as it reads the cache and ``layer``: all layers share what is.
    """

    layer: int

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: TextRuns | Tensor,
        temb: Tensor,
        rotary_emb: PackedChunks | tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """``[branches, frames, tokens per frame, dim]`` to the same shape; ``temb``: ``[1, frames, 6, 1, dim]``."""
        if not isinstance(rotary_emb, PackedChunks):
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb, attention_mask)
        packed, texts, blocks = rotary_emb, encoder_hidden_states, {"dim": 1}
        blocks["size"] = max(1, blockwise.MAX_TOKENS // (hidden_states.shape[0] * hidden_states.shape[2]))
        modulation = self.scale_shift_table.unsqueeze(2) + temb
        # Without names for queries, keys and values, so that their memory is free behind attention.
        attended, seen = self._attend(
            packed, texts, *map_tokens(self._project, hidden_states, modulation, packed.rotary, **blocks)
        )
        tokens = (hidden_states, attended, modulation)
        if len(seen) == 1:
            return map_tokens(partial(self._finish, seen[0]), *tokens, **blocks)
        frames = [frames for _, frames in texts]
        runs = zip(seen, *(each.split(frames, dim=1) for each in tokens), strict=True)
        return torch.cat([map_tokens(partial(self._finish, own), *run, **blocks) for own, *run in runs], dim=1)

    def _project(self, hidden: Tensor, modulation: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self attention, ``[branches, frames, tokens per frame, heads, head_dim]``."""
        attn, (shift, scale) = self.attn1, modulation[:, :, :2].unbind(2)
        normed, heads = modulate(self.norm1, hidden, shift, scale).type_as(hidden), (attn.heads, -1)
        query, key = (
            rotate(_norm_fp32(norm, to(normed)).unflatten(-1, heads), rotary).type_as(normed)
            for to, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k))
        )
        return query, key, attn.to_v(normed).unflatten(-1, heads)

    @torch.compiler.disable
    def _attend(
        self, packed: PackedChunks, texts: TextRuns, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, list[Sequence[Tensor]]]:
        """Self attention, ``[branches, frames, tokens per frame, dim]``, and keys and values of each run's text."""
        cache, branch, attn, shape = packed.cache, packed.branch, self.attn1, (*value.shape[:3], -1)
        query, key, value = (x.flatten(1, 2) for x in packed.shares.to_heads(query, key, value))
        queries, keys, values = (x.split(packed.lengths, dim=1) for x in (query, key, value))
        for item, *written in zip(packed.inputs, keys, values, strict=True):
            cache.write(self.layer, item.chunk, *packed.pick(written), branch)
        if packed.bidirectional:
            parts = [_dispatch(attn, query, *packed.read(self.layer))]
        else:
            parts = []
            for item, own in zip(packed.inputs, queries, strict=True):
                cache.observe(self.layer, item.chunk, *packed.pick([own]), branch)
                parts.append(_dispatch(attn, own, *packed.read(self.layer, item.chunk, item.first_chunk)))
        attended = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        attended = packed.shares.to_tokens(attended.unflatten(1, (shape[1], -1)))
        return attended.reshape(shape), [text.keys_values(self.layer, self.attn2, branch) for text, _ in texts]

    def _finish(self, seen: Sequence[Tensor], hidden: Tensor, attended: Tensor, modulation: Tensor) -> Tensor:
        """What follows self attention; ``seen``: keys and values of the text."""
        _, _, gate, shift, scale, ffn_gate = modulation.unbind(2)
        attn, own = self.attn2, hidden
        hidden = torch.addcmul(hidden, self.attn1.to_out[0](attended), gate)
        query = attn.norm_q(attn.to_q(self.norm2(hidden).type_as(own)))
        attended = _dispatch(attn, query.flatten(1, 2).unflatten(-1, (attn.heads, -1)), *seen)
        hidden += attn.to_out[0](attended.reshape(query.shape))
        forwarded = self.ffn(modulate(self.norm3, hidden, shift, scale).type_as(own))
        return torch.addcmul(hidden, forwarded, ffn_gate, out=hidden).type_as(own)


def use_chunkwise_blocks(transformer: nn.Module) -> None:
    """Make the blocks of diffusers' transformer ``ChunkwiseBlock``, which keeps their parameters and hooks."""
    for layer, block in enumerate(transformer.blocks):
        if not isinstance(block, ChunkwiseBlock):
            block.__class__, block.layer = ChunkwiseBlock, layer
    transformer._repeated_blocks = [ChunkwiseBlock.__name__]  # so that compile_repeated_blocks still finds them


def _norm_fp32(norm: nn.RMSNorm, tokens: Tensor) -> Tensor:
    return functional.rms_norm(tokens.float(), norm.normalized_shape, norm.weight.float(), norm.eps)


def _dispatch(attn: SkyReelsV2Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by the backend of diffusers' ``set_attention_backend``, else by the fastest, unless compiled."""
    chosen = attn.processor
    backend = chosen._attention_backend
    if backend is None and not torch.compiler.is_compiling():
        backend = choose_backend(query, key)
    attended = dispatch_attention_fn(query, key, value, backend=backend, parallel_config=chosen._parallel_config)
    return attended.type_as(query)
