"""Where the keys and values of clean chunks lie, and in what form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from ..state import State
from .layout import CacheLayout


class RowFormat(Protocol):
    """In what form rows are kept: as tensors with one entry for so many rows each."""

    #: Whether rows come back changed.
    lossy: bool

    def allocate(
        self, layout: CacheLayout, rows: int, device: torch.device | str, pinned: bool = False
    ) -> list[Tensor]:
        """The tensors of that many rows, ``[layers, branches, entries, ...]`` each, not filled in."""
        ...

    def encode(self, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
        """Keys and values ``[branches, rows, heads, head_dim]`` as entries, ``[branches, entries, ...]``."""
        ...

    def decode(self, parts: Sequence[Tensor], keys: Tensor, values: Tensor) -> None:
        """Write what ``encode`` made back as ``keys`` and ``values``, in place."""
        ...


class PlainRows:
    """Implements ``RowFormat``: rows as they are."""

    lossy = False

    def allocate(
        self, layout: CacheLayout, rows: int, device: torch.device | str, pinned: bool = False
    ) -> list[Tensor]:
        shape = (layout.num_layers, layout.num_branches, rows, layout.num_heads, layout.head_dim)
        options = {"dtype": layout.dtype, "device": device, "pin_memory": pinned}
        return [torch.empty(shape, **options) for _ in range(2)]

    def encode(self, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
        return keys, values

    def decode(self, parts: Sequence[Tensor], keys: Tensor, values: Tensor) -> None:
        keys.copy_(parts[0])
        values.copy_(parts[1])


class RowStore:
    """Keys and values of clean rows in memory of their own, preallocated, on the model's device.

    Args:
        layout: what is stored per token.
        capacity: rows per layer and branch.
        form: in what form they are kept.
    """

    def __init__(self, layout: CacheLayout, capacity: int, form: RowFormat) -> None:
        self.capacity, self.lossy = capacity, form.lossy
        self._layout, self._format = layout, form
        self._parts = self._allocate()

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the model's device."""
        return bytes_of(self._parts)

    @property
    def host_nbytes(self) -> int:
        """Bytes allocated in host memory, where that is not the model's device."""
        return 0

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store rows from ``start`` on, ``[branches, rows, heads, head_dim]`` each."""
        stop = start + keys.shape[1]
        for part, entries in zip(self._parts, self._format.encode(keys, values), strict=True):
            self._entries(part[layer], start, stop).copy_(entries)

    def read(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Fill ``keys`` and ``values``, shaped as in ``write``, with the rows from ``start`` on."""
        self._format.decode(self._load(layer, start, start + keys.shape[1]), keys, values)

    def move_up(self, layer: int, start: int, stop: int) -> None:
        """Move some rows to the beginning."""
        for part in self._parts:
            rows = self._entries(part[layer], start, stop).clone()
            self._entries(part[layer], 0, stop - start).copy_(rows)

    def state_dict(self, rows: int) -> State:
        """The first rows, in their form."""
        return {"parts": [self._first(part, rows) for part in self._parts]}

    def load_state_dict(self, state: State, rows: int) -> None:
        """Fill the first rows with those of another store like this; nothing was read here so far."""
        for part, entries in zip(self._parts, state["parts"], strict=True):
            self._first(part, rows).copy_(entries)

    def _allocate(self) -> list[Tensor]:
        return self._format.allocate(self._layout, self.capacity, self._layout.device)

    def _load(self, layer: int, start: int, stop: int) -> list[Tensor]:
        """Entries of some rows, on the model's device."""
        return [self._entries(part[layer], start, stop) for part in self._parts]

    def _entries(self, part: Tensor, start: int, stop: int) -> Tensor:
        """Those of ``part``, ``[branches, entries, ...]``, that hold some rows."""
        rows = self.capacity // part.shape[1]
        return part[:, start // rows : stop // rows]

    def _first(self, part: Tensor, rows: int) -> Tensor:
        """Entries of the first rows of all layers."""
        return self._entries(part.flatten(0, 1), 0, rows)


class HostStore(RowStore):
    """Clean rows in pinned host memory; while a layer computes, the next one's are on their way.

    On the device, two layers' rows take turns. They are copied on a CUDA stream of their own; writing rows
    waits. Where the model's device is the CPU this is a plain ``RowStore``. This copying has not been
    tried on a GPU so far.
    """

    def _allocate(self) -> list[Tensor]:
        device = torch.device(self._layout.device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is None:
            return super()._allocate()
        one = replace(self._layout, num_layers=1)
        self._turns = [self._format.allocate(one, self.capacity, device) for _ in range(2)]
        for part in chain(*self._turns):
            # Copies may still run when the store is dropped.
            part.record_stream(self._stream)
        self._turn, self._ahead = 0, (-1, 0, 0)
        return self._format.allocate(self._layout, self.capacity, "cpu", pinned=True)

    @property
    def nbytes(self) -> int:
        return super().nbytes if self._stream is None else sum(map(bytes_of, self._turns))

    @property
    def host_nbytes(self) -> int:
        return 0 if self._stream is None else bytes_of(self._parts)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        super().write(layer, start, keys, values)
        if self._stream is not None and self._ahead[0] == layer:
            self._ahead = (-1, 0, 0)

    def move_up(self, layer: int, start: int, stop: int) -> None:
        if self._stream is not None:
            # The host is ahead of the device, where copies of these rows may still be wanted.
            self._stream.synchronize()
            self._ahead = (-1, 0, 0)
        super().move_up(layer, start, stop)

    def _load(self, layer: int, start: int, stop: int) -> list[Tensor]:
        if self._stream is None:
            return super()._load(layer, start, stop)
        if self._ahead != (layer, start, stop):
            self._fetch(layer, start, stop)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        parts = [self._entries(part[0], start, stop) for part in self._turns[self._turn]]
        self._fetch((layer + 1) % self._layout.num_layers, start, stop)
        return parts

    def _fetch(self, layer: int, start: int, stop: int) -> None:
        """Start copying a layer's rows to where the layer before last had them."""
        self._turn, self._ahead = 1 - self._turn, (layer, start, stop)
        # What is being computed may still read from there.
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for source, target in zip(self._parts, self._turns[self._turn], strict=True):
                rows = self._entries(source[layer], start, stop)
                # One branch after another, as only contiguous memory is copied beside other work.
                for there, here in zip(self._entries(target[0], start, stop), rows, strict=True):
                    there.copy_(here, non_blocking=True)


class LayerBuffer:
    """One layer's clean and live rows side by side, for attention to read.

    Args:
        layout: what is stored per token.
        store: of the clean rows.
        live_rows: most rows that are live.
    """

    def __init__(self, layout: CacheLayout, store: RowStore, live_rows: int) -> None:
        one = replace(layout, num_layers=1)
        parts = PlainRows().allocate(one, store.capacity + live_rows, layout.device)
        self._keys, self._values = (part[0] for part in parts)
        self._store, self._layer, self._first = store, -1, 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return bytes_of([self._keys, self._values])

    def forget(self) -> None:
        """What is there is out of date."""
        self._layer = -1

    def read(
        self, layer: int, start: int, settled: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Views of a layer's rows from ``start`` on, ``[branches, rows, heads, head_dim]`` each.

        What is there of the same layer already is not brought again.

        Args:
            layer: whose rows.
            start: the first of them, a clean one.
            settled: number of clean rows.
            keys, values: the live rows, which lie behind those.
        """
        stop = settled + keys.shape[1]
        if layer != self._layer:
            self._layer, self._first = layer, settled
            self._keys[:, settled:stop], self._values[:, settled:stop] = keys, values
        if start < self._first:
            self._store.read(
                layer, start, self._keys[:, start : self._first], self._values[:, start : self._first]
            )
            self._first = start
        return self._keys[:, start:stop], self._values[:, start:stop]

    def errors(self, layer: int, start: int, keys: Tensor, values: Tensor) -> Tensor:
        """Root mean square of what the store changed of keys and of values, over theirs; ``[2]``.

        Args:
            layer, start, keys, values: as they were written to the store.
        """
        self.forget()
        stop = start + keys.shape[1]
        stored = self._keys[:, start:stop], self._values[:, start:stop]
        self._store.read(layer, start, *stored)
        errors = [
            (there.float() - rows.float()).norm() / rows.float().norm().clamp_min(1e-12)
            for there, rows in zip(stored, (keys, values), strict=True)
        ]
        return torch.stack(errors)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of all elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
