"""Work on single tokens in blocks, so that what it needs in between stays small."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Most tokens at a time, read at every call.
MAX_TOKENS = 2**14


def map_tokens(
    function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor, dim: int = 0, size: int | None = None
) -> Any:
    """Apply a function of single tokens to blocks of them; it returns one tensor or several.

    Args:
        inputs: its arguments, with as many tokens along ``dim`` each.
        size: of a block; None: ``MAX_TOKENS`` tokens.
    """
    size = size or MAX_TOKENS
    return function(*inputs) if inputs[0].shape[dim] <= size else _map_blocks(function, inputs, dim, size)


@torch.compiler.disable(recursive=False)  # a compiled loop is compiled again for every number of blocks
def _map_blocks(function: Callable[..., Any], inputs: Sequence[Tensor], dim: int, size: int) -> Any:
    count, made = inputs[0].shape[dim], []
    for start in range(0, count, size):
        length = min(size, count - start)
        result = function(*(each.narrow(dim, start, length) for each in inputs))
        parts = result if isinstance(result, tuple) else (result,)
        made = made or [part.new_empty((*part.shape[:dim], count, *part.shape[dim + 1 :])) for part in parts]
        for whole, part in zip(made, parts, strict=True):
            whole.narrow(dim, start, length).copy_(part)
    return tuple(made) if isinstance(result, tuple) else made[0]
