"""MAGI-1's transformer, driven chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.chunk_model import ChunkInput
from flowcache.kv.cache import CacheLayout, ChunkKVCache

from .attention import PackedSegments, Segment, TextBank
from .captions import Captions
from .flops import TransformerFlops
from .guidance import Branch, Guidance
from .schedule import Timetable
from .transformer import MagiTransformer3DModel


@dataclass(frozen=True)
class KVRange:
    """How many chunks, itself included, a chunk sees.

    Attributes:
        noisy: by the chunk's progress, in equal parts of its steps; empty: all chunks before it.
        clean: of a finished or given chunk; -1: as the last of ``noisy``.
    """

    noisy: Sequence[int] = ()
    clean: int = -1

    def reach(self, local_step: int, num_steps: int) -> int | None:
        """Chunks that one sees at a local step (``num_steps`` once clean); None: all."""
        if local_step >= num_steps:
            return self.clean if self.clean != -1 else (self.noisy[-1] if self.noisy else None)
        return self.noisy[local_step // (num_steps // len(self.noisy))] if self.noisy else None


class MagiChunkModel:
    """Implements ``flowcache.chunk_model.ChunkModel``.

    Args:
        transformer: runs the segments.
        captions: of the video.
        grid: height and width of the latents.
        num_frames: latent frames of the window.
        timetable: times of the steps.
        guidance: branches and their mix.
        kv_range: which chunks one sees.
        num_given: given chunks.
    """

    bidirectional = False
    runs_whole_window = False

    def __init__(
        self,
        transformer: MagiTransformer3DModel,
        captions: Captions,
        grid: tuple[int, int],
        num_frames: int,
        timetable: Timetable,
        guidance: Guidance,
        kv_range: KVRange | None = None,
    ) -> None:
        self.transformer, self.timetable, self.guidance = transformer, timetable, guidance
        self.num_branches = guidance.num_slots
        self._kv_range = kv_range or KVRange()
        self._grid = grid
        self._captions = captions
        self._text = TextBank([transformer.caption_embed(text) for text in (*captions.texts, captions.null)])
        self._rotary = transformer.rotary(num_frames, *grid)
        self._tokens_per_frame = self._rotary.shape[1]
        self._flops = TransformerFlops.of(transformer.config, max(map(len, (*captions.texts, captions.null))))

    def indicators(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        return [tokens[0] for tokens in self.embed(inputs)]

    def embed(self, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        latents = torch.cat([item.latents for item in inputs], dim=1)
        return list(self.transformer.embed(latents).unsqueeze(0).split(self._lengths(inputs), dim=1))

    def blocks(
        self, inputs: Sequence[ChunkInput], tokens: Sequence[Tensor], cache: ChunkKVCache
    ) -> list[Tensor]:
        alone = all(self._is_clean(item) for item in inputs)
        branches = [self._branches(item, alone) for item in inputs]
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
            [self._rotary[item.start_frame : item.stop_frame].flatten(0, 1) for item, _ in packed]
        )
        hidden = self.transformer(
            hidden,
            self._condition([item for item, _ in packed], [branch for _, branch in packed]),
            [segment.length for segment in segments],
            rotary,
            PackedSegments(segments, cache, self._text),
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
        config, weight = self.transformer.config, self.transformer.blocks[0].attention.to_k.weight
        sizes = (config.num_layers, self.num_branches, config.num_query_groups, config.kv_channels)
        return CacheLayout(*sizes, weight.dtype, weight.device)

    def reach(self, local_step: int) -> int | None:
        return self._kv_range.reach(local_step, self.timetable.num_steps)

    def block_flops(self, num_tokens: int, num_keys: int, local_step: int | None = None) -> float:
        steps = self.timetable.num_steps
        progress = steps if local_step is None else local_step
        time = self.timetable.clean_time if progress == steps else self.timetable.time(progress)
        branches = self.guidance.branches(time)
        if progress == steps:
            branches = [branch for branch in branches if branch.slot is not None]
        return sum(
            self._flops.blocks(num_tokens, num_tokens if branch.slot is None else num_keys)
            for branch in branches
        )

    def edge_flops(self, num_tokens: int) -> float:
        return self._flops.embed(num_tokens) + self.num_branches * self._flops.head(num_tokens)

    def _lengths(self, inputs: Sequence[ChunkInput]) -> list[int]:
        return [self.num_tokens(len(item.timesteps)) for item in inputs]

    def _is_clean(self, item: ChunkInput) -> bool:
        return item.local_step >= self.timetable.num_steps

    def _time(self, item: ChunkInput) -> float:
        return self.timetable.clean_time if self._is_clean(item) else self.timetable.time(item.local_step)

    def _branches(self, item: ChunkInput, alone: bool) -> Sequence[Branch]:
        """Branches to run a chunk in; a clean one only leaves its keys and values.

        Clean chunks are seen without text by all branches. ``alone``, with no live chunk beside them, they
        run only in the branch that shows none.
        """
        if not self._is_clean(item):
            return self.guidance.branches(self._time(item))
        cached = [branch for branch in self.guidance.branches(self._time(item)) if branch.slot is not None]
        return cached[-1:] if alone else cached

    def _segment(self, item: ChunkInput, branch: Branch) -> Segment:
        shows_text = branch.text and not self._is_clean(item)
        text = self._captions.of_chunk[item.chunk] if shows_text else len(self._captions.texts)
        return Segment(item.chunk, self.num_tokens(len(item.timesteps)), text, branch.slot, item.first_chunk)

    def _condition(self, items: Sequence[ChunkInput], branches: Sequence[Branch]) -> Tensor:
        times = torch.tensor([self._time(item) for item in items], device=self._rotary.device)
        live = [item.local_step for item in items if not self._is_clean(item)]
        step_size = self.timetable.step_size(live[0] if live else 0)
        return self.transformer.condition(times, [branch.text for branch in branches], step_size)

    def _share_clean(self, inputs: Sequence[ChunkInput], cache: ChunkKVCache) -> None:
        """From now on all branches see the keys and values that the last one has of clean chunks."""
        for item in inputs:
            if self._is_clean(item):
                for slot in range(self.num_branches - 1):
                    cache.copy_branch(item.chunk, source=self.num_branches - 1, target=slot)
