"""Diffusers' transformer, run on whole windows at once, as training needs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SkyReelsV2Transformer3DModel
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor
from noise_levels import BLOCK
from torch import Tensor, nn

from skyreels_v2.attention import rotate

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "ffn_dim": 576,
    "num_layers": 6,
    "text_dim": 64,
    "freq_dim": 256,
}


@dataclass(frozen=True)
class WindowContext:
    """What self attention of a training batch needs: samples, rotations ``[tokens, 1, d / 2]``, a mask."""

    samples: int
    rotary: Tensor
    mask: Tensor | None


class WindowSelfAttention(SkyReelsV2AttnProcessor):
    """Self attention over whole windows whose frames lie in the batch dimension."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        context = rotary_emb
        sequences = hidden_states.reshape(context.samples, -1, hidden_states.shape[-1])
        heads = (attn.heads, -1)
        query = rotate(attn.norm_q(attn.to_q(sequences)).unflatten(2, heads), context.rotary)
        key = rotate(attn.norm_k(attn.to_k(sequences)).unflatten(2, heads), context.rotary)
        value = attn.to_v(sequences).unflatten(2, heads)
        attended = nn.functional.scaled_dot_product_attention(
            *(t.to(value.dtype).transpose(1, 2) for t in (query, key, value)), attn_mask=context.mask
        )
        return attn.to_out[0](attended.transpose(1, 2).flatten(2)).view_as(hidden_states)


class WindowCrossAttention(SkyReelsV2AttnProcessor):
    """Cross attention to one caption a sample, with the frames of a sample in the batch dimension."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        sequences = hidden_states.reshape(encoder_hidden_states.shape[0], -1, hidden_states.shape[-1])
        return super().__call__(attn, sequences, encoder_hidden_states).view_as(hidden_states)


class WindowTransformer(nn.Module):
    """Diffusers' transformer, run on whole windows with a noise level for every frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.core = SkyReelsV2Transformer3DModel(in_channels=channels, out_channels=channels, **CONFIG)
        for block in self.core.blocks:
            block.attn1.set_processor(WindowSelfAttention())
            block.attn2.set_processor(WindowCrossAttention())
        nn.init.zeros_(self.core.proj_out.weight)
        nn.init.zeros_(self.core.proj_out.bias)

    def forward(self, latents: Tensor, levels: Tensor, text: Tensor, causal: bool) -> Tensor:
        """Velocity of ``latents [samples, channels, frames, h, w]`` at ``levels [samples, frames]``."""
        core, (samples, channels, frames, height, width) = self.core, latents.shape
        tokens = core.patch_embedding(latents).flatten(3).permute(0, 2, 3, 1).flatten(0, 1)
        cos, sin = core.rope(latents)
        rotary = torch.complex(cos[0, ..., 0::2].float(), sin[0, ..., 1::2].float())
        embedder = core.condition_embedder
        with torch.autocast(latents.device.type, enabled=False):
            temb = embedder.time_embedder(embedder.timesteps_proj(1000 * levels.flatten()).float())
            modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(-1, (6, -1))
        mask = _causal_mask(frames, tokens.shape[1]).to(latents.device) if causal else None
        context = WindowContext(samples, rotary, mask)
        text = embedder.text_embedder(text)
        for block in core.blocks:
            tokens = block(tokens, text, modulation, context, None)
        shift, scale = (core.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        tokens = core.proj_out(core.norm_out(tokens.float()) * (1 + scale) + shift).float()
        tokens = tokens.reshape(samples, frames, height // 2, width // 2, 2, 2, channels)
        return tokens.permute(0, 6, 1, 2, 4, 3, 5).reshape(samples, channels, frames, height, width)


def _causal_mask(frames: int, tokens: int) -> Tensor:
    """``[frames * tokens, frames * tokens]``, true where a query (row) may see a key (column)."""
    block = torch.arange(frames).repeat_interleave(tokens) // BLOCK
    return block.unsqueeze(0) <= block.unsqueeze(1)
