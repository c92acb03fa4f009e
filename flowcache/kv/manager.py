"""The cache of one window: what each chunk sees of the others, and when to compress."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import chain

from ..chunk_model import ChunkModel
from ..config import FlowCacheConfig
from ..schedule import StaircaseSchedule
from ..state import State
from .cache import CacheLayout, ChunkKVCache
from .compressed import CompressedKVCache, CompressionEvent
from .quantized import QuantizationEvent
from .stores import RowStore

logger = logging.getLogger(__name__)


class CacheManager:
    """Makes the cache of a window and keeps it within its budget.

    Args:
        model: whose keys and values are stored.
        schedule: of the window.
        lengths: tokens of each chunk.
        config: of the run.
    """

    def __init__(
        self,
        model: ChunkModel,
        schedule: StaircaseSchedule,
        lengths: Sequence[int],
        config: FlowCacheConfig,
    ) -> None:
        compression, whole = config.compression, config.whole_window
        self._model, self._schedule, self._lengths = model, schedule, lengths
        self._compression, self._clean_range = compression, config.clean_range
        self._storage, self._clean_pass = config.storage, config.clean_pass
        self._budget = self._budget_chunks() * max(lengths)
        rolls = not (whole or config.refresh_given)
        self._reach_back = self._chunks_behind() if rolls and compression is None else None
        self._seen: dict[int, int] = {}
        self.cache = self._new_cache(keeps=not whole)

    def first_chunk(self, chunk: int, step: int) -> int | None:
        """The oldest chunk that one sees at a step; None: all that the cache holds."""
        schedule, given = self._schedule, self._schedule.first_chunk
        local_step = max(0, min(schedule.local_step(chunk, step), schedule.num_steps))
        reach = self._model.reach(None if chunk < given else local_step)
        if reach is not None:
            return max(0, chunk + 1 - reach)
        if chunk < given or (self._clean_range is None and not self._compresses_within):
            return None
        if self._clean_range is None:
            return given if step == 0 else None
        clean = self._clean_before(chunk, step)
        return max(clean.start, clean.stop - self._clean_range)

    def release(self, step: int) -> None:
        """Let go of chunks that nothing will see from this step on."""
        if self._reach_back is None:
            return
        # With a clean pass, the chunk that has just become clean reads once more.
        oldest = self._schedule.first_below(self._schedule.num_steps + self._clean_pass, step)
        oldest -= self._reach_back
        gone = [chunk for chunk in self.cache.chunks if chunk < oldest]
        if gone:
            self.cache.drop(gone)

    def fits(self, chunks: Sequence[int]) -> bool:
        """Whether chunks fit beside what is there."""
        return self.cache.num_taken + self._needed(chunks) <= self.cache.capacity

    def make_room(self, chunks: Sequence[int], step: int) -> None:
        """Compress clean chunks until ``chunks`` fit.

        Raises:
            CacheFullError: they do not fit even so.
        """
        if isinstance(self.cache, CompressedKVCache):
            done = self._schedule.num_steps
            clean = [c for c in self.cache.chunks if self._schedule.local_step(c, step) >= done]
            self.cache.make_room(clean, self._needed(chunks))

    def enter(self, chunks: Sequence[int], step: int) -> None:
        """Give the chunks that are about to run their places, and plan what is compressed while they do."""
        for chunk in chunks:
            self.cache.enter(chunk, self._lengths[chunk])
        # Given chunks run before the others, and are compressed when they do not fit. At the first step they
        # do not count as clean yet, but lie before those that may.
        plans = self._compresses_within and chunks[0] >= self._given and (step > 0 or not self._given)
        freed = self._plan(chunks, step) if plans else {}
        gone = 0
        for chunk in chunks:
            gone += freed.get(chunk, 0)
            self._seen[chunk] = self.cache.num_visible(chunk, self.first_chunk(chunk, step)) - gone

    def settle(self, chunks: Sequence[int]) -> None:
        """These chunks are clean, and their keys and values final; oldest first."""
        for chunk in chunks:
            if chunk in self.cache:
                self.cache.settle(chunk)

    @property
    def seen(self) -> dict[int, int] | None:
        """Tokens that each chunk saw when it last ran; None: all that it could."""
        return self._seen if self._compression or self._clean_range is not None else None

    def pop_events(self) -> list[CompressionEvent]:
        """What was compressed since the last call."""
        return self.cache.pop_events() if isinstance(self.cache, CompressedKVCache) else []

    def pop_seconds(self) -> float:
        """Time spent on compression since the last call; see ``CompressedKVCache``."""
        return self.cache.pop_seconds() if isinstance(self.cache, CompressedKVCache) else 0.0

    def pop_quantizations(self) -> list[QuantizationEvent]:
        """What was quantised since the last call."""
        return self.cache.pop_quantizations()

    def state_dict(self) -> State:
        """That of the cache; between two steps there is no more to remember."""
        return self.cache.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go on as that of another window like this."""
        self.cache.load_state_dict(state)

    def _plan(self, chunks: Sequence[int], step: int) -> dict[int, int]:
        """Choose before which of the chunks too many are clean; tokens that go, by that chunk."""
        freed, due, held = dict[int, int](), dict[int, list[int]](), self.cache.num_kept
        for chunk in chunks:
            done = self._clean_before(chunk, step)
            clean = [c for c in self.cache.chunks if c in done and c not in chain(*due.values())]
            rows = held + sum(self._lengths[c] for c in clean)
            if rows > self._budget:
                due[chunk], freed[chunk] = clean, rows - self._budget
                held = self._budget
        self.cache.merge_before(due, self._budget)
        return freed

    @property
    def _given(self) -> int:
        return self._schedule.first_chunk

    @property
    def _compresses_within(self) -> bool:
        return self._compression is not None and self._compression.when == "over"

    def _budget_chunks(self) -> int:
        if self._compression is None:
            return 0
        if self._compression.total is None:
            return self._compression.budget
        live = self._schedule.max_live
        if self._compression.total <= live:
            raise ValueError(
                f"total must be at least {live + 1} chunks, as {live} are live at once, "
                f"got {self._compression.total}."
            )
        return self._compression.total - live

    def _needed(self, chunks: Sequence[int]) -> int:
        return sum(self._lengths[c] for c in chunks if c not in self.cache)

    def _clean_before(self, chunk: int, step: int) -> range:
        """Chunks that count as clean for a later one: given ones from the second step on, and those that
        have taken their last step, in this very step included."""
        done = self._schedule.first_below(self._schedule.num_steps - 1, step)
        return range(0 if step > 0 else self._given, min(chunk, done))

    def _chunks_behind(self) -> int | None:
        """The most chunks before the oldest live one that any chunk sees; None: all."""
        reaches = [self._model.reach(local_step) for local_step in range(self._schedule.num_steps + 1)]
        behind = [self._clean_range if reach is None else reach - 1 for reach in reaches]
        return None if None in behind else max(behind)

    def _new_cache(self, keeps: bool) -> ChunkKVCache:
        layout, total, chunk = self._model.cache_layout(), sum(self._lengths), max(self._lengths)
        live = min(total, self._live_chunks() * chunk)
        if self._compression is None:
            clean = min(sum(self._lengths[: -self._live_chunks()]), self._rolling_clean())
            store = self._new_store(layout, clean)
            held = live if store else min(total, self._rolling_capacity())
            return ChunkKVCache(layout, held, keeps, store)
        clean = min(self._budget, total - live)
        # Whole chunks move to the store; within a step, all but the one that reads may do so.
        last = 1 if self._compresses_within else self._live_chunks()
        store = self._new_store(layout, min(self._budget, sum(self._lengths[:-last])))
        selector = self._compression.make_selector(self._model.num_tokens(1), chunk)
        return CompressedKVCache(layout, live if store else live + clean, selector, store)

    def _live_chunks(self) -> int:
        """Chunks that may be there at once and are not kept as clean ones are.

        A chunk that runs once more when it is clean is one of them, unless it then runs alone, as it does
        where room is scarce anyway.
        """
        runs_again = self._clean_pass and self._compression is None
        return self._schedule.max_live + (1 if self._compresses_within or runs_again else 0)

    def _new_store(self, layout: CacheLayout, rows: int) -> RowStore | None:
        if self._storage is None:
            return None
        if rows == 0:
            logger.warning(
                "kv_bits and kv_offload have no effect in this window: no chunk is read once it is clean."
            )
            return None
        return self._storage.make_store(layout, rows, math.gcd(*self._lengths))

    def _rolling_capacity(self) -> float:
        """Tokens that are held at most when chunks are let go of."""
        if self._reach_back is None:
            return math.inf
        live = self._schedule.max_live + self._clean_pass
        return max(self._reach_back + live, self._given + len(self._schedule.live(0))) * max(self._lengths)

    def _rolling_clean(self) -> float:
        """Tokens of clean chunks among those."""
        if self._reach_back is None:
            return math.inf
        return max(self._reach_back, self._given) * max(self._lengths)
