"""Keys and values that chunks leave for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import State
from .layout import CacheLayout
from .quantized import QuantizationEvent
from .storage import LayerBuffer, RowStore, bytes_of

#: Stands in the table of ranges for the rows that are left of compressed chunks; they are seen by all.
KEPT = -1


class CacheFullError(RuntimeError):
    """A chunk does not fit into the capacity that was promised."""


@dataclass(frozen=True)
class ChunkRange:
    """Where a chunk's tokens lie in the cache: ``[start, end)``."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


class ChunkKVCache:
    """Keys and values of a window's chunks, preallocated, per layer and guidance branch.

    Chunks take their ranges in the order in which they enter, so that what a chunk may see, itself and all
    before it, is one contiguous range and is read without a copy. Keys are stored with their rotary
    positions applied, so a token keeps its place in time wherever it is moved. The memory is allocated once
    and never grows.

    With a store, chunks move there once they are settled. They keep their ranges; what spans them is then
    read through a buffer of one layer.

    Args:
        layout: what is stored per token.
        capacity: most tokens that the cache may hold per layer and branch, beside those in the store.
        keeps: False: layers take turns in one layer's memory, for runs that write everything anew each time.
        store: of settled chunks; None: they stay where they are.
    """

    def __init__(
        self, layout: CacheLayout, capacity: int, keeps: bool = True, store: RowStore | None = None
    ) -> None:
        layers = layout.num_layers if keeps else 1
        shape = (layers, layout.num_branches, capacity, layout.num_heads, layout.head_dim)
        self._keys = torch.empty(shape, dtype=layout.dtype, device=layout.device)
        self._values = torch.empty(shape, dtype=layout.dtype, device=layout.device)
        # Layers have tables of their own: while they run, one after another, they may be compressed.
        self._ranges: list[dict[int, ChunkRange]] = [{} for _ in range(layers)]
        self.layout, self.capacity = layout, capacity
        self._store, self._settled = store, [0] * layers
        self._buffer = LayerBuffer(layout, store, capacity) if store else None
        self._errors: dict[tuple[int, ...], list[Tensor]] = {}

    def __contains__(self, chunk: int) -> bool:
        return chunk in self._ranges[0]

    @property
    def chunks(self) -> list[int]:
        """Chunks that hold a range of their own, in order of entry."""
        return [chunk for chunk in self._ranges[0] if chunk != KEPT]

    @property
    def num_tokens(self) -> int:
        """Tokens that the cache holds now, per layer and branch."""
        return sum(map(len, self._ranges[0].values()))

    @property
    def num_kept(self) -> int:
        """Those among them that are left of compressed chunks."""
        return len(self._ranges[0].get(KEPT, ()))

    @property
    def num_taken(self) -> int:
        """Those that are not in the store."""
        return self.num_tokens - self._settled[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values of all layers and branches, on the model's device."""
        size = bytes_of([self._keys, self._values])
        return size + self._store.nbytes + self._buffer.nbytes if self._store else size

    @property
    def host_nbytes(self) -> int:
        """Bytes allocated beside those in host memory, if it is not the model's device."""
        return self._store.host_nbytes if self._store else 0

    def num_visible(self, last_chunk: int, first_chunk: int | None = None) -> int:
        """Tokens that ``read`` returns."""
        return len(self._visible(self._ranges[0], last_chunk, first_chunk))

    def enter(self, chunk: int, num_tokens: int) -> None:
        """Give ``chunk`` a range behind all others; does nothing if it has one of that size already.

        Raises:
            CacheFullError: the tokens do not fit.
            ValueError: the chunk holds a range of another size.
        """
        if chunk in self:
            held = len(self._ranges[0][chunk])
            if held != num_tokens:
                raise ValueError(f"Chunk {chunk} holds {held} tokens, not {num_tokens}.")
            return
        start, taken = self.num_tokens, self.num_taken
        if taken + num_tokens > self.capacity:
            raise CacheFullError(
                f"Chunk {chunk} needs {num_tokens} tokens, but {taken} of {self.capacity} are taken."
            )
        for ranges in self._ranges:
            ranges[chunk] = ChunkRange(start, start + num_tokens)

    def write(self, layer: int, chunk: int, keys: Tensor, values: Tensor, branch: int | None = None) -> None:
        """Store a chunk's keys and values, ``[branches, tokens, heads, head_dim]`` each.

        With ``branch``, those of one branch, ``[tokens, heads, head_dim]``.
        """
        place = self._place(layer)
        live = self._live(place, self._ranges[place][chunk])
        branches = slice(None) if branch is None else branch
        self._keys[place, branches, live] = keys
        self._values[place, branches, live] = values
        if self._buffer:
            self._buffer.forget()

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        """Hear which queries are about to read as ``chunk``; shaped as in ``write``, of all query heads."""

    def read(
        self, layer: int, last_chunk: int | None = None, first_chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Views of keys and values from ``first_chunk`` to ``last_chunk``, both included (None: no bound).

        They are good until another layer is read. Once chunks are compressed, ``first_chunk`` is no bound any
        more: what is left of them is seen by all.

        Returns:
            Keys and values, ``[branches, tokens, heads, head_dim]`` each.
        """
        place = self._place(layer)
        visible = self._visible(self._ranges[place], last_chunk, first_chunk)
        return self._rows(place, visible)

    def copy_branch(self, chunk: int, source: int, target: int) -> None:
        """Let one branch see a chunk as another does, in all layers."""
        live = self._live(0, self._ranges[0][chunk])
        for stored in (self._keys, self._values):
            stored[:, target, live] = stored[:, source, live]

    def settle(self, chunk: int) -> None:
        """Move a chunk that will not be written any more to the store.

        It stays where it is if there is no store, if that has no room, or if an older chunk stays.
        """
        place, settled = self._ranges[0][chunk], self._settled[0]
        if self._store is None or place.start != settled or place.end > self._store.capacity:
            return
        for layer in range(self.layout.num_layers):
            live = self._live(layer, place)
            keys, values = self._keys[layer, :, live], self._values[layer, :, live]
            self._settle_rows(layer, [chunk], place.start, keys, values)
            self._move_live(range(layer, layer + 1), len(place), 0)
            self._settled[layer] = place.end

    def pop_quantizations(self) -> list[QuantizationEvent]:
        """What was quantised since the last call."""
        errors, self._errors = self._errors, {}
        means = [torch.stack(layers).mean(dim=0).tolist() for layers in errors.values()]
        return [QuantizationEvent(list(chunks), *mean) for chunks, mean in zip(errors, means, strict=True)]

    def merge(self, layers: range, chunks: Sequence[int], kept: Tensor) -> None:
        """Keep some rows of what is already compressed and of the oldest chunks; the others move up.

        Args:
            layers: where; one, if there is a store.
            chunks: the oldest chunks, which lose their ranges; none, to compress again what is compressed.
            kept: indices of rows, ``[layers, branches, heads, rows]``, in the order in which they are to lie.
        """
        end, count = self.rows_of(chunks, layers[0]), kept.shape[-1]
        best = [_take(rows, kept) for rows in self._oldest_rows(layers, end)]
        if self._store is None:
            self._move_live(layers, end, count)
            for stored, rows in zip((self._keys, self._values), best, strict=True):
                stored[_span(layers), :, :count] = rows
        else:
            (layer,), (keys, values) = layers, best
            self._move_live(layers, end - self._settled[layer], 0)
            self._settled[layer] = count
            self._settle_rows(layer, chunks, 0, keys[0], values[0])
        for layer in layers:
            moved = self._moved(layer, chunks, count - end)
            self._ranges[layer] = {KEPT: ChunkRange(0, count)} | moved

    def drop(self, chunks: Sequence[int]) -> None:
        """Let go of the oldest chunks, of which nothing is compressed yet; the others move up."""
        for layer in range(len(self._ranges)):
            end, settled = self.rows_of(chunks, layer), self._settled[layer]
            gone = min(end, settled)
            self._move_live(range(layer, layer + 1), end - gone, 0)
            if gone:
                self._store.move_up(layer, gone, settled)
                self._buffer.forget()
            self._settled[layer] = settled - gone
            self._ranges[layer] = self._moved(layer, chunks, -end)

    def state_dict(self) -> State:
        """Which chunks lie where, and their keys and values; between two steps of the loop."""
        live, settled = self._most_live(), max(self._settled)
        return {
            "ranges": [[(c, r.start, r.end) for c, r in ranges.items()] for ranges in self._ranges],
            "settled": list(self._settled),
            "keys": self._keys[:, :, :live],
            "values": self._values[:, :, :live],
            "store": self._store.state_dict(settled) if self._store else {},
        }

    def load_state_dict(self, state: State) -> None:
        """Go on as another cache of the same layout and capacity; nothing has entered here so far."""
        self._ranges = [{c: ChunkRange(*bounds) for c, *bounds in ranges} for ranges in state["ranges"]]
        self._settled = list(state["settled"])
        live = self._most_live()
        self._keys[:, :, :live], self._values[:, :, :live] = state["keys"], state["values"]
        if self._store:
            self._store.load_state_dict(state["store"], max(self._settled))

    def rows_of(self, chunks: Sequence[int], layer: int = 0) -> int:
        """Rows of what is compressed already and of these chunks."""
        ranges = self._ranges[layer]
        return sum(len(ranges[chunk]) for chunk in (KEPT, *chunks) if chunk in ranges)

    def _moved(self, layer: int, gone: Sequence[int], shift: int) -> dict[int, ChunkRange]:
        """Ranges of the chunks that stay, so many rows on."""
        others = {c: r for c, r in self._ranges[layer].items() if c not in (KEPT, *gone)}
        return {c: ChunkRange(r.start + shift, r.end + shift) for c, r in others.items()}

    def _rows(self, place: int, rows: ChunkRange) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows, ``[branches, rows, heads, head_dim]``: views of what is kept if all
        are live, else of the buffer."""
        settled = self._settled[place]
        if self._buffer is None or rows.start >= settled:
            live = self._live(place, rows)
            return self._keys[place, :, live], self._values[place, :, live]
        live = slice(0, self._used(place) - settled)
        parts = self._keys[place, :, live], self._values[place, :, live]
        keys, values = self._buffer.read(place, rows.start, settled, *parts)
        return keys[:, : len(rows)], values[:, : len(rows)]

    def _live(self, place: int, rows: ChunkRange) -> slice:
        """Where live rows lie."""
        settled = self._settled[place]
        if rows.start < settled:
            raise ValueError("A settled chunk is not written any more.")
        return slice(rows.start - settled, rows.end - settled)

    def _oldest_rows(self, layers: range, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows up to ``end``, ``[layers, branches, rows, heads, head_dim]``."""
        if self._store is None:
            part = _span(layers)
            return self._keys[part, :, :end], self._values[part, :, :end]
        keys, values = self._rows(layers[0], ChunkRange(0, end))
        return keys.unsqueeze(0), values.unsqueeze(0)

    def _move_live(self, layers: range, start: int, to: int) -> None:
        """Move the live rows from ``start`` on."""
        layer, shift = layers[0], start - to
        stop = self._used(layer) - self._settled[layer]
        # In pieces that do not overlap with where they go, so that none needs a copy; there are few, as what
        # is gained is at least a frame and usually a chunk.
        for first in range(start, stop, shift) if shift else ():
            last = min(first + shift, stop)
            for stored in (self._keys[_span(layers)], self._values[_span(layers)]):
                stored[:, :, first - shift : last - shift] = stored[:, :, first:last]

    def _settle_rows(
        self, layer: int, chunks: Sequence[int], start: int, keys: Tensor, values: Tensor
    ) -> None:
        """Write rows of ``chunks`` to the store, and remember by how much it changes them."""
        self._buffer.forget()
        self._store.write(layer, start, keys, values)
        if self._store.lossy:
            errors = self._buffer.errors(layer, start, keys, values)
            self._errors.setdefault(tuple(chunks), []).append(errors)

    def _most_live(self) -> int:
        """Live rows of the layer that has most; none where layers take turns, as each writes all anew."""
        if len(self._keys) < self.layout.num_layers:
            return 0
        return max(self._used(layer) - self._settled[layer] for layer in range(len(self._ranges)))

    def _used(self, layer: int) -> int:
        return sum(map(len, self._ranges[layer].values()))

    def _place(self, layer: int) -> int:
        return layer if len(self._keys) > 1 else 0

    @staticmethod
    def _visible(
        ranges: dict[int, ChunkRange], last_chunk: int | None, first_chunk: int | None
    ) -> ChunkRange:
        end = ranges[last_chunk].end if last_chunk is not None else sum(map(len, ranges.values()))
        if first_chunk is None or KEPT in ranges:
            return ChunkRange(0, end)
        return ChunkRange(min(r.start for chunk, r in ranges.items() if chunk >= first_chunk), end)


def _span(layers: range) -> slice:
    return slice(layers.start, layers.stop)


def _take(rows: Tensor, kept: Tensor) -> Tensor:
    """Rows ``[layers, branches, rows, heads, head_dim]`` at the indices ``kept``, ``[layers, branches, heads,
    kept]``."""
    heads = torch.arange(kept.shape[2], device=kept.device)
    places = (kept.mT * len(heads) + heads).flatten(-2).flatten(0, 1)
    # Heads lie side by side within a branch; its rows are copied whole, not number by number.
    best = [row.flatten(0, 1).index_select(0, at) for row, at in zip(rows.flatten(0, 1), places, strict=True)]
    return torch.stack(best).view(*kept.shape[:2], -1, *rows.shape[3:])
