"""Keys and values that chunks leave for each other."""

from collections.abc import Mapping, Sequence

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

    Chunks take ranges of rows in the order in which they enter, so that what a chunk may see, itself and all
    before it, is one contiguous range, read without a copy. Keys are stored with their rotary positions
    applied, so a token keeps its place in time wherever it is moved.

    With a store, there are two kinds of rows: clean ones, at the beginning, in the store; and live ones, in
    ``capacity`` rows of every layer. Both are read through the workspace of one layer of the store.

    Args:
        capacity: most rows per layer and branch, without those in the store.
        keeps: whether keys and values outlive a call of the model. False: layers share one layer's rows.
        store: of clean chunks; None: they stay beside the live ones.
    """

    def __init__(self, layout: CacheLayout, capacity: int, keeps: bool = True, store: RowStore | None = None) -> None:
        shape = layout.shape(capacity, None if keeps else 1)
        # Keys and values, outside the store.
        self._rows = torch.empty((2, *shape), dtype=layout.dtype, device=layout.device)
        # A table per layer, as layers may be compressed one after another while the model runs.
        self._ranges: list[dict[int, range]] = [{} for _ in range(shape[0])]
        self.layout, self.capacity = layout, capacity
        self._store, self._stored = store, [0] * shape[0]
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
        return count_bytes([self._rows]) + (self._store.nbytes if self._store else 0)

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

    def prepare(self, clean: Mapping[int, range], budget: int) -> dict[int, int]:
        """Tokens that compression will drop right before a chunk reads, by chunk.

        ``clean``: chunks about to run, with the earlier ones that count as clean for each.
        """
        return {}

    def make_room(self, clean: Sequence[int], num_tokens: int) -> None:
        """Compress clean chunks, if the cache does that, until ``num_tokens`` more fit."""

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        """Record the queries about to attend, all query heads; otherwise shaped as in ``write``."""

    def write(self, layer: int, chunk: int, keys: Tensor, values: Tensor, branch: int | None = None) -> None:
        """Store a live chunk's keys and values, ``[branches, tokens, heads, head_dim]`` each.

        With ``branch``, those of one branch, ``[tokens, heads, head_dim]``.
        """
        place = self._place(layer)
        rows = self._live(place, self._ranges[place][chunk])
        branches = slice(None) if branch is None else branch
        self._rows[0, place, branches, rows] = keys
        self._rows[1, place, branches, rows] = values
        if self._store:
            self._store.invalidate()

    def read(self, layer: int, last_chunk: int | None = None, first_chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values from ``first_chunk`` to ``last_chunk``, both included (None: no bound).

        Views ``[branches, tokens, heads, head_dim]``, valid until another layer is read. Once chunks are
        compressed, ``first_chunk`` is ignored: all chunks see what is kept of them.
        """
        place = self._place(layer)
        rows = self._visible(place, last_chunk, first_chunk)
        keys, values = self._layer(place)
        return keys[:, rows.start : rows.stop], values[:, rows.start : rows.stop]

    def copy_branch(self, chunk: int, source: int, target: int) -> None:
        rows = self._live(0, self._ranges[0][chunk])
        self._rows[:, :, target, rows] = self._rows[:, :, source, rows]

    def settle(self, chunk: int) -> None:
        """Move a clean chunk, which is not written again, to the store.

        It stays where it is without a store, without room there, or behind an older chunk that stays.
        """
        rows = self._ranges[0][chunk]
        if self._store is None or rows.start != self._stored[0] or rows.stop > self._store.capacity:
            return
        for layer, live in enumerate(self._rows[:, :, :, self._live(0, rows)].unbind(1)):
            self._write_clean(layer, [chunk], rows.start, live)
        self._move_live(slice(0, self.layout.num_layers), len(rows), 0)
        self._stored = [rows.stop] * self.layout.num_layers

    def drop(self, chunks: Sequence[int]) -> None:
        """Drop the oldest chunks, none of which is compressed; the others move up."""
        layers, end, stored = len(self._ranges), self.count_rows(chunks), self._stored[0]
        gone = min(end, stored)
        self._move_live(slice(0, layers), end - gone, 0)
        if gone:
            self._store.move_up(gone, stored)
        self._stored = [stored - gone] * layers
        self._ranges = [self._moved(layer, chunks, -end) for layer in range(layers)]

    def merge(self, layers: slice, chunks: Sequence[int], kept: Tensor) -> None:
        """Keep some rows of those kept before and of the oldest chunks; the others move up.

        Args:
            layers: with the same ranges; a single one with a store.
            chunks: the oldest chunks, which lose their ranges.
            kept: indices of rows, ``[layers, branches, heads, rows]``, in their new order.
        """
        layer, count = layers.start, kept.shape[-1]
        end, stored = self.count_rows(chunks, layer), self._stored[layer]
        keys, values = (_take(rows, kept) for rows in self._oldest(layers, end))
        self._move_live(layers, end - stored, 0 if self._store else count)
        if self._store:
            self._stored[layer] = count
            self._write_clean(layer, chunks, 0, (keys[0], values[0]))
        else:
            self._rows[0, layers, :, :count], self._rows[1, layers, :, :count] = keys, values
        for layer in range(layers.start, layers.stop):
            self._ranges[layer] = {KEPT: range(count)} | self._moved(layer, chunks, count - end)

    def pop_events(self) -> list:
        """Compressions since the last call."""
        return []

    def pop_seconds(self) -> float:
        """Wall time of compression since the last call; on CUDA, that of launching it."""
        return 0.0

    def pop_quantizations(self) -> list[QuantizationEvent]:
        errors, self._errors = self._errors, {}
        means = [torch.stack(layers).mean(dim=0).tolist() for layers in errors.values()]
        return [QuantizationEvent(list(chunks), *mean) for chunks, mean in zip(errors, means, strict=True)]

    def state_dict(self) -> State:
        """Ranges, keys and values; valid between two steps of the loop."""
        return {
            "ranges": [[(c, r.start, r.stop) for c, r in ranges.items()] for ranges in self._ranges],
            "stored": list(self._stored),
            "rows": self._rows[:, :, :, : self._most_live()],
            "store": self._store.state_dict(max(self._stored)) if self._store else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Take the state of a cache of the same layout and capacity; no chunk has entered this one."""
        self._ranges = [{c: range(*bounds) for c, *bounds in ranges} for ranges in state["ranges"]]
        self._stored = list(state["stored"])
        self._rows[:, :, :, : self._most_live()] = state["rows"]
        if self._store:
            self._store.load_state_dict(state["store"], max(self._stored))

    def count_rows(self, chunks: Sequence[int], layer: int = 0) -> int:
        ranges = self._ranges[layer]
        return sum(len(ranges[chunk]) for chunk in (KEPT, *chunks) if chunk in ranges)

    def _moved(self, layer: int, gone: Sequence[int], shift: int) -> dict[int, range]:
        others = {c: r for c, r in self._ranges[layer].items() if c not in (KEPT, *gone)}
        return {c: range(r.start + shift, r.stop + shift) for c, r in others.items()}

    def _layer(self, place: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, ``[branches, rows, heads, head_dim]``: clean rows, then live ones."""
        stored = self._stored[place]
        live = self._rows[:, place, :, : self._used(place) - stored]
        return self._store.read(place, stored, live) if stored else tuple(live)

    def _live(self, place: int, rows: range) -> slice:
        stored = self._stored[place]
        if rows.start < stored:
            raise ValueError("chunk: expected a live one, got one in the store, which is not written again.")
        return slice(rows.start - stored, rows.stop - stored)

    def _oldest(self, layers: slice, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows up to ``end``, ``[layers, branches, rows, heads, head_dim]``."""
        if self._store is None:
            return tuple(self._rows[:, layers, :, :end])
        keys, values = self._layer(layers.start)
        return keys[None, :, :end], values[None, :, :end]

    def _move_live(self, layers: slice, start: int, to: int) -> None:
        """Move the rows outside the store from ``start`` on."""
        rows, shift = self._rows[:, layers], start - to
        stop = self._used(layers.start) - self._stored[layers.start]
        # In pieces that do not overlap with their new place, so that none needs a copy; they are few, as the
        # shift is at least a frame and usually a chunk.
        for first in range(start, stop, shift) if shift else ():
            last = min(first + shift, stop)
            rows[:, :, :, first - shift : last - shift] = rows[:, :, :, first:last]

    def _write_clean(self, layer: int, chunks: Sequence[int], start: int, rows: Sequence[Tensor]) -> None:
        """Write rows of ``chunks`` to the store, and record how much it changes them."""
        errors = self._store.write(layer, start, *rows)
        if errors is not None:
            self._errors.setdefault(tuple(chunks), []).append(errors)

    def _most_live(self) -> int:
        """Most rows of a layer outside the store that outlive a call of the model."""
        if len(self._ranges) < self.layout.num_layers:
            return 0
        return max(self._used(layer) - self._stored[layer] for layer in range(len(self._ranges)))

    def _used(self, layer: int) -> int:
        return sum(map(len, self._ranges[layer].values()))

    def _place(self, layer: int) -> int:
        return layer % len(self._ranges)

    def _visible(self, place: int, last_chunk: int | None, first_chunk: int | None) -> range:
        ranges = self._ranges[place]
        end = self._used(place) if last_chunk is None else ranges[last_chunk].stop
        if first_chunk is None or KEPT in ranges:
            return range(end)
        return range(min(r.start for chunk, r in ranges.items() if chunk >= first_chunk), end)


def _take(rows: Tensor, kept: Tensor) -> Tensor:
    """Rows ``[layers, branches, rows, heads, head_dim]`` at indices ``[layers, branches, heads, kept]``."""
    heads = torch.arange(kept.shape[2], device=kept.device)
    places = (kept.mT * len(heads) + heads).flatten(-2).flatten(0, 1)
    # Heads are adjacent within a branch; its rows are copied whole, not number by number.
    best = [row.flatten(0, 1).index_select(0, at) for row, at in zip(rows.flatten(0, 1), places, strict=True)]
    return torch.stack(best).view(*kept.shape[:2], -1, *rows.shape[3:])
