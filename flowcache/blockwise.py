"""Work on single tokens in blocks, so that what it needs in between stays small."""

from collections.abc import Callable

from torch import Tensor

#: Most tokens at a time; larger blocks are no faster, as these fill any GPU.
MAX_TOKENS = 2**14


def map_tokens(function: Callable[..., Tensor], *inputs: Tensor, dim: int = 0, most: int | None = None) -> Tensor:
    """Apply a function of single tokens to blocks of them.

    Args:
        inputs: its arguments, with as many tokens along ``dim`` each.
        most: tokens of a block; None: ``MAX_TOKENS``.
    """
    most, count = most or MAX_TOKENS, inputs[0].shape[dim]
    if count <= most:
        return function(*inputs)
    out = None
    for start in range(0, count, most):
        size = min(most, count - start)
        part = function(*(each.narrow(dim, start, size) for each in inputs))
        if out is None:
            shape = list(part.shape)
            shape[dim] = count
            out = part.new_empty(shape)
        out.narrow(dim, start, size).copy_(part)
    return out
