"""Keys and values that chunks leave for each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    positions applied. The memory is allocated once and never grows.

    Args:
        num_layers: layers of the transformer.
        num_branches: guidance streams, kept side by side in the batch dimension.
        capacity: most tokens that the cache may hold per layer and branch.
        num_heads: key-value heads.
        head_dim: channels of a head.
        dtype, device: of the stored tensors.
        keeps: False: layers take turns in one layer's memory, for runs that write everything anew each time.
    """

    def __init__(
        self,
        num_layers: int,
        num_branches: int,
        capacity: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        keeps: bool = True,
    ) -> None:
        shape = (num_layers if keeps else 1, num_branches, capacity, num_heads, head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._ranges: dict[int, ChunkRange] = {}
        self.capacity = capacity

    @property
    def num_tokens(self) -> int:
        """Tokens that chunks hold now, per layer and branch."""
        return sum(len(r) for r in self._ranges.values())

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values of all layers and branches."""
        return 2 * self._keys.numel() * self._keys.element_size()

    @property
    def ranges(self) -> dict[int, ChunkRange]:
        """Range of each chunk, in order of entry."""
        return dict(self._ranges)

    def enter(self, chunk: int, num_tokens: int) -> ChunkRange:
        """Give ``chunk`` a range behind all others; does nothing if it has one of that size already.

        Raises:
            CacheFullError: the tokens do not fit.
            ValueError: the chunk holds a range of another size.
        """
        if chunk in self._ranges:
            if len(self._ranges[chunk]) != num_tokens:
                raise ValueError(f"Chunk {chunk} holds {len(self._ranges[chunk])} tokens, not {num_tokens}.")
            return self._ranges[chunk]
        start = max((r.end for r in self._ranges.values()), default=0)
        if start + num_tokens > self.capacity:
            raise CacheFullError(
                f"Chunk {chunk} needs {num_tokens} tokens, but {start} of {self.capacity} are taken."
            )
        self._ranges[chunk] = ChunkRange(start, start + num_tokens)
        return self._ranges[chunk]

    def write(self, layer: int, chunk: int, keys: Tensor, values: Tensor, branch: int | None = None) -> None:
        """Store a chunk's keys and values, ``[branches, tokens, heads, head_dim]`` each.

        With ``branch``, those of one branch, ``[tokens, heads, head_dim]``.
        """
        place = self._ranges[chunk]
        branches = slice(None) if branch is None else branch
        self._keys[self._place(layer), branches, place.start : place.end] = keys
        self._values[self._place(layer), branches, place.start : place.end] = values

    def read(
        self, layer: int, last_chunk: int | None = None, first_chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Views of keys and values from ``first_chunk`` to ``last_chunk``, both included (None: no bound).

        Returns:
            Keys and values, ``[branches, tokens, heads, head_dim]`` each.
        """
        place = self._visible(last_chunk, first_chunk)
        visible = (self._place(layer), slice(None), slice(place.start, place.end))
        return self._keys[visible], self._values[visible]

    def copy_branch(self, chunk: int, source: int, target: int) -> None:
        """Let one branch see a chunk as another does, in all layers."""
        place = self._ranges[chunk]
        for stored in (self._keys, self._values):
            stored[:, target, place.start : place.end] = stored[:, source, place.start : place.end]

    def _place(self, layer: int) -> int:
        return layer if len(self._keys) > 1 else 0

    def _visible(self, last_chunk: int | None, first_chunk: int | None) -> ChunkRange:
        end = self._ranges[last_chunk].end if last_chunk is not None else self.num_tokens
        if first_chunk is None:
            return ChunkRange(0, end)
        return ChunkRange(min(r.start for chunk, r in self._ranges.items() if chunk >= first_chunk), end)
