"""MAGI-1's diffusion transformer (arXiv 2505.13211).

Tokens of all chunks form one packed sequence ``[tokens, dim]``. A *segment* is a run of tokens with the
same time, text and context: a chunk in one guidance branch. An ``Attend`` keeps the keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar, Protocol

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from flowcache import blockwise
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

    def forward(self, hidden: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values of self attention and queries of cross attention, ``[..., heads, head_dim]`` each.

        ``hidden [..., dim]``; ``rotary`` as of ``layers.rotate``.
        """
        normed, parts = self.norm(hidden), []
        for to, norm in ((self.to_q, self.norm_q), (self.to_k, self.norm_k)):
            projected = self._split(to(normed))
            # In the norm's fp32 until it is rotated.
            parts.append(rotate(norm(projected), rotary).type_as(projected))
        return *parts, self._split(self.to_v(normed)), self.norm_q_cross(self._split(self.to_q_cross(normed)))

    def project(self, video: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
        """Self and cross attention, ``[..., heads * head_dim]`` each, to ``[..., dim]``."""
        shards = [each.unflatten(-1, (TRAINING_SHARDS, -1)) for each in (video, text)]
        return self.to_out(torch.stack(shards, dim=-2).flatten(-3).to(dtype))

    def project_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Implements ``ProjectText``."""
        key, value = self.to_kv_cross(tokens).unflatten(1, (self.groups, 2, self.head_dim)).unbind(2)
        return self.norm_k_cross(key), value

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


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
        # Rounded twice in bf16, unless compiled; the original's kernel rounds once. A copy in fp32 costs too much.
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

    def forward(self, layer: int, hidden: Tensor, condition: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """``hidden [runs, tokens, dim]``, with a ``condition [runs, condition_dim]`` of each run of tokens.

        ``rotary [runs, tokens, 1, n]``, as of ``layers.rotate``.
        """
        size = max(1, blockwise.MAX_TOKENS // hidden.shape[1])
        video, text = self._attend(layer, hidden, rotary, attend, size)
        return map_tokens(self.update, hidden, video, text, condition, size=size)

    def _attend(self, layer: int, hidden: Tensor, rotary: Tensor, attend: Attend, size: int) -> list[Tensor]:
        """Self and cross attention, ``[runs, tokens, heads * head_dim]`` each."""
        query, key, value, cross = (x.flatten(0, 1) for x in map_tokens(self.attention, hidden, rotary, size=size))
        video = attend.attend_video(layer, query, key, value)
        text = attend.attend_text(layer, cross, self.attention.project_text)
        return [each.flatten(1).unflatten(0, hidden.shape[:2]) for each in (video, text)]

    def update(self, hidden: Tensor, video: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """Add attention, then feed-forward; arguments as of ``forward``, and what self and cross attention return."""
        gates = torch.tanh(self.gates(functional.silu(condition))).unsqueeze(1)
        attention_gate, feed_forward_gate = gates.chunk(2, dim=-1)
        attended = self.attention.project(video, text, hidden.dtype)
        hidden = _add(hidden, attended, attention_gate, self.attention_norm)
        return _add(hidden, self.feed_forward(hidden), feed_forward_gate, self.feed_forward_norm)

    def compile(self, dynamic: bool = True, **options: Any) -> None:
        """Compile what runs before and after attention, for all numbers of tokens; ``options`` of ``torch.compile``.

        Attention stays as it is: the layer's number and the cache, which it reads, would need a graph each time.
        """
        self.attention.compile(dynamic=dynamic, **options)
        self.update = torch.compile(self.update, dynamic=dynamic, **options)


def _add(hidden: Tensor, update: Tensor, gate: Tensor, norm: nn.Module) -> Tensor:
    """Add a gated and normalised update; in fp32, so that the sum alone is rounded."""
    return norm(update.float().mul_(gate)).add_(hidden).type_as(hidden)


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

    def forward(self, tokens: Tensor, condition: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """Run the block stack on packed ``tokens [tokens, dim]``, to the same shape.

        Args:
            condition: of equal runs of tokens, ``[runs, condition_dim]``; its type is that of the residual stream.
            rotary: of every token, as of ``rotary``.
        """
        shape = (len(condition), -1)
        hidden, rotary = tokens.to(condition.dtype).unflatten(0, shape), rotary.flatten(0, 1).unflatten(0, shape)
        for layer, block in enumerate(self.blocks):
            hidden = block(layer, hidden, condition, rotary, attend)
        return hidden.flatten(0, 1)

    def head(self, hidden: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Tokens ``[tokens, dim]`` of one segment to its velocity ``[channels, frames, height, width]``."""
        return self.join_patches(self.to_patches(hidden), frames, height, width)

    def to_patches(self, hidden: Tensor) -> Tensor:
        """Tokens ``[..., dim]`` to the numbers of their patches, ``[..., features]``."""
        return self.proj_out(self.norm_out(hidden.float()))

    def join_patches(self, out: Tensor, frames: int, height: int, width: int) -> Tensor:
        """Patches ``[tokens, features]`` of one segment to its velocity, as of ``head``."""
        side, depth = self.config.patch_size, self.config.t_patch_size
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
        dtype = self.dtype
        embedded = self.time_embed(times, dtype)
        if step_sizes is not None:
            embedded = embedded + self.time_embed(step_sizes, dtype)
        return (embedded + torch.stack([self.caption_embed.condition(flag) for flag in with_text])).to(dtype)

    def rotary(self, times: Tensor, height: int, width: int) -> Tensor:
        """``layers.rotary_table`` for latents of that size; ``times [frames]`` count patches along time."""
        side = self.config.patch_size
        return rotary_table(self.rotary_bands, times, height // side, width // side)


def _offset_norm(config: Any, dim: int) -> OffsetLayerNorm:
    return OffsetLayerNorm(dim, config.layernorm_epsilon, config.apply_layernorm_1p)
