"""MAGI-1's diffusion transformer (arXiv 2505.13211).

Tokens of all chunks form one packed sequence ``[tokens, dim]``. A *segment* is a run of tokens with the
same time, text and context: a chunk in one guidance branch. An ``Attend`` keeps the keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from flowcache.blockwise import map_tokens

from .layers import CaptionEmbedding, Fp32Linear, OffsetLayerNorm, TimeEmbedding, rotary_table, rotate
from .quantised import quantise_layout

#: The projection behind attention was trained on eight devices, each with a slice of the heads of self and
#: of cross attention side by side.
TRAINING_SHARDS = 8

#: Modules and parameters that stay in fp32, by a part of their names.
_FP32_EMBEDDINGS = ("patch_embed", "time_embed", "caption_embed", "rotary_bands")
_FP32_NORMS = ("norm_q", "norm_k", "attention_norm", "feed_forward_norm", "norm_out")
_FP32_SCALES = ("channel_scale", "input_scale", "weight_scale")

#: Caption tokens ``[tokens, cross_dim]`` to keys and values, ``[tokens, groups, head_dim]`` each.
ProjectText = Callable[[Tensor], tuple[Tensor, Tensor]]


class Attend(Protocol):
    """Attention of packed segments, with the keys and values that each sees."""

    def attend_video(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Self attention, ``[tokens, heads, head_dim]``; keys and values may have fewer heads."""

    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        """Cross attention to each segment's caption."""


