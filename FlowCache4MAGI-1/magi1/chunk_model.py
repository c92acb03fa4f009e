"""MAGI-1's transformer, driven chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowcache import StaircaseSchedule
from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import CacheLayout, ChunkKVCache

from .attention import PackedSegments, Segment, TextBank, choose_attention
from .captions import Captions
from .flops import TransformerFlops
from .guidance import Branch, Guidance
from .schedule import Timetable
from .transformer import MagiTransformer3DModel

#: What a reuse policy can watch.
INDICATORS = ("embedded_latent",)

#: Chunks that a given one sees where no range is set.
GIVEN_REACH = 8


@dataclass(frozen=True)
class KVRange:
    """How many chunks, itself included, a chunk sees.

    Attributes:
        noisy: by the chunk's progress, in equal parts of its steps; empty: all chunks before it.
        clean: of a clean or given chunk; -1: as the last of ``noisy``. Without ``noisy``, the original reads
            it for given chunks only.
    """

    noisy: Sequence[int] = ()
    clean: int = -1

    def reach(self, local_step: int, num_steps: int) -> int | None:
        """Chunks that one sees at a local step (``num_steps`` once clean); None: all."""
        if not self.noisy:
            return None
        if local_step >= num_steps:
            return self.noisy[-1] if self.clean == -1 else self.clean
        return self.noisy[local_step // (num_steps // len(self.noisy))]

    @property
    def given_reach(self) -> int:
        """Chunks that a given one sees."""
        if self.clean != -1:
            return self.clean
        return self.noisy[-1] if self.noisy else GIVEN_REACH


@dataclass(frozen=True)
class Sampling:
    """How a video is sampled.

    Attributes:
        timetable: times of the steps.
        guidance: branches and their mix.
        schedule: which chunks move at a step, and which are given.
        kv_range: which chunks one sees.
    """

    timetable: Timetable
    guidance: Guidance
    schedule: StaircaseSchedule
    kv_range: KVRange = field(default_factory=KVRange)

    def is_given(self, chunk: int) -> bool:
        """Whether a chunk is part of the prefix."""
        return chunk < self.schedule.first_chunk

    def is_oldest(self, chunk: int | None, local_step: int) -> bool:
        """Whether no other live chunk is further on; None stands for one that is not the first."""
        first = chunk is not None and chunk <= self.schedule.first_chunk
        return first or local_step + self.schedule.stride >= self.schedule.num_steps


class MagiChunkModel:
    """Implements ``flowcache.chunk_model.ChunkModel``.

    Args:
        transformer: runs the segments.
        captions: of the video.
        size: height and width of the latents.
        sampling: how it is sampled.
        indicator: what a reuse policy watches, one of ``INDICATORS``; None is ``embedded_latent``.

    Raises:
        ValueError: unknown indicator.
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
    ) -> None:
        if indicator not in (None, *INDICATORS):
            raise ValueError(f"indicator must be one of {', '.join(INDICATORS)}, got {indicator!r}.")
        self.transformer, self.sampling = transformer, sampling
        self.timetable, self.guidance = sampling.timetable, sampling.guidance
        self.num_branches = sampling.guidance.num_slots
        self._grid, self._captions = size, captions
        texts = (*captions.texts, captions.null)
        self._text = TextBank([transformer.embed_caption(text) for text in texts])
        first_frame = transformer.rotary(1, *size)
        self._tokens_per_frame, self._device = first_frame.shape[1], first_frame.device
        self._conditions = self._all_conditions()
        self._attention = choose_attention(self._device, transformer.dtype)
        self._flops = TransformerFlops.of(transformer.config)

    def indicators(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        return [tokens[0] for tokens in self.embed(inputs)]

    def embed(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        latents = torch.cat([item.latents for item in inputs], dim=1)
        return list(self.transformer.embed(latents).unsqueeze(0).split(self._lengths(inputs), dim=1))

    def blocks(
        self, inputs: Sequence[ChunkInput], tokens: Sequence[Tensor], cache: ChunkKVCache
    ) -> list[Tensor]:
        self._forget_texts(inputs)
        branches = [self._branches(item) for item in inputs]
        packed = [
            (item, branch) for item, of_item in zip(inputs, branches, strict=True) for branch in of_item
        ]
        segments = [self._segment(item, branch) for item, branch in packed]
        hidden = torch.cat(
            [
                item_tokens[0].repeat(len(of_item), 1)
                for item_tokens, of_item in zip(tokens, branches, strict=True)
            ]
        )
        rotary = torch.cat(
            [
                self._rotary(item).repeat(len(of_item), 1)
                for item, of_item in zip(inputs, branches, strict=True)
            ]
        )
        hidden = self.transformer(
            hidden,
            torch.stack([self._condition(item, branch) for item, branch in packed]),
            [segment.length for segment in segments],
            rotary,
            PackedSegments(segments, cache, self._text, self._attention),
        )
        self._share_clean(inputs, cache)
        outputs = hidden.split([len(b) * n for b, n in zip(branches, self._lengths(inputs), strict=True)])
        return [out.unflatten(0, (len(b), -1)) for out, b in zip(outputs, branches, strict=True)]

    def head(self, inputs: Sequence[ChunkInput], outputs: Sequence[Tensor]) -> list[Tensor]:
        velocities = []
        for item, output in zip(inputs, outputs, strict=True):
            size = (len(item.timesteps), *self._grid)
            branches = torch.stack([self.transformer.head(hidden, *size) for hidden in output])
            velocities.append(self.guidance.mix(self._time(item), branches))
        return velocities

    def num_tokens(self, num_frames: int) -> int:
        return num_frames * self._tokens_per_frame

    def condition_timestep(self, level: float) -> float:
        return self.timetable.clean_time

    def cache_layout(self) -> CacheLayout:
        config = self.transformer.config
        sizes = (config.num_layers, self.num_branches, config.num_query_groups, config.kv_channels)
        return CacheLayout(*sizes, self.transformer.dtype, self._device)

    def reach(self, local_step: int | None) -> int | None:
        kv_range = self.sampling.kv_range
        if local_step is None:
            return kv_range.given_reach
        return kv_range.reach(local_step, self.timetable.num_steps)

    def block_flops(self, num_tokens: int, num_keys: int, local_step: int | None = None) -> float:
        live = local_step is not None and local_step < self.timetable.num_steps
        caption, null = max(map(len, self._captions.texts)), len(self._captions.null)
        return sum(
            self._flops.blocks(
                num_tokens,
                num_tokens if branch.slot is None else num_keys,
                caption if live and branch.text else null,
            )
            for branch in self._branches_at(None, local_step)
        )

    def edge_flops(self, num_tokens: int, local_step: int | None = None) -> float:
        # A chunk that does not move has no use for a velocity.
        live = local_step is not None and local_step < self.timetable.num_steps
        heads = len(self._branches_at(None, local_step)) if live else 0
        return self._flops.embed(num_tokens) + heads * self._flops.head(num_tokens)

    def _lengths(self, inputs: Sequence[ChunkInput]) -> list[int]:
        return [self.num_tokens(len(item.timesteps)) for item in inputs]

    def _rotary(self, item: ChunkInput) -> Tensor:
        """Angles ``[tokens, n]``, made anew in every call: a table for a long video would not end."""
        return self.transformer.rotary(len(item.timesteps), *self._grid, item.start_frame).flatten(0, 1)

    def _is_clean(self, item: ChunkInput) -> bool:
        return item.local_step >= self.timetable.num_steps

    def _time(self, item: ChunkInput) -> float:
        return self._time_at(item.local_step)

    def _time_at(self, local_step: int | None) -> float:
        live = local_step is not None and local_step < self.timetable.num_steps
        return self.timetable.time(local_step) if live else self.timetable.clean_time

    def _branches(self, item: ChunkInput) -> Sequence[Branch]:
        return self._branches_at(item.chunk, None if self.sampling.is_given(item.chunk) else item.local_step)

    def _branches_at(self, chunk: int | None, local_step: int | None) -> Sequence[Branch]:
        """Branches that a chunk runs in at a local step, None if it is given; a clean one only leaves keys.

        Clean chunks are seen without text by all branches. A finished one runs in each, beside live chunks
        that see it there; a given one only in the last, which shows no text, before there are any.
        """
        time = self._time_at(local_step)
        if local_step is not None and local_step < self.timetable.num_steps:
            return self.guidance.branches(time, self.sampling.is_oldest(chunk, local_step))
        cached = [branch for branch in self.guidance.branches(time, oldest=False) if branch.slot is not None]
        return cached[-1:] if local_step is None else cached

    def _segment(self, item: ChunkInput, branch: Branch) -> Segment:
        shows_text = branch.text and not self._is_clean(item)
        text = self._captions.of_chunk[item.chunk] if shows_text else len(self._captions.texts)
        return Segment(item.chunk, self.num_tokens(len(item.timesteps)), text, branch.slot, item.first_chunk)

    def _all_conditions(self) -> Tensor:
        """Conditions of every step and of clean chunks, without text and with, ``[steps + 1, 2, dim]``.

        Made once a video, so that no step waits for times on their way to the device.
        """
        count, device = self.timetable.num_steps, self._device
        steps = [*range(count), 0]  # clean chunks run when a chunk begins, and are told its step size
        times = [*(self.timetable.time(step) for step in range(count)), self.timetable.clean_time]
        sizes = None
        if self.timetable.distilled:
            sizes = torch.tensor([self.timetable.step_size(step) for step in steps], device=device)
        times = torch.tensor(times, device=device)
        by_text = [self.transformer.condition(times, [flag] * (count + 1), sizes) for flag in (False, True)]
        return torch.stack(by_text, dim=1)

    def _condition(self, item: ChunkInput, branch: Branch) -> Tensor:
        return self._conditions[min(item.local_step, self.timetable.num_steps), int(branch.text)]

    def _forget_texts(self, inputs: Sequence[ChunkInput]) -> None:
        """Drop the keys and values of captions that only finished chunks were shown."""
        oldest = max(item.chunk for item in inputs) + 1 - self.sampling.schedule.max_live
        self._text.forget_before(self._captions.of_chunk[max(0, oldest)])

    def _share_clean(self, inputs: Sequence[ChunkInput], cache: ChunkKVCache) -> None:
        """From now on all branches see the keys and values that the last one has of clean chunks."""
        for item in inputs:
            if self._is_clean(item):
                for slot in range(self.num_branches - 1):
                    cache.copy_branch(item.chunk, source=self.num_branches - 1, target=slot)
