"""Keys and values that chunks leave for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Stands in the table of ranges for the rows that are left of compressed chunks; they are seen by all.
KEPT = -1


class CacheFullError(RuntimeError):
    """A chunk does not fit into the capacity that was promised."""


@dataclass(frozen=True)
class CacheLayout:
    """What a model stores per token.

    Attributes:
        num_layers: layers of the transformer.
        num_branches: guidance streams, kept side by side in the batch dimension.
        num_heads: key-value heads.
        head_dim: channels of a head.
        dtype, device: of the stored tensors.
    """

    num_layers: int
    num_branches: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


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

    Args:
        layout: what is stored per token.
        capacity: most tokens that the cache may hold per layer and branch.
        keeps: False: layers take turns in one layer's memory, for runs that write everything anew each time.
    """

    def __init__(self, layout: CacheLayout, capacity: int, keeps: bool = True) -> None:
        layers = layout.num_layers if keeps else 1
        shape = (layers, layout.num_branches, capacity, layout.num_heads, layout.head_dim)
        self._keys = torch.empty(shape, dtype=layout.dtype, device=layout.device)
        self._values = torch.empty(shape, dtype=layout.dtype, device=layout.device)
        # Layers have tables of their own: while they run, one after another, they may be compressed.
        self._ranges: list[dict[int, ChunkRange]] = [{} for _ in range(layers)]
        self.layout, self.capacity = layout, capacity

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
    def nbytes(self) -> int:
        """Bytes allocated for keys and values of all layers and branches."""
        return 2 * self._keys.numel() * self._keys.element_size()

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
        start = self.num_tokens
        if start + num_tokens > self.capacity:
            raise CacheFullError(
                f"Chunk {chunk} needs {num_tokens} tokens, but {start} of {self.capacity} are taken."
            )
        for ranges in self._ranges:
            ranges[chunk] = ChunkRange(start, start + num_tokens)

    def write(self, layer: int, chunk: int, keys: Tensor, values: Tensor, branch: int | None = None) -> None:
        """Store a chunk's keys and values, ``[branches, tokens, heads, head_dim]`` each.

        With ``branch``, those of one branch, ``[tokens, heads, head_dim]``.
        """
        place = self._ranges[self._place(layer)][chunk]
        branches = slice(None) if branch is None else branch
        self._keys[self._place(layer), branches, place.start : place.end] = keys
        self._values[self._place(layer), branches, place.start : place.end] = values

    def observe(self, layer: int, chunk: int, queries: Tensor, branch: int | None = None) -> None:
        """Hear which queries are about to read as ``chunk``; shaped as in ``write``, of all query heads."""

    def read(
        self, layer: int, last_chunk: int | None = None, first_chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Views of keys and values from ``first_chunk`` to ``last_chunk``, both included (None: no bound).

        Once chunks are compressed, ``first_chunk`` is no bound any more: what is left of them is seen by all.

        Returns:
            Keys and values, ``[branches, tokens, heads, head_dim]`` each.
        """
        place = self._visible(self._ranges[self._place(layer)], last_chunk, first_chunk)
        visible = (self._place(layer), slice(None), slice(place.start, place.end))
        return self._keys[visible], self._values[visible]

    def copy_branch(self, chunk: int, source: int, target: int) -> None:
        """Let one branch see a chunk as another does, in all layers."""
        place = self._ranges[0][chunk]
        for stored in (self._keys, self._values):
            stored[:, target, place.start : place.end] = stored[:, source, place.start : place.end]

    def merge(self, layer: int, chunks: Sequence[int], kept: Tensor) -> None:
        """Keep some rows of what is already compressed and of the oldest chunks; the others move up.

        Args:
            layer: where.
            chunks: the oldest chunks, which lose their ranges; none, to compress again what is compressed.
            kept: indices of rows, ``[branches, heads, rows]``, in the order in which they are to lie.
        """
        end, used, count = self.rows_of(chunks, layer), self._used(layer), kept.shape[-1]
        index = kept.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, self.layout.head_dim)
        for stored in (self._keys[layer], self._values[layer]):
            stored[:, : count + used - end] = torch.cat(
                [stored[:, :end].gather(1, index), stored[:, end:used]], dim=1
            )
        self._ranges[layer] = {KEPT: ChunkRange(0, count)} | self._moved(layer, chunks, count - end)

    def drop(self, chunks: Sequence[int]) -> None:
        """Let go of the oldest chunks, of which nothing is compressed yet; the others move up."""
        for layer in range(len(self._ranges)):
            end, used = self.rows_of(chunks, layer), self._used(layer)
            for stored in (self._keys[layer], self._values[layer]):
                stored[:, : used - end] = stored[:, end:used].clone()
            self._ranges[layer] = self._moved(layer, chunks, -end)

    def rows_of(self, chunks: Sequence[int], layer: int = 0) -> int:
        """Rows of what is compressed already and of these chunks."""
        ranges = self._ranges[layer]
        return sum(len(ranges[chunk]) for chunk in (KEPT, *chunks) if chunk in ranges)

    def _moved(self, layer: int, gone: Sequence[int], shift: int) -> dict[int, ChunkRange]:
        """Ranges of the chunks that stay, so many rows on."""
        others = {c: r for c, r in self._ranges[layer].items() if c not in (KEPT, *gone)}
        return {c: ChunkRange(r.start + shift, r.end + shift) for c, r in others.items()}

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
