"""Wan's transformer, driven chunk by chunk: that of SkyReels-V2 and of Self-Forcing."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel
from diffusers.models.modeling_utils import get_parameter_dtype
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2RotaryPosEmbed
from torch import Tensor, nn
from torch.nn import functional

from .. import blockwise
from ..chunk_model import ChunkInput
from ..flops import TransformerFlops
from ..kv.cache import CacheLayout, ChunkKVCache
from ..parallel import SINGLE, Layout, SequenceShares
from .attention import PackedChunks, TextContext, modulate, rotate, use_chunkwise_blocks

#: Indicators of reuse policies, by their place in the result of ``_time``. Neither depends on the latents.
INDICATORS = {"timestep_embedding": 0, "timestep_projection": 1}


def project_fp32(linear: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply a linear layer in fp32, as the original does; in ``dtype`` if it is quantised or has adapters."""
    if type(linear) is nn.Linear and type(linear.weight.data) is Tensor:
        return functional.linear(inputs, linear.weight.float(), linear.bias.float())
    return linear(inputs.to(dtype)).float()


class FrameRotary:
    """Rotations of the tokens of any frames, from diffusers' frequencies.

    It holds the axes: a whole table would grow with frames times tokens per frame.

    Args:
        rope: of the transformer; a longer one replaces it in videos beyond its ``max_seq_len`` frames.
        grid: rows and columns of tokens in a frame.
        num_frames: latent frames of the video.
    """

    def __init__(self, rope: SkyReelsV2RotaryPosEmbed, grid: tuple[int, int], num_frames: int) -> None:
        device, (height, width) = rope.freqs_cos.device, grid
        if num_frames > rope.max_seq_len:
            rope = SkyReelsV2RotaryPosEmbed(rope.attention_head_dim, rope.patch_size, num_frames).to(device)
        sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
        axes = zip(rope.freqs_cos.split(sizes, dim=1), rope.freqs_sin.split(sizes, dim=1), strict=True)
        time, rows, columns = (torch.stack((cos[:, 0::2], sin[:, 1::2]), dim=-1).float() for cos, sin in axes)
        self._time = time[:num_frames].clone()
        place = rows[:height].repeat_interleave(width, dim=0), columns[:width].repeat(height, 1, 1)
        self._place = torch.cat(place, dim=1)

    def frames(self, start: int, stop: int) -> Tensor:
        """Cosine and sine for frames ``[start, stop)``, ``[frames, tokens per frame, head_dim / 2, 2]``."""
        time, place = self._time[start:stop].unsqueeze(1), self._place.unsqueeze(0)
        parts = time.expand(-1, place.shape[1], -1, -1), place.expand(len(time), -1, -1, -1)
        return torch.cat(parts, dim=2)

    def retime(self, keys: Tensor, frames: Tensor) -> Tensor:
        """See ``ChunkModel.retime``; in fp32. Rotations add up, and those of time come first."""
        turns = self._time[frames]
        time, place = keys.split([2 * turns.shape[-2], keys.shape[-1] - 2 * turns.shape[-2]], dim=-1)
        return torch.cat([rotate(time.float().contiguous(), turns).type_as(keys), place], dim=-1)


def transformer_flops(config: Any) -> TransformerFlops:
    dim, patch = config.num_attention_heads * config.attention_head_dim, math.prod(config.patch_size)
    features = (config.in_channels * patch, config.out_channels * patch)
    return TransformerFlops(
        dim, dim, dim, 2 * config.ffn_dim, config.num_layers, *features, head_dim=config.attention_head_dim
    )