class MagiAttention(nn.Module):
    """Self and cross attention side by side, from one normalised input into one projection.

    ``config`` holds arguments of ``MagiTransformer3DModel``, here and below.
    """

    def __init__(self, config: Any, cross_dim: int) -> None:
        super().__init__()
        dim, self.groups, self.head_dim = config.hidden_size, config.num_query_groups, config.kv_channels
        query_dim, key_dim = config.num_attention_heads * self.head_dim, self.groups * self.head_dim
        self.norm = nn.LayerNorm(dim, config.layernorm_epsilon)
        self.to_q = nn.Linear(dim, query_dim, bias=False)
        self.to_q_cross = nn.Linear(dim, query_dim, bias=False)
        self.to_k = nn.Linear(dim, key_dim, bias=False)
        self.to_v = nn.Linear(dim, key_dim, bias=False)
        self.to_kv_cross = nn.Linear(cross_dim, 2 * key_dim, bias=False)
        for name in ("norm_q", "norm_k", "norm_q_cross", "norm_k_cross"):
            self.add_module(name, _offset_norm(config, self.head_dim))
        self.to_out = Fp32Linear(2 * query_dim, dim)

    def forward(self, layer: int, hidden: Tensor, rotary: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """``hidden [tokens, dim]``, ``rotary [tokens, angles]`` to self and cross attention for ``project``."""
        normed = self.norm(hidden)
        query = map_tokens(partial(self._project_rotated, self.to_q, self.norm_q), normed, rotary)
        key = map_tokens(partial(self._project_rotated, self.to_k, self.norm_k), normed, rotary)
        video = attend.attend_video(layer, query, key, self._split(self.to_v(normed)))
        query = map_tokens(lambda x: self.norm_q_cross(self._split(self.to_q_cross(x))), normed)
        return video, attend.attend_text(layer, query, self.project_text)

    def _project_rotated(self, project: nn.Module, norm: nn.Module, normed: Tensor, rotary: Tensor) -> Tensor:
        # In fp32 between norm and rotation.
        return rotate(norm(self._split(project(normed)).float()), rotary).type_as(normed)

    def project(self, video: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
        """Self and cross attention ``[tokens, heads, head_dim]`` to ``[tokens, dim]``."""
        both = torch.stack([video.flatten(1), text.flatten(1)], dim=1)
        shards = both.unflatten(2, (TRAINING_SHARDS, -1)).transpose(1, 2)
        return self.to_out(shards.flatten(1).to(dtype))

    def project_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Implements ``ProjectText``."""
        key, value = self.to_kv_cross(tokens).unflatten(1, (self.groups, 2, self.head_dim)).unbind(2)
        return self.norm_k_cross(key), value

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.head_dim))


class MagiFeedForward(nn.Module):
    """Norm, up, GELU (4.5B) or SiLU gate (24B), down."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, hidden_dim, self.gated = config.hidden_size, config.ffn_hidden_size, config.gated_linear_unit
        self.norm = nn.LayerNorm(dim, config.layernorm_epsilon)
        self.up = nn.Linear(dim, hidden_dim * (2 if self.gated else 1), bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.up(self.norm(hidden))
        if not self.gated:
            return self.down(functional.gelu(hidden))
        gate, value = hidden.chunk(2, dim=-1)
        return self.down(functional.silu(gate) * value)


class MagiBlock(nn.Module):
    """Attention and feed-forward, each gated by the condition and normalised before it is added."""

    def __init__(self, config: Any, cross_dim: int, condition_dim: int) -> None:
        super().__init__()
        self.gates = nn.Linear(condition_dim, 2 * config.hidden_size)
        self.attention = MagiAttention(config, cross_dim)
        self.attention_norm = _offset_norm(config, config.hidden_size)
        self.feed_forward = MagiFeedForward(config)
        self.feed_forward_norm = _offset_norm(config, config.hidden_size)

    def forward(
        self, layer: int, hidden: Tensor, condition: Tensor, segment_of: Tensor, rotary: Tensor, attend: Attend
    ) -> Tensor:
        """``hidden [tokens, dim]``; ``condition [segments, condition_dim]``; ``segment_of [tokens]``."""
        gates = torch.tanh(self.gates(functional.silu(condition)))
        video, text = self.attention(layer, hidden, rotary, attend)

        def update(hidden: Tensor, video: Tensor, text: Tensor, segment_of: Tensor) -> Tensor:
            attention_gate, feed_forward_gate = gates[segment_of].chunk(2, dim=-1)
            attended = self.attention.project(video, text, hidden.dtype)
            hidden = (hidden + self.attention_norm(attention_gate * attended)).type_as(hidden)
            return hidden + self.feed_forward_norm(feed_forward_gate * self.feed_forward(hidden))

        return map_tokens(update, hidden, video, text, segment_of)


class MagiTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """MAGI-1's transformer; arguments as in ``config.ModelSection``, which are the official files' keys.

    With ``fp8_quant``, linear layers between the first and the last block have their weights in fp8.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ("MagiBlock",)
    _repeated_blocks = ("MagiBlock",)
    # As in the official loader; the norms of cross attention are in bf16 there, too. A list, because
    # diffusers does not look into a tuple.
    _keep_in_fp32_modules: ClassVar = [*_FP32_EMBEDDINGS, *_FP32_NORMS, *_FP32_SCALES, "proj_out"]

    @register_to_config
    def __init__(
        self,
        num_layers: int = 34,
        hidden_size: int = 3072,
        ffn_hidden_size: int = 12288,
        num_attention_heads: int = 24,
        num_query_groups: int = 8,
        kv_channels: int = 128,
        layernorm_epsilon: float = 1e-6,
        apply_layernorm_1p: bool = True,
        x_rescale_factor: float = 1.0,
        half_channel_vae: bool = False,
        patch_size: int = 2,
        t_patch_size: int = 1,
        in_channels: int = 16,
        out_channels: int = 16,
        cond_hidden_ratio: float = 0.25,
        caption_channels: int = 4096,
        caption_max_length: int = 800,
        xattn_cond_hidden_ratio: float = 1.0,
        gated_linear_unit: bool = False,
        fp8_quant: bool = False,
    ) -> None:
        super().__init__()
        patch = (t_patch_size, patch_size, patch_size)
        condition_dim = int(hidden_size * cond_hidden_ratio)
        cross_dim = int(hidden_size * xattn_cond_hidden_ratio)
        self.patch_embed = nn.Conv3d(in_channels, hidden_size, patch, stride=patch, bias=False)
        self.time_embed = TimeEmbedding(condition_dim)
        self.caption_embed = CaptionEmbedding(caption_channels, caption_max_length, cross_dim, condition_dim)
        num_bands = kv_channels // 8
        self.rotary_bands = nn.Parameter(10000.0 ** (-torch.arange(num_bands) / num_bands))
        self.blocks = nn.ModuleList(MagiBlock(self.config, cross_dim, condition_dim) for _ in range(num_layers))
        if fp8_quant:
            quantise_layout(self.blocks)
        self.norm_out = _offset_norm(self.config, hidden_size)
        self.proj_out = nn.Linear(hidden_size, patch_size**2 * t_patch_size * out_channels, bias=False)

    @classmethod
    def keeps_fp32(cls, name: str) -> bool:
        """Whether the official loader keeps the parameter of that name in fp32."""
        return any(part in cls._keep_in_fp32_modules for part in name.split("."))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MagiTransformer3DModel:
        """Move or cast; what ``_keep_in_fp32_modules`` names is moved but not cast."""
        kept = {
            name: tensor.data
            for name, tensor in chain(self.named_parameters(), self.named_buffers())
            if tensor.dtype == torch.float32 and self.keeps_fp32(name)
        }
        super()._apply(fn, recurse)
        tensors = dict(chain(self.named_parameters(), self.named_buffers()))
        for name, data in kept.items():
            if tensors[name].dtype != data.dtype:
                tensors[name].data = data.to(tensors[name].device)
        return self

    def embed(self, latents: Tensor) -> Tensor:
        """Latents ``[channels, frames, height, width]`` to fp32 tokens ``[tokens, dim]``, time outermost."""
        scaled = latents.float() * self.config.x_rescale_factor
        if self.config.half_channel_vae:
            scaled = torch.cat([scaled, scaled])
        return self.patch_embed(scaled.unsqueeze(0))[0].flatten(1).T

    def forward(
        self, tokens: Tensor, condition: Tensor, lengths: Sequence[int], rotary: Tensor, attend: Attend
    ) -> Tensor:
        """Run the block stack on packed ``tokens [tokens, dim]``, to the same shape.

        ``condition [segments, condition_dim]``; ``lengths`` in tokens; ``rotary [tokens, n]``, angles.
        """
        # Filled on the device: the host would have to wait for the copy of a list.
        places = [torch.full((length,), place, device=tokens.device) for place, length in enumerate(lengths)]
        segment_of, dtype = torch.cat(places), self.dtype
        hidden, condition = tokens.to(dtype), condition.to(dtype)
        for layer, block in enumerate(self.blocks):
            hidden = block(layer, hidden, condition, segment_of, rotary, attend).type_as(hidden)
        return hidden

    def head(self, hidden: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Tokens ``[tokens, dim]`` of one segment to its velocity ``[channels, frames, height, width]``."""
        side, depth = self.config.patch_size, self.config.t_patch_size
        out = self.proj_out(self.norm_out(hidden.float()))
        grid = (frames // depth, height // side, width // side)
        out = out.reshape(*grid, depth, side, side, self.config.out_channels)
        out = out.permute(6, 0, 3, 1, 4, 2, 5).reshape(self.config.out_channels, frames, height, width)
        if self.config.half_channel_vae:
            out = out[: self.config.out_channels // 2]
        return out / self.config.x_rescale_factor

    def embed_caption(self, caption: Tensor) -> Tensor:
        """Caption ``[tokens, channels]`` to the tokens of cross attention, ``[tokens, cross_dim]``."""
        return self.caption_embed(caption).to(self.dtype)

    def condition(self, times: Tensor, with_text: Sequence[bool], step_sizes: Tensor | None = None) -> Tensor:
        """Condition that gates the blocks, ``[segments, condition_dim]``.

        ``times [segments]`` run from 0 (noise) to 1 (clean). Distilled models see ``step_sizes [segments]``,
        in quarters of the grid of times.
        """
        embedded = self.time_embed(times)
        if step_sizes is not None:
            embedded = embedded + self.time_embed(step_sizes)
        return embedded + torch.stack([self.caption_embed.condition(flag) for flag in with_text])

    def rotary(self, num_frames: int, height: int, width: int, first_frame: int = 0) -> Tensor:
        """Angles ``[frames, tokens per frame, n]`` for latents of that size, from a latent frame on."""
        side, depth = self.config.patch_size, self.config.t_patch_size
        size = (num_frames // depth, height // side, width // side)
        return rotary_table(self.rotary_bands, *size, first_frame // depth)


def _offset_norm(config: Any, dim: int) -> OffsetLayerNorm:
    return OffsetLayerNorm(dim, config.layernorm_epsilon, config.apply_layernorm_1p)
