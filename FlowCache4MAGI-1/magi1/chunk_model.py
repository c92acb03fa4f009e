"""MAGI-1's transformer, driven chunk by chunk."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowcache import StaircaseSchedule
from flowcache.chunk_model import ChunkInput
from flowcache.flops import TransformerFlops
from flowcache.kv.cache import CacheLayout, ChunkKVCache
from flowcache.parallel import SINGLE, Layout, SequenceShares

from .attention import PackedSegments, Segment, TextBank
from .captions import Captions
from .guidance import Branch, Guidance
from .layers import rotate
from .schedule import Timetable
from .transformer import MagiTransformer3DModel

#: Tensor whose relative change reuse policies watch: the tokens that enter the block stack.
INDICATOR = "embedded_latent"

#: Context of a given chunk where no range is set, in chunks.
GIVEN_REACH = 8


@dataclass(frozen=True)
class KVRange:
    """Context of a chunk, in chunks, itself included."""

    noisy: Sequence[int] = ()  # by the chunk's progress, in equal parts of its steps; empty: all before it
    clean: int = -1  # of a clean or given chunk; -1: the last of ``noisy``. Without ``noisy``, of given ones only.

    def reach(self, local_step: int | None, num_steps: int) -> int | None:
        """Context at a local step: ``num_steps`` once clean, None if given. None: all chunks before."""
        if local_step is not None and not self.noisy:
            return None
        if local_step is not None and local_step < num_steps:
            return self.noisy[local_step // (num_steps // len(self.noisy))]
        if self.clean != -1:
            return self.clean
        return self.noisy[-1] if self.noisy else GIVEN_REACH


@dataclass(frozen=True)
class Sampling:
    timetable: Timetable
    guidance: Guidance
    schedule: StaircaseSchedule
    kv_range: KVRange = field(default_factory=KVRange)


def transformer_flops(config: Any) -> TransformerFlops:
    patch = config.t_patch_size * config.patch_size**2
    return TransformerFlops(
        dim=config.hidden_size,
        query_dim=config.num_attention_heads * config.kv_channels,
        key_dim=config.num_query_groups * config.kv_channels,
        ffn_dim=config.ffn_hidden_size * (3 if config.gated_linear_unit else 2),
        num_layers=config.num_layers,
        patch_features_in=config.in_channels * patch,
        patch_features_out=config.out_channels * patch,
        head_dim=config.kv_channels,
    )


class MagiChunkModel:
    """Implements ``flowcache.chunk_model.ChunkModel`` for latents of a height and width (``size``).

    ``captions`` are those of the chunks' text 0, see ``add_text``. Of the indicators of reuse policies, this model has
    ``INDICATOR`` alone. ``processes`` share the video's tokens.
    """

    bidirectional = False
    runs_whole_window = False

    def __init__(
        self,
        transformer: MagiTransformer3DModel,
        captions: Captions,
        size: tuple[int, int],
        sampling: Sampling,
        indicator: str | None = None,
        processes: Layout = SINGLE,
    ) -> None:
        if indicator not in (None, INDICATOR):
            raise ValueError(f"indicator: expected {INDICATOR}, got {indicator!r}.")
        self.transformer, self.sampling = transformer, sampling
        self.timetable, self.guidance = sampling.timetable, sampling.guidance
        self.num_branches = sampling.guidance.num_slots
        self._grid = size
        # The null caption is the first in the bank; those of each text follow.
        self._captions, self._firsts = list[Captions](), list[int]()
        self._text = TextBank([transformer.embed_caption(captions.null)])
        self.add_text(captions)
        config, self._device = transformer.config, transformer.rotary_bands.device
        self._depth, self._tokens_per_patch = config.t_patch_size, math.prod(n // config.patch_size for n in size)
        self._processes = processes
        self._shares = SequenceShares(processes.tokens, self._tokens_per_patch, config.num_query_groups)
        self._conditions = self._make_conditions()
        #: Frames of the last call's segments, and their rotary positions; most calls have those of the one before.
        self._rotary: tuple[list[tuple[int, int]], Tensor | None] = ([], None)
        self._flops = transformer_flops(transformer.config)

    def add_text(self, captions: Captions) -> None:
        """Add the text with the next index."""
        self._firsts.append(len(self._text.captions))
        self._captions.append(captions)
        self._text.captions += map(self.transformer.embed_caption, captions.texts)

    def indicators(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        return [patches.flatten(0, 1) for patches in self._embed_all(inputs)]

    def embed(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        # All tokens, as a convolution of a share rounds differently; it is 0.01% of the blocks' work.
        return [self._shares.take(patches, dim=1).flatten(0, 1).unsqueeze(0) for patches in self._embed_all(inputs)]

    def blocks(self, inputs: Sequence[ChunkInput], tokens: Sequence[Tensor], cache: ChunkKVCache) -> list[Tensor]:
        # No live chunk has an older caption of its text.
        oldest = max(0, max(item.chunk for item in inputs) + 1 - self.sampling.schedule.max_live)
        ends = {text: self._firsts[text] + len(self._captions[text].texts) for text in {i.text for i in inputs}}
        self._text.keep({0}.union(*(range(self._caption(oldest, text), end) for text, end in ends.items())))
        branches = [self._branches(item) for item in inputs]
        packed = [(item, branch) for item, own in zip(inputs, branches, strict=True) for branch in own]
        hidden = [one[0] for one, own in zip(tokens, branches, strict=True) for _ in own]
        steps = self.timetable.num_steps
        # After this call, all branches see the keys and values that the last one has of clean chunks.
        for item in inputs:
            if not self._is_live(item.local_step):
                cache.share_branch(item.chunk, source=self.num_branches - 1)
        conditions = [
            self._conditions[min(item.local_step, steps), int(branch.text)].expand(self._num_patches(item), -1)
            for item, branch in packed
        ]
        segments = PackedSegments([self._segment(*each) for each in packed], cache, self._text, self._shares)
        rotary = self._find_rotary([(item.start_frame, item.stop_frame) for item, _ in packed])
        out = self.transformer(torch.cat(hidden), torch.cat(conditions), rotary, segments)
        parts = out.split([len(own) * one.shape[1] for one, own in zip(tokens, branches, strict=True)])
        return [part.unflatten(0, (len(own), -1)) for part, own in zip(parts, branches, strict=True)]

    def head(self, inputs: Sequence[ChunkInput], outputs: Sequence[Tensor]) -> list[Tensor]:
        velocities, own = [], len(self._shares.own_tokens)
        patches = [self.transformer.to_patches(output.flatten(0, 1)).unflatten(0, (-1, own)) for output in outputs]
        lengths = [len(each) for each in patches]
        patches = self._shares.join(torch.cat(patches) if len(patches) > 1 else patches[0], dim=1).split(lengths)
        for item, part in zip(inputs, patches, strict=True):
            frames = len(item.timesteps)
            joined = self.transformer.join_patches(part, len(part) * self._depth, *self._grid)
            branches = joined.unflatten(1, (-1, frames)).transpose(0, 1)
            velocities.append(self.guidance.mix(self._time(item.local_step), branches))
        return velocities

    def num_tokens(self, num_frames: int) -> int:
        return num_frames // self._depth * self._tokens_per_patch

    def condition_timestep(self, level: float) -> float:
        return self.timetable.clean_time

    def cache_layout(self) -> CacheLayout:
        config = self.transformer.config
        sizes = (config.num_layers, self.num_branches, config.num_query_groups, config.kv_channels)
        return CacheLayout(*sizes, self.transformer.dtype, self._device).share(self._processes)

    def retime(self, keys: Tensor, frames: Tensor) -> Tensor:
        bands = self.transformer.rotary_bands.float()
        angles = functional.pad(frames.unsqueeze(-1) * bands, (0, 2 * len(bands)))  # time, height, width
        return rotate(keys.float(), torch.cat([angles.cos(), angles.sin()], dim=-1)).type_as(keys)

    def reach(self, local_step: int | None) -> int | None:
        return self.sampling.kv_range.reach(local_step, self.timetable.num_steps)

    def block_flops(self, num_tokens: int, num_keys: int, local_step: int | None = None) -> float:
        null, *captions = map(len, self._text.captions)
        caption = max(captions)
        live = self._is_live(local_step)
        return sum(
            self._flops.blocks(
                num_tokens, num_tokens if branch.slot is None else num_keys, caption if live and branch.text else null
            )
            for branch in self._branches_at(None, local_step)
        )

    def edge_flops(self, num_tokens: int, local_step: int | None = None) -> float:
        # A chunk that does not move has no use for a velocity.
        heads = len(self._branches_at(None, local_step)) if self._is_live(local_step) else 0
        return self._flops.embed(num_tokens) + heads * self._flops.head(num_tokens)

    def _embed_all(self, inputs: Sequence[ChunkInput]) -> Sequence[Tensor]:
        """All tokens of each chunk, ``[patches along time, tokens per patch, dim]``."""
        embedded = self.transformer.embed(torch.cat([item.latents for item in inputs], dim=1))
        return embedded.unflatten(0, (-1, self._tokens_per_patch)).split([self._num_patches(item) for item in inputs])

    def _is_live(self, local_step: int | None) -> bool:
        return local_step is not None and local_step < self.timetable.num_steps

    def _time(self, local_step: int | None) -> float:
        return self.timetable.timestep(local_step) if self._is_live(local_step) else self.timetable.clean_time

    def _branches(self, item: ChunkInput) -> Sequence[Branch]:
        is_given = item.chunk < self.sampling.schedule.first_chunk
        return self._branches_at(item.chunk, None if is_given else item.local_step)

    def _branches_at(self, chunk: int | None, local_step: int | None) -> Sequence[Branch]:
        """Branches of a chunk (None: not the first live one) at a local step (None: it is given).

        All branches see clean chunks without text. A clean chunk runs in each branch, beside live chunks that
        see it there; a given one, before there are any, only in the last, which has no text.
        """
        schedule, time = self.sampling.schedule, self._time(local_step)
        if self._is_live(local_step):
            first = chunk is not None and chunk <= schedule.first_chunk
            oldest = first or local_step + schedule.stride >= schedule.num_steps
            return self.guidance.branches(time, oldest)
        cached = [branch for branch in self.guidance.branches(time, oldest=False) if branch.slot is not None]
        return cached[-1:] if local_step is None else cached

    def _segment(self, item: ChunkInput, branch: Branch) -> Segment:
        has_text = branch.text and self._is_live(item.local_step)
        text = self._caption(item.chunk, item.text) if has_text else 0
        return Segment(item.chunk, self.num_tokens(len(item.timesteps)), text, branch.slot, item.first_chunk)

    def _caption(self, chunk: int, text: int) -> int:
        """Index in the bank of a chunk's caption of a text."""
        return self._firsts[text] + self._captions[text].of_chunk[chunk]

    def _num_patches(self, item: ChunkInput) -> int:
        """Patches of a chunk along time."""
        return len(item.timesteps) // self._depth

    def _find_rotary(self, spans: list[tuple[int, int]]) -> Tensor:
        """Rotary positions of the tokens of latent frames ``[start, stop)``, span after span."""
        if self._rotary[0] != spans:
            # Counted on the device: the host would have to wait for the copy of a list.
            times = [torch.arange(*(n // self._depth for n in span), device=self._device) for span in spans]
            rotary = self.transformer.rotary(torch.cat(times), *self._grid)
            self._rotary = spans, self._shares.take(rotary, dim=1)
        return self._rotary[1]

    def _make_conditions(self) -> Tensor:
        """Conditions of every step and of clean chunks, without text and with, ``[steps + 1, 2, dim]``.

        Made once a video, so that no step waits for times on their way to the device.
        """
        count, device = self.timetable.num_steps, self._device
        times = torch.tensor([*self.timetable.times[:-1], self.timetable.clean_time], device=device)
        # Clean chunks run when a chunk starts, with its step size.
        sizes = [self.timetable.step_size(step) for step in (*range(count), 0)]
        sizes = torch.tensor(sizes, device=device) if self.timetable.distilled else None
        by_text = [self.transformer.condition(times, [flag] * (count + 1), sizes) for flag in (False, True)]
        return torch.stack(by_text, dim=1)
