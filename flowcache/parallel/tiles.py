"""Tiles of a picture or video, dealt to processes."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from .group import Group

T = TypeVar("T")


def deal(costs: Sequence[int], processes: int) -> list[int]:
    """The process of each tile: the costliest first, each to the process with the least to do so far."""
    owners, loads = [0] * len(costs), [0] * processes
    for tile in sorted(range(len(costs)), key=lambda tile: -costs[tile]):
        owners[tile] = min(range(processes), key=loads.__getitem__)
        loads[owners[tile]] += costs[tile]
    return owners


def run_tiles(
    group: Group, run: Callable[[T], Tensor], tiles: Sequence[T], shapes: Sequence[Sequence[int]], like: Tensor
) -> Iterator[Tensor]:
    """Results of all tiles, each computed by one process; one collective.

    Args:
        run: makes the result of a tile.
        shapes: of the results, whose sizes stand for the work.
        like: a tensor with the type and device of the results.
    """
    if group.size == 1:
        return map(run, tiles)
    sizes = [prod(shape) for shape in shapes]
    owners = deal(sizes, group.size)
    order = sorted(range(len(tiles)), key=owners.__getitem__)
    own = [run(tiles[tile]).reshape(-1) for tile in order if owners[tile] == group.index]
    counts = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == i) for i in range(group.size)]
    joined = group.gather(torch.cat(own) if own else like.new_empty(0), 0, counts)
    parts = dict(zip(order, joined.split([sizes[tile] for tile in order]), strict=True))
    return (parts[tile].view(*shape) for tile, shape in enumerate(shapes))
