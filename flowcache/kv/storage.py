"""Where clean chunks' keys and values are stored, and in what form."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from ..state import State
from .layout import CacheLayout


class PlainRows:
    """Form of stored rows: tensors ``[layers, branches, entries, ...]``; here, an entry is a row as it is."""

    #: Whether rows are read back changed.
    lossy = False

    def allocate(
        self, layout: CacheLayout, rows: int, device: torch.device | str, pinned: bool = False
    ) -> list[Tensor]:
        options = {"dtype": layout.dtype, "device": device, "pin_memory": pinned}
        return [torch.empty(layout.shape(rows), **options) for _ in range(2)]

    def encode(self, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
        """Keys and values ``[branches, rows, heads, head_dim]`` as entries, ``[branches, entries, ...]``."""
        return keys, values

    def decode(self, parts: Sequence[Tensor], keys: Tensor, values: Tensor) -> None:
        """Write what ``encode`` returned to ``keys`` and ``values``."""
        keys.copy_(parts[0])
        values.copy_(parts[1])


class RowStore:
    """Clean rows of all layers on the model's device; ``capacity`` of them per layer and branch."""

    host_nbytes = 0

    def __init__(self, layout: CacheLayout, capacity: int, form: PlainRows) -> None:
        self.capacity, self._layout, self._form = capacity, layout, form
        self._parts = self._allocate()

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the model's device; ``host_nbytes`` in host memory, if that is another."""
        return count_bytes(self._parts)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> Tensor | None:
        """Store rows from ``start`` on, ``[branches, rows, heads, head_dim]`` each.

        Returns sums of squares, fp64: of the errors of keys and of values, and of these; None if the form is exact.
        """
        stop, encoded = start + keys.shape[1], self._form.encode(keys, values)
        for part, entries in zip(self._parts, encoded, strict=True):
            self._entries(part[layer], start, stop).copy_(entries)
        if not self._form.lossy:
            return None
        stored = torch.empty_like(keys), torch.empty_like(values)
        self._form.decode(encoded, *stored)
        rows = keys.float(), values.float()
        errors = [own.float() - row for own, row in zip(stored, rows, strict=True)]
        return torch.stack([each.square().sum(dtype=torch.float64) for each in (*errors, *rows)])

    def load(self, layer: int, rows: Tensor) -> None:
        """Fill ``rows``, ``[2, branches, rows, heads, head_dim]``, with the first rows of a layer."""
        self._form.decode(self._load(layer, rows.shape[2]), *rows)

    def move_up(self, layer: int, start: int, stop: int) -> None:
        """Move rows of a layer to its beginning."""
        for part in self._parts:
            rows = self._entries(part[layer], start, stop).clone()
            self._entries(part[layer], 0, stop - start).copy_(rows)

    def state_dict(self, rows: int) -> State:
        return {"parts": [self._entries(part.flatten(0, 1), 0, rows) for part in self._parts]}

    def load_state_dict(self, state: State, rows: int) -> None:
        """Fill the first rows of a store that was not read yet."""
        for part, entries in zip(self._parts, state["parts"], strict=True):
            self._entries(part.flatten(0, 1), 0, rows).copy_(entries)

    def _allocate(self) -> list[Tensor]:
        return self._form.allocate(self._layout, self.capacity, self._layout.device)

    def _load(self, layer: int, count: int) -> list[Tensor]:
        return [self._entries(part[layer], 0, count) for part in self._parts]

    def _entries(self, part: Tensor, start: int, stop: int) -> Tensor:
        """Entries of ``part``, ``[branches, entries, ...]``, that hold some rows."""
        rows = self.capacity // part.shape[1]
        return part[:, start // rows : stop // rows]


class HostStore(RowStore):
    """Clean rows in pinned host memory; while a layer computes, the next one's are copied to the CUDA device.

    Layers alternate between two buffers on the device. They are copied on a stream of their own; writing
    rows waits. Not yet run on a GPU; the tests simulate the streams.
    """

    def _allocate(self) -> list[Tensor]:
        device, one = torch.device(self._layout.device), replace(self._layout, num_layers=1)
        self._stream = torch.cuda.Stream(device)
        self._buffers = [self._form.allocate(one, self.capacity, device) for _ in range(2)]
        for part in chain(*self._buffers):
            # Copies may still run when the store is dropped.
            part.record_stream(self._stream)
        self._current, self._ahead = 0, (-1, 0)
        return self._form.allocate(self._layout, self.capacity, "cpu", pinned=True)

    @property
    def nbytes(self) -> int:
        return count_bytes(list(chain(*self._buffers)))

    @property
    def host_nbytes(self) -> int:
        return count_bytes(self._parts)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> Tensor | None:
        if self._ahead[0] == layer:
            self._ahead = (-1, 0)
        return super().write(layer, start, keys, values)

    def move_up(self, layer: int, start: int, stop: int) -> None:
        # The host is ahead of the device, which may still copy these rows.
        self._stream.synchronize()
        self._ahead = (-1, 0)
        super().move_up(layer, start, stop)

    def _load(self, layer: int, count: int) -> list[Tensor]:
        if self._ahead != (layer, count):
            self._fetch(layer, count)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        parts = [self._entries(part[0], 0, count) for part in self._buffers[self._current]]
        self._fetch((layer + 1) % self._layout.num_layers, count)
        return parts

    def _fetch(self, layer: int, count: int) -> None:
        """Start copying a layer's rows to the buffer that was not read last."""
        self._current, self._ahead = 1 - self._current, (layer, count)
        # The computation may still read from that buffer.
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for source, target in zip(self._parts, self._buffers[self._current], strict=True):
                rows = self._entries(source[layer], 0, count)
                # Branch by branch: only contiguous memory is copied in parallel with other work.
                for there, here in zip(self._entries(target[0], 0, count), rows, strict=True):
                    there.copy_(here, non_blocking=True)


def count_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
