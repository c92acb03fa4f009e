"""Keys and values that chunks leave for each other."""

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from ..state import State
from .layout import CacheLayout
from .quantized import QuantizationEvent
from .storage import RowStore, count_bytes

#: Key in the table of ranges for the rows kept of compressed chunks; all chunks see them.
KEPT = -1


class CacheFullError(RuntimeError):
    """A chunk does not fit into the capacity."""


class ChunkKVCache:
    """Keys and values of a window's chunks, preallocated, per layer and guidance branch.

    Chunks take ranges of rows in the order in which they enter, so that what a chunk may see, itself and all before
    it, is one contiguous range, read without a copy. Keys are stored with their rotary positions applied, so a token
    keeps its place in time wherever it is moved.

    There are two kinds of rows: clean ones, first, in the store, per layer; and live ones. Both are written and read
    in the workspace of one layer: opening a layer loads its clean rows, closing it stores the chunks that have become
    clean. Without a store, clean rows stay beside the live ones.

    Args:
        capacity: most rows per layer and branch, without those in the store.
        keeps_live: live rows of every layer outlive a call of the model. False: layers share one layer's rows, for
            policies that compute a chunk only together with the live ones that it sees.
        store: of clean chunks.
        max_rows: of all chunks together, where they are fewer than store and ``capacity`` hold.
    """

    #: Whether a layer may run one branch after another.
    by_branch = True

    def __init__(
        self,
        layout: CacheLayout,
        capacity: int,
        keeps_live: bool = True,
        store: RowStore | None = None,
        max_rows: int | None = None,
    ) -> None:
        self._clean_rows, self._store = store.capacity if store else 0, store
        # Keys and values: live ones of every layer; and those of the open layer, clean ones first.
        self.layout, self.capacity = layout, capacity
        self._live = self._allocate(capacity) if keeps_live else None
        rows = self._clean_rows + capacity
        rows = rows if max_rows is None else min(rows, max_rows)
        self._workspace_rows = rows if store or not keeps_live else 0
        # Within a call of the model only, as other models may need the memory in between.
        self._workspace: Tensor | None = None
        # Tables per layer, as layers change one after another while the model runs.
        self._ranges: list[dict[int, range]] = [{} for _ in range(layout.num_layers)]
        self._stored = [0] * layout.num_layers
        # The open layer, place of its first row in the workspace, and chunks and branches written since.
        self._layer, self._origin, self._written = -1, 0, set[tuple[int, int]]()
        # What closing a layer does: chunks to store, chunks to drop, and the branch that a chunk's others take.
        self._clean: Collection[int] = ()
        self._evicted: Collection[int] = ()
        self._shared: dict[int, int] = {}
        self._errors: dict[tuple[int, ...], list[Tensor]] = {}

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._ranges[0]

    @property
    def chunks(self) -> list[int]:
        """Chunks with a range of their own, in order of entry."""
        return [chunk for chunk in self._ranges[0] if chunk != KEPT]

    @property
    def num_tokens(self) -> int:
        """Tokens that the cache holds, per layer and branch; ``num_kept`` of them of compressed chunks, and
        ``num_taken`` outside the store."""
        return self._used(0)

    @property
    def num_kept(self) -> int:
        return len(self._ranges[0].get(KEPT, ()))

    @property
    def num_taken(self) -> int:
        return self.num_tokens - self._stored[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the model's device; ``host_nbytes`` in host memory, if that is another."""
        live = 0 if self._live is None else count_bytes([self._live])
        workspace = self.layout.nbytes(self._workspace_rows, layers=1)
        return live + workspace + (self._store.nbytes if self._store else 0)

    @property
    def host_nbytes(self) -> int:
        return self._store.host_nbytes if self._store else 0

    def num_visible(self, last_chunk: int, first_chunk: int | None = None) -> int:
        """Tokens that ``read`` returns."""
        return len(self._visible(0, last_chunk, first_chunk))

    def enter(self, chunk: int, num_tokens: int) -> None:
        """Give ``chunk`` a range behind all others, unless it has one; CacheFullError if it does not fit."""
        if chunk in self:
            return
        start, taken = self.num_tokens, self.num_taken
        if taken + num_tokens > self.capacity:
            raise CacheFullError(
                f"chunk {chunk}: needs {num_tokens} tokens, but {taken} of {self.capacity} are taken."
            )
        for ranges in self._ranges:
            ranges[chunk] = range(start, start + num_tokens)

    def clear(self) -> None:
        """Drop all chunks, and what is kept of compressed ones, between two steps."""
        self._ranges = [{} for _ in self._ranges]
        self._stored = [0] * len(self._stored)

    def prepare(self, clean: Mapping[int, range], budget: int) -> dict[int, int]:
        """Tokens that compression will drop right before a chunk reads, by chunk.

        ``clean``: chunks about to run, with the earlier ones that count as clean for each.
        """
        return {}

    def make_room(self, clean: Sequence[int], num_tokens: int) -> None:
        """Compress clean chunks, if the cache does that, until ``num_tokens`` more fit."""

    def update_clean(self, clean: Collection[int], evicted: Collection[int], during_call: bool = False) -> None:
        """Store clean chunks, which are not written again, and drop the oldest ones, ``evicted``.

        ``during_call``: at the end of each layer of the next call, whose keys and values are the last ones. Otherwise
        now.
        """
        self._close()
        self._clean, self._evicted = clean, evicted
        if not during_call:
            for layer in range(self.layout.num_layers) if self._has_work(0) else ():
                self._open(layer)
            self.end_call()

    def share_branch(self, chunk: int, source: int) -> None:
        """After this call, all branches see the keys and values that one has of a chunk."""
        self._shared[chunk] = source

    def end_call(self) -> None:
        """Close the last layer of a call of the model."""
        self._close()
        self._clean, self._evicted, self._shared, self._workspace = (), (), {}, None

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        """Record the queries about to attend, all query heads; otherwise shaped as in ``write``."""

    def write(self, layer: int, chunk: int, keys: Tensor, values: Tensor, branch: int | None = None) -> None:
        """Store a live chunk's keys and values, ``[branches, tokens, heads, head_dim]`` each.

        With ``branch``, those of one branch, ``[tokens, heads, head_dim]``.
        """
        rows = self._ranges[layer][chunk]
        if rows.start < self._stored[layer]:
            raise ValueError("chunk: expected a live one, got one in the store, which is not written again.")
        buffer, branches = self._open(layer), slice(None) if branch is None else branch
        place = slice(self._origin + rows.start, self._origin + rows.stop)
        buffer[0, branches, place] = keys
        buffer[1, branches, place] = values
        numbers = range(self.layout.num_branches) if branch is None else (branch,)
        self._written.update((chunk, number) for number in numbers)

    def read(
        self,
        layer: int,
        last_chunk: int | None = None,
        first_chunk: int | None = None,
        branch: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Keys and values from ``first_chunk`` to ``last_chunk``, both included (None: no bound).

        Views ``[branches, tokens, heads, head_dim]``, with ``branch`` of that one, valid until another layer is read.
        Once chunks are compressed, ``first_chunk`` is ignored: all chunks see what is kept of them.
        """
        buffer, rows = self._open(layer), self._visible(layer, last_chunk, first_chunk)
        if self._live is None:
            self._check_written(layer, rows, range(self.layout.num_branches) if branch is None else (branch,))
        seen = buffer[:, :, self._origin + rows.start : self._origin + rows.stop]
        return tuple(seen if branch is None else seen[:, branch])

    def merge(self, layer: int, chunks: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Replace the rows kept before and those of the oldest chunks of the open layer by fewer; the others move up.

        Args:
            chunks: the oldest chunks, which lose their ranges.
            keys, values: ``[branches, rows, heads, head_dim]``.
        """
        count, end = keys.shape[1], self.count_rows(chunks, layer)
        if self._store:
            self._write_clean(layer, chunks, 0, (keys, values))
            self._stored[layer] = count
        self._remove(layer, chunks, end, end - count)
        self._ranges[layer] = {KEPT: range(count), **self._ranges[layer]}
        clean = self._buffer(layer)[:, :, self._origin : self._origin + count]
        clean[0], clean[1] = keys, values

    def pop_events(self) -> list:
        """Compressions since the last call."""
        return []

    def pop_seconds(self) -> float:
        """Wall time of compression since the last call; on CUDA, that of launching it."""
        return 0.0

    def pop_quantizations(self) -> list[QuantizationEvent]:
        squares, self._errors = self._errors, {}
        events = []
        for chunks, layers in squares.items():
            errors, norms = self.layout.processes.world.sum(torch.stack(layers)).sqrt().split(2, dim=-1)
            # Rounded: fp64 sums depend on the number of processes in their last digits.
            events.append(
                QuantizationEvent(list(chunks), *(errors / norms.clamp_min(1e-12)).mean(dim=0).float().tolist())
            )
        return events

    def state_dict(self) -> State:
        """Ranges, keys and values; valid between two steps of the loop."""
        return {
            "ranges": [[(c, r.start, r.stop) for c, r in ranges.items()] for ranges in self._ranges],
            "stored": list(self._stored),
            "live": None if self._live is None else self._live[:, :, :, : self._most_taken()],
            "store": self._store.state_dict(max(self._stored)) if self._store else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Load the state of a cache of the same layout and capacity; no chunk has entered this one."""
        self._ranges = [{c: range(*bounds) for c, *bounds in ranges} for ranges in state["ranges"]]
        self._stored = list(state["stored"])
        if self._live is not None:
            self._live[:, :, :, : self._most_taken()] = state["live"]
        if self._store:
            self._store.load_state_dict(state["store"], max(self._stored))

    def count_rows(self, chunks: Collection[int], layer: int = 0) -> int:
        """Rows kept of compressed chunks, and those of ``chunks``."""
        ranges = self._ranges[layer]
        return sum(len(ranges[chunk]) for chunk in (KEPT, *chunks) if chunk in ranges)

    def _buffer(self, layer: int) -> Tensor:
        """Keys and values of the open layer, ``[2, branches, rows, heads, head_dim]``."""
        if not self._workspace_rows:
            return self._live[:, layer]
        if self._workspace is None:
            self._workspace = self._allocate(self._workspace_rows, layers=1)[:, 0]
        return self._workspace

    def _allocate(self, rows: int, layers: int | None = None) -> Tensor:
        shape = (2, *self.layout.shape(rows, layers))
        return torch.empty(shape, dtype=self.layout.dtype, device=self.layout.device)

    def _open(self, layer: int) -> Tensor:
        buffer = self._buffer(layer)
        if layer != self._layer:
            self._close()
            stored, self._layer, self._origin = self._stored[layer], layer, 0
            if stored:
                self._store.load(layer, buffer[:, :, :stored])
            if self._store and self._live is not None:
                used = self._used(layer)
                buffer[:, :, stored:used] = self._live[:, layer, :, : used - stored]
        return buffer

    def _close(self) -> None:
        if self._layer < 0:
            return
        layer, buffer = self._layer, self._buffer(self._layer)
        for chunk, source in self._shared.items():
            rows = self._ranges[layer][chunk]
            shared = buffer[:, :, self._origin + rows.start : self._origin + rows.stop]
            shared.copy_(shared[:, source].unsqueeze(1).clone().expand_as(shared))
        if self._has_work(layer):
            self._update_layer(layer)
        if self._store and self._live is not None:
            first, last = self._origin + self._stored[layer], self._origin + self._used(layer)
            self._live[:, layer, :, : last - first] = buffer[:, :, first:last]
        self._layer, self._written = -1, set()

    def _has_work(self, layer: int) -> bool:
        """Whether closing a layer changes its clean rows."""
        return bool(self._evicted or (self._store and self._new_clean(layer)))

    def _new_clean(self, layer: int) -> list[int]:
        """Chunks that have become clean right behind the rows in the store, as far as that has room."""
        ranges, stored = self._ranges[layer], self._stored[layer]
        behind = (chunk for chunk, rows in ranges.items() if rows.start >= stored)
        return list(takewhile(lambda c: c in self._clean and ranges[c].stop <= self._clean_rows, behind))

    def _update_layer(self, layer: int) -> None:
        """Drop and store chunks of the open layer."""
        evicted = [chunk for chunk in self._ranges[layer] if chunk in self._evicted]
        end, stored = self.count_rows(evicted, layer), self._stored[layer]
        if from_store := min(end, stored):
            self._store.move_up(layer, from_store, stored)
            self._stored[layer] -= from_store
        self._remove(layer, evicted, end, end)
        for chunk in self._new_clean(layer) if self._store else ():
            rows = self._ranges[layer][chunk]
            place = slice(self._origin + rows.start, self._origin + rows.stop)
            self._write_clean(layer, [chunk], rows.start, self._buffer(layer)[:, :, place])
            self._stored[layer] = rows.stop

    def _oldest(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows of the open layer up to ``end``, ``[branches, rows, heads, head_dim]``."""
        return tuple(self._buffer(layer)[:, :, self._origin : self._origin + end])

    def _remove(self, layer: int, chunks: Collection[int], end: int, count: int) -> None:
        """Remove the oldest chunks' ranges; rows from ``end`` on move up by ``count``."""
        if self._workspace_rows:
            self._origin += count
        else:
            rows, stop = self._buffer(layer), self._used(layer)
            # In pieces that do not overlap with their new place, so that none needs a copy; they are few, as the
            # shift is at least a frame and usually a chunk.
            for first in range(end, stop, count) if count else ():
                last = min(first + count, stop)
                rows[:, :, first - count : last - count] = rows[:, :, first:last]
        others = {c: r for c, r in self._ranges[layer].items() if c != KEPT and c not in chunks}
        self._ranges[layer] = {c: range(r.start - count, r.stop - count) for c, r in others.items()}

    def _write_clean(self, layer: int, chunks: Sequence[int], start: int, rows: Sequence[Tensor]) -> None:
        """Write rows of ``chunks`` to the store, and record how much it changes them."""
        errors = self._store.write(layer, start, *rows)
        if errors is not None:
            self._errors.setdefault(tuple(chunks), []).append(errors)

    def _most_taken(self) -> int:
        return max(self._used(layer) - stored for layer, stored in enumerate(self._stored))

    def _used(self, layer: int) -> int:
        return sum(map(len, self._ranges[layer].values()))

    def _visible(self, layer: int, last_chunk: int | None, first_chunk: int | None) -> range:
        ranges = self._ranges[layer]
        end = self._used(layer) if last_chunk is None else ranges[last_chunk].stop
        if first_chunk is None or KEPT in ranges:
            return range(end)
        return range(min(r.start for chunk, r in ranges.items() if chunk >= first_chunk), end)

    def _check_written(self, layer: int, seen: range, branches: Collection[int]) -> None:
        for chunk, rows in self._ranges[layer].items():
            if self._stored[layer] <= rows.start and seen.start <= rows.start < seen.stop:
                for branch in branches:
                    if (chunk, branch) not in self._written:
                        raise RuntimeError(
                            f"chunk {chunk}: layers share one layer's live rows, but the chunk did not run in this "
                            "call. reads_fresh of the reuse policy: expected False."
                        )
