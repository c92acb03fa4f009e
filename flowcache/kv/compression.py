"""A cache that compresses clean chunks, and so never needs more than its capacity."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from ..state import State, on_device
from .cache import CacheFullError, ChunkKVCache
from .layout import CacheLayout
from .scorers import ScoreInput
from .selection import TokenSelector
from .storage import RowStore

#: Numbers of keys up to which layers are compressed together: a bound of the memory that it takes.
NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class CompressionEvent:
    """One compression, the same for all layers.

    Attributes:
        chunks: that lost their ranges.
        rows_before, rows_after: of compressed and clean tokens, per layer, branch and head.
        kept_of: share of the rows kept that comes from each chunk, over layers, branches and heads.
    """

    chunks: list[int]
    rows_before: int
    rows_after: int
    kept_of: dict[int, float]


class CompressedKVCache(ChunkKVCache):
    """Keeps the best tokens of clean chunks, each head its own (FlowCache, section 3.3).

    Live chunks are never compressed. Compression happens between two steps, when the next chunk does not
    fit, by the newest queries that were seen.

    The store, as far as it has room, holds clean chunks and what is kept of compressed ones.
    """

    #: Clean chunks that a chunk sees, where the configuration does not say; None: all, from the first step.
    clean_range: int | None = None

    def __init__(
        self, layout: CacheLayout, capacity: int, selector: TokenSelector, store: RowStore | None = None
    ) -> None:
        super().__init__(layout, capacity, store=store)
        self._selector = selector
        self._queries: list[Tensor | None] = [None] * layout.num_layers
        self._asking: Collection[int] = ()  # chunks whose queries are recorded
        self._starts: dict[int, int] = {}
        none = torch.empty(layout.num_branches, layout.num_heads, 0, dtype=torch.int32, device=layout.device)
        self._positions = [none for _ in range(layout.num_layers)]
        self._events: list[CompressionEvent] = []
        self._seconds = 0.0

    @classmethod
    def sizes(cls, lengths: Sequence[int], max_live: int, budget: int) -> tuple[int, int, int]:
        """Most rows of live chunks, of clean ones beside them, and of clean ones in a store."""
        live = min(sum(lengths), max_live * max(lengths))
        return live, min(budget, sum(lengths) - live), min(budget, sum(lengths[:-max_live]))

    def pop_events(self) -> list[CompressionEvent]:
        events, self._events = self._events, []
        return events

    def pop_seconds(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def enter(self, chunk: int, num_tokens: int) -> None:
        self._asking = (chunk,)
        if chunk not in self:
            super().enter(chunk, num_tokens)
            self._starts[chunk] = max(self._starts.values(), default=-num_tokens) + num_tokens

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        if chunk not in self._asking:
            return
        started = time.perf_counter()
        queries = self._selector.newest(queries)
        shape = (self.layout.num_branches, *queries.shape[-3:])
        held = self._queries[layer]
        if held is None or held.shape != shape:
            # Until a branch has asked on its own, another's queries stand for its. Clone, so that a few rows
            # do not keep all queries alive.
            self._queries[layer] = queries.expand(shape).clone()
        else:
            held[slice(None) if branch is None else branch] = queries
        self._seconds += time.perf_counter() - started

    def make_room(self, clean: Sequence[int], num_tokens: int) -> None:
        """Compress clean chunks, oldest first, until ``num_tokens`` more fit; else CacheFullError."""
        missing = self.num_taken + num_tokens - self.capacity
        if missing <= 0:
            return
        rows = self.count_rows(self._oldest_clean(clean))
        budget = rows - missing
        if self._store:
            budget = self._store.capacity if rows - self._stored[0] >= missing else 0
        if budget < 1:
            raise CacheFullError(
                f"{num_tokens} tokens do not fit: {self.num_taken} of {self.capacity} are taken, the rest of "
                "them by live chunks. Give the cache a budget of more chunks."
            )
        # Small layers together; one at a time with a store.
        layers, numbers = self.layout.num_layers, self._rows[0, 0].numel()
        count = 1 if self._store else max(1, NUMBERS_AT_ONCE // numbers)
        for first in range(0, layers, count):
            self._compress(slice(first, min(first + count, layers)), clean, budget)

    def state_dict(self) -> State:
        own = {"queries": self._queries, "starts": self._starts, "positions": self._positions}
        return super().state_dict() | own

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        own = on_device([state[name] for name in ("queries", "starts", "positions")], self.layout.device)
        self._queries, self._starts, self._positions = own

    def _oldest_clean(self, clean: Collection[int], layer: int = 0) -> list[int]:
        """The clean chunks before the first one that is not, in order of entry: their rows are adjacent."""
        own = (chunk for chunk in self._ranges[layer] if chunk in self._starts)
        return list(takewhile(clean.__contains__, own))

    def _compress(self, layers: slice, clean: Collection[int], budget: int) -> None:
        started = time.perf_counter()
        clean = self._oldest_clean(clean, layers.start)
        end = self.count_rows(clean, layers.start)
        positions, start = torch.stack(self._positions[layers]), self._starts[clean[0]] if clean else 0
        new = torch.arange(start, start + end - positions.shape[-1], device=positions.device)
        positions = torch.cat([positions, new.to(positions).expand(*positions.shape[:-1], -1)], dim=-1)
        queries = torch.stack(self._queries[layers])
        # Scorers do not distinguish layers from branches.
        seen = (part.flatten(0, 1) for part in (*self._oldest(layers, end), queries))
        ages, size = (positions.amax() - positions).flatten(0, 1), self._selector.tokens_per_chunk
        kept = self._selector.choose(ScoreInput(*seen, ages, size), budget).unflatten(0, positions.shape[:2])
        self.merge(layers, clean, kept)
        self._positions[layers] = positions.gather(-1, kept)
        if layers.stop == self.layout.num_layers:
            self._events.append(CompressionEvent(clean, end, kept.shape[-1], self._origins()))
        self._seconds += time.perf_counter() - started

    def _origins(self) -> dict[int, float]:
        positions, chunks = torch.stack(self._positions), list(self._starts)
        bounds = torch.tensor(list(self._starts.values()), dtype=torch.int32, device=positions.device)
        counts = torch.bincount(torch.bucketize(positions.flatten(), bounds, right=True) - 1).tolist()
        return {chunks[i]: count / positions.numel() for i, count in enumerate(counts) if count}


class WithinStepCache(CompressedKVCache):
    """Compresses as the original does on SkyReels-V2: in each layer, right before a chunk reads, as soon as
    more than the budget is clean.

    That chunk's own queries decide. Chunks that take their last step in this very step count as clean for
    later ones, so one chunk more than are live must fit; given chunks count from the second step on.
    """

    clean_range = 10**9

    _due: Mapping[int, list[int]] = {}
    _budget = 0

    @classmethod
    def sizes(cls, lengths: Sequence[int], max_live: int, budget: int) -> tuple[int, int, int]:
        live, clean, _ = super().sizes(lengths, max_live + 1, budget)
        return live, clean, min(budget, sum(lengths[:-1]))

    def prepare(self, clean: Mapping[int, range], budget: int) -> dict[int, int]:
        due, dropped, held, compressed = {}, {}, self.num_kept, set()
        for chunk, before in clean.items():
            new = [c for c in self._oldest_clean(before) if c not in compressed]
            rows = held + sum(len(self._ranges[0][c]) for c in new)
            if rows > budget:
                due[chunk], dropped[chunk], held = new, rows - budget, budget
                compressed.update(new)
        self._due, self._budget = due, budget
        if any(clean.values()):  # else they are given chunks, which are compressed when they do not fit
            self._asking = due.keys()
        return dropped

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        super().observe(layer, chunk, queries, branch)
        if chunk in self._due:
            self._compress(slice(layer, layer + 1), self._due[chunk], self._budget)
