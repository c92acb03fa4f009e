"""A cache that compresses what finished chunks left, and so never needs more than its capacity."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from ..state import State, on_device
from .cache import KEPT, CacheFullError, CacheLayout, ChunkKVCache
from .scorers import ScoreInput
from .selection import TokenSelector
from .storage import RowStore

#: Numbers of keys up to which layers are compressed together, to bound the memory that it takes.
NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class CompressionEvent:
    """One compression, the same for all layers.

    Attributes:
        chunks: that lost their ranges.
        rows_before, rows_after: of compressed and clean tokens, per layer, branch and head.
        kept_of: share of those rows that stems from each chunk, over layers, branches and heads.
    """

    chunks: list[int]
    rows_before: int
    rows_after: int
    kept_of: dict[int, float]


class CompressedKVCache(ChunkKVCache):
    """Keeps the best tokens of clean chunks, each head its own (FlowCache, section 3.3).

    Live chunks are never compressed. It happens either between two steps, when the next chunk does not fit,
    by the newest queries that were seen (``make_room``); or within a step, right before a given chunk reads,
    by that chunk's own queries (``merge_before``).

    Args:
        layout: what is stored per token.
        capacity: most tokens that the cache may hold per layer and branch, beside those in the store.
        selector: chooses the tokens to keep.
        store: of settled chunks and of what is kept of compressed ones, as many as it has room for.
    """

    def __init__(
        self, layout: CacheLayout, capacity: int, selector: TokenSelector, store: RowStore | None = None
    ) -> None:
        super().__init__(layout, capacity, store=store)
        self._selector = selector
        self._queries: dict[int, Tensor] = {}
        self._asking: Collection[int] = ()
        self._due: Mapping[int, Sequence[int]] = {}
        self._due_budget = 0
        self._starts: dict[int, int] = {}
        self._positions = [self._no_positions() for _ in range(layout.num_layers)]
        self._events: list[CompressionEvent] = []
        self._seconds = 0.0

    def pop_events(self) -> list[CompressionEvent]:
        """What was compressed since the last call."""
        events, self._events = self._events, []
        return events

    def pop_seconds(self) -> float:
        """Wall time of compression since the last call; on CUDA, that of giving it to the device."""
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
        self._keep_queries(layer, self._selector.newest(queries), branch)
        if chunk in self._due:
            self._merge_layers(range(layer, layer + 1), self._due[chunk], self._due_budget)
        self._seconds += time.perf_counter() - started

    def make_room(self, clean: Sequence[int], num_tokens: int) -> None:
        """Compress clean chunks so far that ``num_tokens`` more fit; does nothing if they fit already.

        Args:
            clean: finished or given chunks, oldest first.

        Raises:
            CacheFullError: they do not fit even so.
        """
        missing = self.num_taken + num_tokens - self.capacity
        if missing <= 0:
            return
        budget = self._budget(self.rows_of(self._oldest(clean)), missing)
        if budget < 1:
            raise CacheFullError(
                f"{num_tokens} tokens do not fit: {self.num_taken} of {self.capacity} are taken, no more "
                "of them by clean chunks. Give the cache a budget of more chunks."
            )
        started = time.perf_counter()
        for layers in self._layers_at_once():
            self._merge_layers(layers, clean, budget)
        self._seconds += time.perf_counter() - started

    def merge_before(self, due: Mapping[int, Sequence[int]], budget: int) -> None:
        """Compress in the evaluation that begins, in each layer as soon as a chunk reads.

        Args:
            due: clean chunks to compress, by the chunk by whose queries it is done; no others are kept.
            budget: tokens that are left of them.
        """
        self._asking, self._due, self._due_budget = due.keys(), due, budget

    def state_dict(self) -> State:
        """Beside the tokens: the newest queries, and where in the video what is kept comes from."""
        own = {"queries": self._queries, "starts": self._starts, "positions": self._positions}
        return super().state_dict() | own

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        own = on_device([state[name] for name in ("queries", "starts", "positions")], self.layout.device)
        self._queries, self._starts, self._positions = own

    def _budget(self, rows: int, missing: int) -> int:
        """How many of the oldest rows to keep, so that the missing ones become free; below 1: they cannot."""
        if self._store is None:
            return rows - missing
        return self._store.capacity if rows - self._settled[0] >= missing else 0

    def _oldest(self, clean: Sequence[int], layer: int = 0) -> list[int]:
        """The clean chunks before the first one that is not, in order of entry: they lie together."""
        own = (chunk for chunk in self._ranges[layer] if chunk != KEPT)
        return list(takewhile(set(clean).__contains__, own))

    def _keep_queries(self, layer: int, queries: Tensor, branch: int | None) -> None:
        """Copy the newest queries, lest the few rows hold on to the memory of all."""
        shape = (self.layout.num_branches, *queries.shape[-3:])
        held = self._queries.get(layer)
        if held is None or held.shape != shape:
            # Until a branch has asked on its own, another's queries stand for its.
            self._queries[layer] = queries.expand(shape).clone()
        else:
            held[slice(None) if branch is None else branch] = queries

    def _layers_at_once(self) -> Iterator[range]:
        """All layers, as many at once as are small enough together; the store hands out one."""
        layout = self.layout
        numbers = self.capacity * layout.num_branches * layout.num_heads * layout.head_dim
        count = 1 if self._store else max(1, NUMBERS_AT_ONCE // numbers)
        for first in range(0, layout.num_layers, count):
            yield range(first, min(first + count, layout.num_layers))

    def _merge_layers(self, layers: range, clean: Sequence[int], budget: int) -> None:
        """Compress some layers, which have the same ranges."""
        clean = self._oldest(clean, layers[0])
        end = self.rows_of(clean, layers[0])
        positions = self._positions_with(layers, clean, end)
        queries = torch.stack([self._queries[layer] for layer in layers])
        # To scorers, layers and branches are the same.
        seen = (part.flatten(0, 1) for part in (*self._oldest_rows(layers, end), queries))
        ages, size = (positions.amax() - positions).flatten(0, 1), self._selector.tokens_per_chunk
        kept = self._selector.choose(ScoreInput(*seen, ages, size), budget).unflatten(0, positions.shape[:2])
        self.merge(layers, clean, kept)
        for layer, left in zip(layers, positions.gather(-1, kept), strict=True):
            self._positions[layer] = left
        if layers[-1] == self.layout.num_layers - 1:
            self._events.append(CompressionEvent(clean, end, kept.shape[-1], self._origins()))

    def _positions_with(self, layers: range, clean: Sequence[int], end: int) -> Tensor:
        """Places in the video of what is kept and of the chunks behind it, ``[layers, branches, heads,
        end]``."""
        kept = torch.stack([self._positions[layer] for layer in layers])
        start = self._starts[clean[0]] if clean else 0
        stop = start + end - kept.shape[-1]
        new = torch.arange(start, stop, dtype=kept.dtype, device=kept.device)
        return torch.cat([kept, new.expand(*kept.shape[:-1], -1)], dim=-1)

    def _no_positions(self) -> Tensor:
        shape = (self.layout.num_branches, self.layout.num_heads, 0)
        return torch.empty(shape, dtype=torch.int32, device=self.layout.device)

    def _origins(self) -> dict[int, float]:
        positions = torch.stack(self._positions)
        bounds = torch.tensor(list(self._starts.values()), dtype=torch.int32, device=positions.device)
        counts = torch.bincount(torch.bucketize(positions.flatten(), bounds, right=True) - 1).tolist()
        total = max(1, positions.numel())
        chunks = list(self._starts)
        return {chunks[i]: count / total for i, count in enumerate(counts) if count}
