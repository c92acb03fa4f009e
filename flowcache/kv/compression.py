"""Caches that compress clean chunks, and so never need more than their capacity."""

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

    Live chunks are never compressed. As soon as more than ``budget`` rows are clean, each layer keeps that many, by
    the queries of all live chunks and the last two that became clean; or by the newest queries of the newest chunk
    that has run before, as those of pure noise ask for other tokens.
    """

    #: Clean chunks that a chunk sees, where the configuration does not say; None: all, from the first step.
    clean_range: int | None = None

    def __init__(
        self,
        layout: CacheLayout,
        capacity: int,
        selector: TokenSelector,
        budget: int,
        keeps_live: bool = True,
        store: RowStore | None = None,
        max_rows: int | None = None,
    ) -> None:
        super().__init__(layout, capacity, keeps_live, store, max_rows)
        self._selector, self._budget = selector, budget
        self._query_chunks: Collection[int] = ()  # chunks whose queries are recorded, where not those of all are
        self._entered: list[int] = []  # chunks that run for the first time
        self.clear()
        self._events: list[CompressionEvent] = []
        self._seconds = 0.0

    def clear(self) -> None:
        super().clear()
        layers, sizes = self.layout.num_layers, (self.layout.num_branches, self.layout.num_heads)
        # Per layer and chunk; or of one chunk after another, under 0.
        self._queries: list[dict[int, Tensor]] = [{} for _ in range(layers)]
        self._starts: dict[int, int] = {}
        self._end = 0  # tokens of all chunks so far
        none = torch.empty(*sizes, 0, dtype=torch.int32, device=self.layout.device)
        self._positions = [none for _ in range(layers)]

    def pop_events(self) -> list[CompressionEvent]:
        events, self._events = self._events, []
        return events

    def pop_seconds(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def enter(self, chunk: int, num_tokens: int) -> None:
        if chunk not in self:
            super().enter(chunk, num_tokens)
            self._starts[chunk] = self._end
            self._end += num_tokens
            self._entered.append(chunk)
        ran = [c for c in self.chunks if c not in self._entered]
        self._query_chunks = (ran or self.chunks)[-1:]

    def end_call(self) -> None:
        clean = self._clean
        super().end_call()
        self._entered.clear()
        if self._selector.asks_live:
            for held in self._queries:
                for chunk in [c for c in held if c in clean or c not in self][:-1]:
                    del held[chunk]

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        asks_live = self._selector.asks_live
        if not asks_live and chunk not in self._query_chunks:
            return
        started = time.perf_counter()
        queries = self._selector.newest(queries)
        held, place = self._queries[layer], chunk if asks_live else 0
        shape = (self.layout.num_branches, *queries.shape[-3:])
        if place not in held or held[place].shape != shape:
            # Use another branch's queries until this one has its own. Clone, so that a few rows do not keep all
            # queries alive.
            held[place] = queries.expand(shape).clone()
        else:
            held[place][slice(None) if branch is None else branch] = queries
        self._seconds += time.perf_counter() - started

    def state_dict(self) -> State:
        own = {"queries": self._queries, "starts": self._starts, "end": self._end, "positions": self._positions}
        return super().state_dict() | own

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        own = on_device([state[name] for name in ("queries", "starts", "end", "positions")], self.layout.device)
        self._queries, self._starts, self._end, self._positions = own

    def _has_work(self, layer: int) -> bool:
        return self._exceeds_budget(layer) or super()._has_work(layer)

    def _update_layer(self, layer: int) -> None:
        if self._exceeds_budget(layer):
            self._compress(layer, self._oldest_clean(self._clean, layer), self._budget)
        else:
            super()._update_layer(layer)

    def _exceeds_budget(self, layer: int) -> bool:
        return self.count_rows(self._oldest_clean(self._clean, layer), layer) > self._budget

    def _oldest_clean(self, clean: Collection[int], layer: int = 0) -> list[int]:
        """The clean chunks before the first one that is not, in order of entry: their rows are adjacent."""
        own = (chunk for chunk in self._ranges[layer] if chunk in self._starts)
        return list(takewhile(clean.__contains__, own))

    def _compress(self, layer: int, clean: Sequence[int], budget: int) -> None:
        """Keep ``budget`` rows of the clean chunks of the open layer."""
        started, end = time.perf_counter(), self.count_rows(clean, layer)
        positions, start = self._positions[layer], self._starts[clean[0]] if clean else 0
        new = torch.arange(start, start + end - positions.shape[-1], device=positions.device)
        positions = torch.cat([positions, new.to(positions).expand(*positions.shape[:-1], -1)], dim=-1)
        ages, queries = positions.amax() - positions, torch.cat([*self._queries[layer].values()], dim=1)
        rows, selector = self._oldest(layer, end), self._selector
        sizes, frame = (selector.tokens_per_chunk, budget), (selector.tokens_per_frame, selector.retime)
        tokens = ScoreInput(*rows, queries, ages, *sizes, self.layout.processes, self.layout.all_heads, *frame)
        kept = selector.choose(tokens)
        self.merge(layer, clean, *selector.config.compactor.compact(tokens, kept))
        self._positions[layer] = positions.gather(-1, kept)
        if layer == self.layout.num_layers - 1:
            self._events.append(CompressionEvent(list(clean), end, kept.shape[-1], self._origins()))
        self._seconds += time.perf_counter() - started

    def _origins(self) -> dict[int, float]:
        positions, chunks = torch.stack(self._positions), list(self._starts)
        bounds = torch.tensor(list(self._starts.values()), dtype=torch.int32, device=positions.device)
        places = torch.bucketize(positions.flatten(), bounds, right=True) - 1
        counts = self.layout.processes.world.sum(torch.bincount(places, minlength=len(chunks))).tolist()
        return {chunks[i]: count / sum(counts) for i, count in enumerate(counts) if count}


class FullKVCache(CompressedKVCache):
    """Compresses as the original does on MAGI-1: between two steps, when the next chunk does not fit, by the newest
    queries of the chunk that ran last."""

    def enter(self, chunk: int, num_tokens: int) -> None:
        super().enter(chunk, num_tokens)
        self._query_chunks = (chunk,)

    def make_room(self, clean: Sequence[int], num_tokens: int) -> None:
        """Compress clean chunks, oldest first, until ``num_tokens`` more fit; else CacheFullError."""
        missing = self.num_taken + num_tokens - self.capacity
        if missing <= 0:
            return
        chunks = self._oldest_clean(clean)
        rows = self.count_rows(chunks)
        budget = rows - missing
        if self._store:
            budget = self._store.capacity if rows - self._stored[0] >= missing else 0
        if budget < 1:
            raise CacheFullError(
                f"{num_tokens} tokens do not fit: {self.num_taken} of {self.capacity} are taken, the rest of "
                "them by live chunks. Give the cache a budget of more chunks."
            )
        for layer in range(self.layout.num_layers):
            self._open(layer)
            self._compress(layer, chunks, budget)
        self.end_call()

    def _exceeds_budget(self, layer: int) -> bool:
        return False


class WithinStepKVCache(FullKVCache):
    """Compresses as the original does on SkyReels-V2: in each layer, right before a chunk reads, as soon as more than
    the budget is clean.

    That chunk's own queries decide. Chunks that take their last step in this very step count as clean for later ones,
    so one chunk more than are live must fit; given chunks count from the second step on.
    """

    clean_range = 10**9
    by_branch = False  # the queries of all branches decide before the first one reads

    _compress_before: Mapping[int, list[int]] = {}

    def prepare(self, clean: Mapping[int, range], budget: int) -> dict[int, int]:
        due, dropped, held, compressed = {}, {}, self.num_kept, set()
        for chunk, before in clean.items():
            new = [c for c in self._oldest_clean(before) if c not in compressed]
            rows = held + sum(len(self._ranges[0][c]) for c in new)
            if rows > budget:
                due[chunk], dropped[chunk], held = new, rows - budget, budget
                compressed.update(new)
        self._compress_before, self._budget = due, budget
        if any(clean.values()):  # else they are given chunks, which are compressed when they do not fit
            self._query_chunks = due.keys()
        return dropped

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        super().observe(layer, chunk, queries, branch)
        if chunk in self._compress_before:
            self._compress(layer, self._compress_before[chunk], self._budget)