class WanChunkModel:
    """``flowcache.chunk_model.ChunkModel`` on diffusers' transformer.

    Args:
        transformer: a diffusion-forcing transformer; its blocks become ``ChunkwiseBlock``, which run as before in
            its own ``forward``.
        prompt_embeds: ``[branches, tokens, text_dim]``: the prompt, then, with guidance, the negative one; of the
            chunks' text 0, see ``add_text``.
        grid, num_frames: height and width of latent frames, and their number in the longest window.
        fps: frames per second; the model knows 16 and "other", if it was trained to know them at all.
        bidirectional: attend to the whole window, as the original does, and not only to the past.
        indicator: a key of ``INDICATORS``; None is ``timestep_projection``.
        runs_whole_window: see ``ChunkModel``; False for streaming, which the original lacks.
        processes: that share the video: each runs its guidance branches on its share of the tokens.
    """

    def __init__(
        self,
        transformer: SkyReelsV2Transformer3DModel,
        prompt_embeds: Tensor,
        grid: tuple[int, int],
        num_frames: int,
        guidance_scale: float = 1.0,
        fps: int = 24,
        bidirectional: bool = False,
        indicator: str | None = None,
        runs_whole_window: bool = True,
        processes: Layout = SINGLE,
    ) -> None:
        config = transformer.config
        if config.patch_size[0] != 1 or config.image_dim is not None:
            raise ValueError("transformer: expected one-frame patches and no image tokens; use a DF model.")
        if getattr(transformer, "_parallel_config", None) is not None:
            advice = "load it without, and call the pipeline's parallelize"
            raise ValueError(f"transformer: expected none of diffusers' parallelism, got some; {advice}.")
        indicator = indicator or "timestep_projection"
        if indicator not in INDICATORS:
            raise ValueError(f"indicator: expected one of {', '.join(INDICATORS)}, got {indicator!r}.")
        self.transformer, self.num_branches = transformer, len(prompt_embeds)
        self.bidirectional, self.runs_whole_window = bidirectional, runs_whole_window
        self.guidance_scale, self._indicator = guidance_scale, INDICATORS[indicator]
        self._grid = (grid[0] // config.patch_size[1], grid[1] // config.patch_size[2])
        self._fps_index = 0 if fps == 16 else 1
        self._times: dict[float, tuple[Tensor, Tensor]] = {}
        self._flops = transformer_flops(config)
        use_chunkwise_blocks(transformer)
        self._rotary = FrameRotary(transformer.rope, self._grid, num_frames)
        self._processes, self._branches = processes, processes.branches.share(self.num_branches)
        self._shares = SequenceShares(processes.tokens, self.num_tokens(1), config.num_attention_heads)
        self._texts: list[TextContext] = []
        self.add_text(prompt_embeds)

    def add_text(self, prompt_embeds: Tensor) -> None:
        """Add the text with the next index; shaped as the first."""
        text = self.transformer.condition_embedder.text_embedder(prompt_embeds)
        self._texts.append(TextContext(text[self._branches.start : self._branches.stop]))

    def indicators(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        # Frames of one time count as one.
        times = [t if len(set(t)) > 1 else t[:1] for t in (item.timesteps for item in inputs)]
        return [torch.stack([self._time(t)[self._indicator] for t in each]) for each in times]

    def embed(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        latents = torch.cat([item.latents for item in inputs], dim=1)
        embedded = self.transformer.patch_embedding(latents.unsqueeze(0).type_as(self._like))
        # All tokens, as a convolution of a share rounds differently; it is 0.01% of the blocks' work.
        tokens = self._shares.take(embedded.flatten(3).permute(0, 2, 3, 1), dim=2)
        return list(tokens.flatten(1, 2).split(self._own_lengths(inputs), dim=1))

    def blocks(self, inputs: Sequence[ChunkInput], tokens: Sequence[Tensor], cache: ChunkKVCache) -> list[Tensor]:
        lengths, own_lengths = [self.num_tokens(len(i.timesteps)) for i in inputs], self._own_lengths(inputs)
        rotary = torch.cat([self._rotary.frames(item.start_frame, item.stop_frame) for item in inputs])
        rotary = self._shares.take(rotary, dim=1)[None, :, :, None]
        # Branches of a large call run one after another, which takes less memory.
        count = len(self._branches)
        # By the largest share, as all processes must exchange as often.
        largest = sum(lengths) // self._shares.tokens * self._shares.largest
        groups = range(count) if cache.by_branch and largest > blockwise.MAX_TOKENS else [None]
        runs = groupby(inputs, lambda item: self._texts[item.text])
        texts = [(text, sum(len(item.timesteps) for item in run)) for text, run in runs]
        for unread in {*self._texts} - {text for text, _ in texts}:
            unread.forget()
        call = (inputs, lengths, rotary, cache, self.bidirectional, self._shares)
        packed = [PackedChunks(*call, branch) for branch in groups]
        modulation = self._per_frame(inputs, part=1)
        modulation[:, :, 1::3] += 1  # scales
        hidden = list(self._by_frame(tokens).expand(count, -1, -1, -1).contiguous().chunk(len(groups)))
        for block in self.transformer.blocks:
            for i, call in enumerate(packed):
                hidden[i] = block(hidden[i], texts, modulation, call)
        joined = torch.cat(hidden) if len(hidden) > 1 else hidden[0]
        return list(joined.flatten(1, 2).split(own_lengths, dim=1))

    def head(self, inputs: Sequence[ChunkInput], outputs: Sequence[Tensor]) -> list[Tensor]:
        model = self.transformer
        hidden, embedding = self._by_frame(outputs), self._per_frame(inputs, part=0)
        shift, scale = (each + embedding for each in model.scale_shift_table.unbind(1))
        modulated = modulate(model.norm_out, hidden, shift, 1 + scale)
        patches, others = project_fp32(model.proj_out, modulated, hidden.dtype), self._processes.branches
        patches = others.gather(patches, 0, [len(patches)] * others.size)
        if self.num_branches == 2:
            conditional, unconditional = patches
            patches = (unconditional + self.guidance_scale * (conditional - unconditional)).unsqueeze(0)
        # [frames, tokens per frame, features] to [channels, frames, height, width]
        config, patches = model.config, self._shares.join(patches[0], dim=1)
        patches = patches.reshape(-1, *self._grid, *config.patch_size[1:], config.out_channels)
        velocity = patches.permute(5, 0, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return list(velocity.split([len(item.timesteps) for item in inputs], dim=1))

    def num_tokens(self, num_frames: int) -> int:
        return num_frames * self._grid[0] * self._grid[1]

    def condition_timestep(self, level: float) -> float:
        return round(1000 * level)

    def cache_layout(self) -> CacheLayout:
        # Not of a weight, which may be quantised.
        config, like = self.transformer.config, self._like
        heads = (config.num_attention_heads, config.attention_head_dim)
        whole = CacheLayout(config.num_layers, self.num_branches, *heads, like.dtype, like.device)
        return whole.share(self._processes)

    def retime(self, keys: Tensor, frames: Tensor) -> Tensor:
        return self._rotary.retime(keys, frames)

    def reach(self, local_step: int | None) -> int | None:
        return None

    def block_flops(self, num_tokens: int, num_keys: int, local_step: int | None = None) -> float:
        return self.num_branches * self._flops.blocks(num_tokens, num_keys, self._like.shape[1])

    def edge_flops(self, num_tokens: int, local_step: int | None = None) -> float:
        return self._flops.embed(num_tokens) + self.num_branches * self._flops.head(num_tokens)

    @property
    def _like(self) -> Tensor:
        """Of the type, device and tokens of all texts."""
        return self._texts[0].embeds

    def _own_lengths(self, inputs: Sequence[ChunkInput]) -> list[int]:
        """This process's tokens of each chunk."""
        return [len(item.timesteps) * len(self._shares.own_tokens) for item in inputs]

    def _by_frame(self, tokens: Sequence[Tensor]) -> Tensor:
        """Own tokens of all chunks, ``[1 or branches, tokens, dim]``, to ``[.., frames, tokens per frame, dim]``."""
        return torch.cat(list(tokens), dim=1).unflatten(1, (-1, len(self._shares.own_tokens)))

    def _per_frame(self, inputs: Sequence[ChunkInput], part: int) -> Tensor:
        """Time embedding (0), ``[1, frames, 1, dim]``, or its projection (1), ``[1, frames, 6, 1, dim]``."""
        values = torch.stack([self._time(t)[part] for item in inputs for t in item.timesteps])
        return values.unsqueeze(-2).unsqueeze(0)

    def _time(self, timestep: float) -> tuple[Tensor, Tensor]:
        """Embedding ``[dim]`` of a timestep and its projection ``[6, dim]``, fp32; each is made once."""
        if timestep not in self._times:
            model, embedder = self.transformer, self.transformer.condition_embedder
            like, dtype = self._like, get_parameter_dtype(embedder.time_embedder)
            time = embedder.timesteps_proj(torch.tensor([timestep], device=like.device))
            embedding = embedder.time_embedder(time.to(dtype)).float()
            projection = project_fp32(embedder.time_proj, embedder.act_fn(embedding), like.dtype)
            if model.config.inject_sample_info:
                fps = model.fps_embedding(torch.tensor([self._fps_index], device=like.device))
                projection = projection + model.fps_projection(fps)
            self._times[timestep] = embedding[0], projection.unflatten(-1, (6, -1))[0]
        return self._times[timestep]
