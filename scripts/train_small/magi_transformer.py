"""MAGI-1's transformer, run on whole clips at once, as training needs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from magi1.transformer import MagiTransformer3DModel, ProjectText

CHUNK = 6  # latent frames

CONFIG = {
    "num_layers": 6,
    "hidden_size": 192,
    "ffn_hidden_size": 576,
    "num_attention_heads": 6,
    "num_query_groups": 3,
    "kv_channels": 32,
    "caption_channels": 64,
    "caption_max_length": 64,
}


def new_magi_transformer() -> MagiTransformer3DModel:
    """A small transformer whose velocity is nothing at first."""
    model = MagiTransformer3DModel(**CONFIG)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.normal_(model.caption_embed.null_caption)
    return model


@dataclass(frozen=True)
class ClipAttend:
    """Implements ``Attend`` for clips of one length: dense attention with masks.

    Attributes:
        samples: clips.
        mask: ``[tokens, tokens]`` or ``[samples, 1, tokens, tokens]``, true where a query may see a key.
        captions: embedded, padded, ``[samples * chunks, text, cross_dim]``.
        shown: ``[samples * chunks, 1, 1, text]``, false on padding.
    """

    samples: int
    mask: Tensor
    captions: Tensor
    shown: Tensor

    def attend_video(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = (x.unflatten(0, (self.samples, -1)).transpose(1, 2) for x in (query, key, value))
        out = scaled_dot_product_attention(*parts, attn_mask=self.mask, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        rows = len(self.captions)
        key, value = (
            x.unflatten(0, (rows, -1)).transpose(1, 2) for x in project(self.captions.flatten(0, 1))
        )
        query = query.unflatten(0, (rows, -1)).transpose(1, 2)
        out = scaled_dot_product_attention(query, key, value, attn_mask=self.shown, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)


def clip_mask(chunks: int, tokens: int, alone: Tensor) -> Tensor:
    """Which keys the tokens of clips see, ``[samples, 1, tokens of a clip, tokens of a clip]``.

    Args:
        chunks: of a clip.
        tokens: of a chunk.
        alone: ``[samples]``: chunks see only themselves; else themselves and those before them.
    """
    chunk = torch.arange(chunks, device=alone.device).repeat_interleave(tokens)
    causal = chunk.unsqueeze(0) <= chunk.unsqueeze(1)
    same = chunk.unsqueeze(0) == chunk.unsqueeze(1)
    return torch.where(alone[:, None, None], same, causal).unsqueeze(1)


def run_clips(
    model: MagiTransformer3DModel, latents: Tensor, condition: Tensor, attend: ClipAttend
) -> Tensor:
    """Velocity of clips.

    Args:
        latents: ``[samples, channels, frames, height, width]``.
        condition: ``[samples * chunks, condition_dim]``.
        attend: attention of these clips.
    """
    samples, _, frames, height, width = latents.shape
    side = latents.transpose(0, 1).flatten(1, 2)  # clips behind each other, as if they were one
    tokens = model.embed(side)
    rotary = model.rotary(frames, height, width).flatten(0, 1).repeat(samples, 1)
    hidden = model(tokens, condition, [len(tokens) // len(condition)] * len(condition), rotary, attend)
    velocity = model.head(hidden, samples * frames, height, width)
    return velocity.unflatten(1, (samples, frames)).transpose(0, 1)
