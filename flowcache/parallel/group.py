"""Processes that share work, and what they send each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass
class Traffic:
    """What a process sent to others: tensors' bytes, and the number of collectives."""

    nbytes: int = 0
    collectives: int = 0


class Group:
    """Processes that share the work on one video; all of them call the same methods in the same order.

    With a single process no method communicates, and tensors come back as they are.

    Args:
        index: of this process, from 0.
        size: number of processes.
        process_group: of ``torch.distributed``; None: that of all processes.
        traffic: counter of what this process sends; groups that ``split`` makes share it.
        timeout: of collectives of the groups that ``split`` makes; None: torch's own.
    """

    def __init__(
        self,
        index: int = 0,
        size: int = 1,
        process_group: dist.ProcessGroup | None = None,
        traffic: Traffic | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        self.index, self.size, self.process_group, self.timeout = index, size, process_group, timeout
        self.traffic = traffic or Traffic()
        self._splits: dict[int, tuple[Group, Group]] = {}

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def shares(self, count: int) -> list[range]:
        """Cut ``count`` things into a contiguous share for each process; sizes differ by at most one, larger first."""
        each, rest = divmod(count, self.size)
        bounds = accumulate((each + (i < rest) for i in range(self.size)), initial=0)
        return [range(start, stop) for start, stop in pairwise(bounds)]

    def share(self, count: int) -> range:
        """The share of this process."""
        return self.shares(count)[self.index]

    def split(self, parts: int) -> tuple[Group, Group]:
        """Cut the group into equal parts of consecutive processes; returns those at this place in each part, and the
        own part.

        They are made once. The processes of a part must have made equally many groups before, or they wait forever:
        torch names a group by that number.
        """
        if parts not in self._splits:
            inner = self.size // parts
            part, place = divmod(self.index, inner)
            across = self._make(part, range(place, self.size, inner))
            within = self._make(place, range(part * inner, (part + 1) * inner))
            self._splits[parts] = across, within
        return self._splits[parts]

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send a tensor to each process and receive one of each: ``shapes``, in the order of processes.

        All are of one type and on one device; sizes may differ. It is one collective.
        """
        return [part for (part,) in self.exchange_several([[part] for part in parts], [[shape] for shape in shapes])]

    def exchange_several(
        self, parts: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Tensor]]:
        """``exchange`` several tensors with each process, as many with all; each is copied once before it is sent."""
        if self.size == 1:
            return [list(own) for own in parts]
        sizes = [sum(part.numel() for part in own) for own in parts]
        counts = [[torch.Size(shape).numel() for shape in own] for own in shapes]
        sent = parts[0][0].new_empty(sum(sizes))
        flat = chain.from_iterable(parts)
        for place, part in zip(sent.split([part.numel() for own in parts for part in own]), flat, strict=True):
            place.view(part.shape).copy_(part)
        received = sent.new_empty(sum(map(sum, counts)))
        dist.all_to_all_single(received, sent, list(map(sum, counts)), sizes, group=self.process_group)
        self._count((sum(sizes) - sizes[self.index]) * sent.element_size())
        places = iter(received.split(list(chain.from_iterable(counts))))
        return [[next(places).view(torch.Size(shape)) for shape in own] for own in shapes]

    def gather(self, own: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
        """Concatenate the tensors of all processes, which have ``sizes`` along ``dim`` (not negative)."""
        if self.size == 1:
            return own
        shapes = [(*own.shape[:dim], size, *own.shape[dim + 1 :]) for size in sizes]
        return torch.cat(self.exchange([own] * self.size, shapes), dim=dim)

    def swap_edges(self, first: Tensor, last: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Send a tensor to the process before and one, of the same shape, to the one behind; returns theirs.

        The first process has none before it, and the last none behind it: None. It is one collective.
        """
        if self.size == 1:
            return None, None
        empty = first.new_empty(0)
        parts, shapes = [empty] * self.size, [empty.shape] * self.size
        for place, part in ((self.index - 1, first), (self.index + 1, last)):
            if place in range(self.size):
                parts[place], shapes[place] = part, part.shape
        received = self.exchange(parts, shapes)
        before = received[self.index - 1] if self.index else None
        return before, received[self.index + 1] if self.index < self.size - 1 else None

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of small tensors in the order of processes, and so the same in all of them."""
        return reduce(torch.add, self.exchange([tensor] * self.size, [tensor.shape] * self.size))

    def max(self, tensor: Tensor) -> Tensor:
        """Maximum of small tensors."""
        return reduce(torch.maximum, self.exchange([tensor] * self.size, [tensor.shape] * self.size))

    def broadcast(self, tensor: Tensor | None, device: torch.device | str) -> Tensor:
        """The tensor of the first process, on a device; others pass None."""
        if self.size == 1:
            return tensor
        kind = self.broadcast_object(None if tensor is None else (tuple(tensor.shape), tensor.dtype))
        sent = torch.empty(kind[0], dtype=kind[1], device=device)
        if self.is_first:
            sent.copy_(tensor)
        dist.broadcast(sent, group=self.process_group, group_src=0)
        self._count((self.size - 1) * sent.nbytes if self.is_first else 0)
        return sent

    def broadcast_object(self, value: Any = None) -> Any:
        """The picklable object of the first process; what others pass is ignored. Its bytes are not counted."""
        if self.size == 1:
            return value
        values = [value if self.is_first else None]
        dist.broadcast_object_list(values, group=self.process_group, group_src=0)
        self._count(0)
        return values[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Picklable objects of all processes, in their order. Their bytes are not counted."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        self._count(0)
        return values

    def _count(self, nbytes: int) -> None:
        self.traffic.nbytes += nbytes
        self.traffic.collectives += 1

    def _make(self, index: int, members: range) -> Group:
        """The group of some of these processes, this one included; only they call it."""
        if len(members) in (1, self.size):
            return Group(index, len(members), self.process_group, self.traffic)
        ranks = dist.get_process_group_ranks(self.process_group)
        chosen = [ranks[member] for member in members]
        made = dist.new_group(chosen, self.timeout, use_local_synchronization=True)
        return Group(index, len(members), made, self.traffic)
