"""Manager of a window's cache: what each chunk sees, and when chunks are compressed, stored and dropped."""

import logging
import math
from collections.abc import Sequence

from ..chunk_model import ChunkModel
from ..config import FlowCacheConfig
from ..schedule import StaircaseSchedule
from .cache import ChunkKVCache
from .compression import CompressedKVCache, WithinStepCache
from .selection import TokenSelector
from .storage import RowStore

logger = logging.getLogger(__name__)


class CacheManager:
    """Makes the cache of a window, whose chunks have ``lengths`` tokens, and keeps it within its budget."""

    def __init__(
        self, model: ChunkModel, schedule: StaircaseSchedule, lengths: Sequence[int], config: FlowCacheConfig
    ) -> None:
        self._model, self._schedule, self._lengths, self._config = model, schedule, lengths, config
        compression, self._clean_range = config.compression, config.clean_range
        if compression:
            self._cache_type = WithinStepCache if compression.within_step else CompressedKVCache
            if self._clean_range is None:
                self._clean_range = self._cache_type.clean_range
        self._budget = self._budget_chunks() * max(lengths)
        rolls = not (compression or config.whole_window or config.refresh_given)
        self._reach_back = self._chunks_behind() if rolls else None
        self._seen: dict[int, int] = {}
        self.cache = self._new_cache()

    def first_chunk(self, chunk: int, step: int) -> int | None:
        """The oldest chunk that one sees at a step; None: all that the cache holds."""
        schedule, given = self._schedule, self._schedule.first_chunk
        local_step = max(0, min(schedule.local_step(chunk, step), schedule.num_steps))
        reach = self._model.reach(None if chunk < given else local_step)
        if reach is not None:
            return max(0, chunk + 1 - reach)
        if chunk < given or self._clean_range is None:
            return None
        clean = self._clean_before(chunk, step)
        return max(clean.start, clean.stop - self._clean_range)

    def release(self, step: int) -> None:
        if self._reach_back is None:
            return
        # With a clean pass, the chunk that has just become clean reads once more.
        oldest = self._schedule.first_below(self._schedule.num_steps + self._config.clean_pass, step)
        dropped = [chunk for chunk in self.cache.chunks if chunk < oldest - self._reach_back]
        if dropped:
            self.cache.drop(dropped)

    def fits(self, chunks: Sequence[int]) -> bool:
        return self.cache.num_taken + self._needed(chunks) <= self.cache.capacity

    def make_room(self, chunks: Sequence[int], step: int) -> None:
        """Compress clean chunks until ``chunks`` fit, see ``CompressedKVCache.make_room``."""
        done = self._schedule.num_steps
        clean = [c for c in self.cache.chunks if self._schedule.local_step(c, step) >= done]
        self.cache.make_room(clean, self._needed(chunks))

    def enter(self, chunks: Sequence[int], step: int) -> None:
        """Give the chunks that are about to run their ranges."""
        for chunk in chunks:
            self.cache.enter(chunk, self._lengths[chunk])
        dropped = self.cache.prepare({c: self._clean_before(c, step) for c in chunks}, self._budget)
        total = 0
        for chunk in chunks:
            total += dropped.get(chunk, 0)
            self._seen[chunk] = self.cache.num_visible(chunk, self.first_chunk(chunk, step)) - total

    def settle(self, chunks: Sequence[int]) -> None:
        """Move clean chunks, oldest first, to the store, if there is one."""
        for chunk in chunks:
            if chunk in self.cache:
                self.cache.settle(chunk)

    @property
    def seen(self) -> dict[int, int] | None:
        """Tokens that each chunk saw when it last ran; None: all that it could."""
        return None if self._config.compression is None and self._clean_range is None else self._seen

    def _needed(self, chunks: Sequence[int]) -> int:
        return sum(self._lengths[c] for c in chunks if c not in self.cache)

    def _clean_before(self, chunk: int, step: int) -> range:
        """Chunks that count as clean for a later one: given ones from the second step on, and those that
        take their last step by this step."""
        done = self._schedule.first_below(self._schedule.num_steps - 1, step)
        return range(0 if step > 0 else self._schedule.first_chunk, min(chunk, done))

    def _budget_chunks(self) -> int:
        compression, live = self._config.compression, self._schedule.max_live
        if compression is None or compression.total is None:
            return compression.budget if compression else 0
        if compression.total <= live:
            raise ValueError(
                f"total: expected at least {live + 1} chunks, as {live} are live at once, got {compression.total}."
            )
        return compression.total - live

    def _chunks_behind(self) -> int | None:
        """The most chunks before the oldest live one that any chunk sees; None: all."""
        reaches = [self._model.reach(local_step) for local_step in range(self._schedule.num_steps + 1)]
        behind = [self._clean_range if reach is None else reach - 1 for reach in reaches]
        return None if None in behind else max(behind)

    def _new_cache(self) -> ChunkKVCache:
        layout, lengths, max_live = self._model.cache_layout(), self._lengths, self._schedule.max_live
        compression, chunk = self._config.compression, max(lengths)
        if compression is not None:
            live, clean, stored = self._cache_type.sizes(lengths, max_live, self._budget)
            store = self._new_store(stored, live)
            selector = TokenSelector(compression, self._model.num_tokens(1), chunk)
            return self._cache_type(layout, live if store else live + clean, selector, store)
        # A chunk runs once more when it is clean, beside the live ones.
        beside, given = max_live + self._config.clean_pass, self._schedule.first_chunk
        stored, held, live = sum(lengths[:-beside]), sum(lengths), min(sum(lengths), beside * chunk)
        if (behind := self._reach_back) is not None:
            stored = min(stored, max(behind, given) * chunk)
            held = min(held, max(behind + beside, given + len(self._schedule.live(0))) * chunk)
        store = self._new_store(stored, live)
        return ChunkKVCache(layout, live if store else held, not self._config.whole_window, store)

    def _new_store(self, rows: int, live_rows: int) -> RowStore | None:
        storage = self._config.storage
        if storage and rows == 0:
            logger.warning("kv_bits, kv_offload: ignored in this window: no clean chunk is read.")
        elif storage:
            unit = math.gcd(*self._lengths)
            return storage.make_store(self._model.cache_layout(), rows, unit, live_rows)
        return None
