"""Manager of a window's cache: what each chunk sees, and when chunks are compressed, stored and dropped."""

import logging
import math
from collections.abc import Sequence

from ..chunk_model import ChunkModel
from ..config import FlowCacheConfig, KVCompressionConfig
from ..schedule import StaircaseSchedule
from .cache import ChunkKVCache
from .compression import CompressedKVCache, FullKVCache, WithinStepKVCache
from .selection import TokenSelector
from .storage import PlainRows, RowStore

logger = logging.getLogger(__name__)

CACHES = {"clean": CompressedKVCache, "full": FullKVCache, "step": WithinStepKVCache}


class CacheManager:
    """Makes the cache of a window, whose chunks have ``lengths`` tokens, and keeps it within its budget.

    Where no chunk reads what an earlier call left of a live one, live chunks share one layer's memory.
    """

    def __init__(
        self,
        model: ChunkModel,
        schedule: StaircaseSchedule,
        lengths: Sequence[int],
        config: FlowCacheConfig,
    ) -> None:
        self._model, self._schedule, self._lengths, self._config = model, schedule, lengths, config
        self._layout = model.cache_layout()
        compression, self._clean_range = config.compression, config.clean_range
        if compression and self._clean_range is None:
            self._clean_range = CACHES[compression.trigger].clean_range
        self._budget = self._budget_rows(max(lengths))
        self._behind = None if config.whole_window or config.refresh_given else self._chunks_behind()
        self._reach_back = None if compression else self._behind
        self._reads_stale = config.refresh_given or not config.policy.reads_fresh(config.clean_pass)
        as_original = compression is not None and compression.trigger != "clean"
        self._keeps_live = not config.whole_window and (self._reads_stale or as_original)
        # Newest clean chunks, and first ones, that a change of the prompt computes once more.
        self._num_recomputed, self._num_pinned = self._behind, 0
        if compression:
            budget = self._budget / max(lengths)
            self._num_recomputed = math.ceil(budget)
            self._num_pinned = max(schedule.first_chunk, math.ceil(compression.scorer.sink_chunks(budget)))
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

    def fits(self, chunks: Sequence[int]) -> bool:
        """Whether chunks can run together without more compression."""
        compression, needed = self._config.compression, self._needed(chunks)
        if compression and compression.trigger == "clean":  # wherever live rows are kept
            return needed <= self._count_rows(compression)[0]
        return self.cache.num_taken + needed <= self.cache.capacity

    def make_room(self, chunks: Sequence[int], step: int) -> None:
        """Compress clean chunks until ``chunks`` fit, see ``FullKVCache``."""
        done = self._schedule.num_steps
        clean = [c for c in self.cache.chunks if self._schedule.local_step(c, step) >= done]
        self.cache.make_room(clean, self._needed(chunks))

    def recomputed(self, step: int) -> list[int]:
        """Clean chunks that run once more at a step at which the prompt changes: those of which rows can be seen.

        Of a compressed cache, these are the newest that fill the budget, given ones, and those of a sink.
        """
        done = self._schedule.first_below(self._schedule.num_steps + self._config.clean_pass, step)
        if self._num_recomputed is None:
            return list(range(done))
        first = max(0, done - self._num_recomputed)
        return [*range(min(first, self._num_pinned)), *range(first, done)]

    def enter(self, chunks: Sequence[int], step: int, next_step: int) -> None:
        """Give the chunks that are about to run their ranges."""
        for chunk in chunks:
            self.cache.enter(chunk, self._lengths[chunk])
        dropped = self.cache.prepare({c: self._clean_before(c, step) for c in chunks}, self._budget)
        total = 0
        for chunk in chunks:
            total += dropped.get(chunk, 0)
            self._seen[chunk] = self.cache.num_visible(chunk, self.first_chunk(chunk, step)) - total
        if not self._keeps_live:
            self.cache.update_clean(self._clean(next_step), self._evicted(next_step), during_call=True)

    def leave(self, next_step: int) -> None:
        """Store and compress chunks that are clean by the next step, and drop those that it does not read."""
        self.cache.end_call()
        if self._keeps_live:
            self.cache.update_clean(self._clean(next_step), self._evicted(next_step))

    @property
    def plain_nbytes(self) -> int:
        """Bytes that the cache would take without compression, fewer bits and host memory."""
        if not (self._config.compression or self._config.storage):
            return self.cache.nbytes
        live, clean, held = self._count_rows(None)
        if self._reads_stale:
            return self._layout.nbytes(held)
        total = sum(self._lengths)
        return self._layout.nbytes(clean) + self._layout.nbytes(min(live + clean, total), layers=1)

    @property
    def seen(self) -> dict[int, int] | None:
        """Tokens that each chunk saw when it last ran; None: all that it could."""
        return None if self._config.compression is None and self._clean_range is None else self._seen

    def _clean(self, step: int) -> list[int]:
        """Chunks whose keys and values are final at the beginning of a step, if any step comes."""
        if step == len(self._schedule) or self._config.whole_window or self._config.refresh_given:
            return []
        done = self._schedule.num_steps + self._config.clean_pass
        first = self._schedule.first_chunk
        return [c for c in self.cache.chunks if c < first or self._schedule.local_step(c, step) >= done]

    def _evicted(self, step: int) -> list[int]:
        """Chunks that no step reads from this one on."""
        if self._reach_back is None or step == len(self._schedule):
            return []
        # With a clean pass, the chunk that has just become clean reads once more.
        oldest = self._schedule.first_below(self._schedule.num_steps + self._config.clean_pass, step)
        return [chunk for chunk in self.cache.chunks if chunk < oldest - self._reach_back]

    def _needed(self, chunks: Sequence[int]) -> int:
        return sum(self._lengths[c] for c in chunks if c not in self.cache)

    def _clean_before(self, chunk: int, step: int) -> range:
        """Chunks that count as clean for a later one: given ones from the second step on, and those that
        take their last step by this step."""
        done = self._schedule.first_below(self._schedule.num_steps - 1, step)
        return range(0 if step > 0 else self._schedule.first_chunk, min(chunk, done))

    def _budget_rows(self, chunk: int) -> int:
        """Rows of clean chunks that compression keeps, by its budget or by what live chunks leave of the whole."""
        compression, live = self._config.compression, self._schedule.max_live
        if compression is None:
            return 0
        for name, size in (("window", self._model.num_tokens(1)), ("total", chunk)):
            if (asked := getattr(compression, name)) is not None:
                if (left := asked * size - live * chunk) <= 0:
                    least = live * chunk // size + 1
                    raise ValueError(f"{name}: expected at least {least}, as {live} chunks are live, got {asked}.")
                return left
        return compression.budget * chunk

    def _chunks_behind(self) -> int | None:
        """The most chunks before the oldest live one that any chunk sees; None: all."""
        schedule, behind = self._schedule, []
        last = schedule.num_steps - 1 + self._config.clean_pass
        for local_step in range(schedule.num_steps + 1):
            reach = self._model.reach(local_step)
            # Older chunks that are not clean yet are in between; the first ones of the window have given ones there.
            between = 0 if schedule.first_chunk or not schedule.stride else (last - local_step) // schedule.stride
            behind.append(self._clean_range if reach is None else max(0, reach - 1 - between))
        return None if None in behind else max(behind)

    def _new_cache(self) -> ChunkKVCache:
        layout, compression, total = self._layout, self._config.compression, sum(self._lengths)
        if self._config.whole_window:
            return ChunkKVCache(layout, total, keeps_live=False)
        live, clean, held = self._count_rows(compression)
        store = self._new_store(clean)
        sizes = {
            "capacity": live if store else held,
            "keeps_live": self._keeps_live,
            "store": store,
            "max_rows": total,
        }
        if compression is None:
            return ChunkKVCache(layout, **sizes)
        # Live ones, and the last two that became clean, of which one is live where none runs once more.
        asked = self._schedule.max_live + 1 + self._config.clean_pass
        sizes_of = (self._model.num_tokens(1), max(self._lengths), asked)
        selector = TokenSelector(compression, *sizes_of, getattr(self._model, "retime", None))
        return CACHES[compression.trigger](layout, selector=selector, budget=self._budget, **sizes)

    def _count_rows(self, compression: KVCompressionConfig | None) -> tuple[int, int, int]:
        """Most rows of a layer: outside a store, in it, and without one; chunks that are live, given, clean or read
        bound them."""
        schedule, lengths, clean_pass = self._schedule, self._lengths, self._config.clean_pass
        chunk, given, total = max(lengths), schedule.first_chunk, sum(lengths)
        # Chunks that run beside the live ones, as they have just become clean.
        beside = {"full": 0, "step": 1}.get(compression.trigger if compression else None, int(clean_pass))
        live = min(total, (schedule.max_live + beside) * chunk)
        clean = sum(lengths[: schedule.first_below(schedule.num_steps + clean_pass, len(schedule) - 1)])
        if compression:
            return live, min(clean, self._budget), live + min(self._budget, total - live)
        held, behind = total, self._behind
        if behind is not None:
            clean = min(clean, max(behind, given) * chunk)
            held = min(held, max(behind + schedule.max_live + beside, given + len(schedule.live(0))) * chunk)
        # Given chunks run in one call, if all fit.
        return live if self._keeps_live else max(live, sum(lengths[:given])), clean, held

    def _new_store(self, rows: int) -> RowStore | None:
        layout, storage = self._layout, self._config.storage
        if rows == 0 and (storage or self._config.compression):
            logger.warning("compress, kv_bits, kv_offload: ignored in this window: no clean chunk is read.")
        elif storage:
            return storage.make_store(layout, rows, math.gcd(*self._lengths))
        return None if self._keeps_live or rows == 0 else RowStore(layout, rows, PlainRows())
