"""Work on single tokens in blocks, so that what it needs in between stays small."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Most tokens at a time, read at every call.
MAX_TOKENS = 2**14


def map_tokens(function: Callable[..., Tensor], *inputs: Tensor, dim: int = 0, size: int | None = None) -> Tensor:
    """Apply a function of single tokens to blocks of them.

    Args:
        inputs: its arguments, with as many tokens along ``dim`` each.
        size: of a block; None: ``MAX_TOKENS`` tokens.
    """
    size = size or MAX_TOKENS
    return function(*inputs) if inputs[0].shape[dim] <= size else _map_blocks(function, inputs, dim, size)


@torch.compiler.disable(recursive=False)  # a compiled loop is compiled again for every number of blocks
def _map_blocks(function: Callable[..., Tensor], inputs: Sequence[Tensor], dim: int, size: int) -> Tensor:
    count, out = inputs[0].shape[dim], None
    for start in range(0, count, size):
        length = min(size, count - start)
        part = function(*(each.narrow(dim, start, length) for each in inputs))
        if out is None:
            shape = list(part.shape)
            shape[dim] = count
            out = part.new_empty(shape)
        out.narrow(dim, start, length).copy_(part)
    return out
