"""Attention of recorded queries, by blocks of keys."""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Keys of a block: their product with the queries is what is held at once, per head.
KEY_BLOCK = 2048


def group_queries(queries: Tensor, kv_heads: int) -> Tensor:
    """Queries ``[..., n, heads, head_dim]`` by their KV head, ``[..., kv_heads, groups * n, head_dim]``."""
    # Heads of a group become queries of one head, so that keys are not copied for each.
    return queries.unflatten(-2, (kv_heads, -1)).movedim(-4, -2).flatten(-3, -2)


class Blocks:
    """Attention by blocks of keys in one pass: the place of a block, its weights ``[..., queries, keys]``, normalised
    over the blocks so far, and what that multiplies the weights of those before by.

    Args:
        queries: ``[..., n, head_dim]``, divided by the square root of ``head_dim``.
        keys: ``[..., rows, head_dim]``.

    Attributes:
        mass: log of the sum of each query's weights so far, before they are normalised, ``[..., n, 1]``.
    """

    def __init__(self, queries: Tensor, keys: Tensor) -> None:
        self.queries, self._keys = queries, keys
        self.mass = queries.new_full((*queries.shape[:-1], 1), -torch.inf)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for place, logits in self._logits():
            before, largest = self.mass, logits.amax(dim=-1, keepdim=True)
            weights = logits.sub_(largest).exp_()  # once: it takes as long as the products
            self.mass = torch.logaddexp(before, weights.sum(dim=-1, keepdim=True).log_().add_(largest))
            yield place, weights.mul_((largest - self.mass).exp_()), (before - self.mass).exp_()

    def attend(self, values: Tensor) -> Tensor:
        """Output of attention to values ``[..., rows, head_dim]``, in a pass."""
        outputs = 0.0
        for place, weights, faded in self:
            outputs = faded * outputs + weights @ values[..., place, :].float()
        return outputs

    def weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Place of a block and its weights, normalised over all of them; after a pass."""
        for place, logits in self._logits():
            yield place, logits.sub_(self.mass).exp_()

    def pull(self, pulls: Tensor) -> Tensor:
        """Sum of the queries' pulls ``[..., queries, head_dim]`` on each key, by its weight; after a pass."""
        return torch.cat([weights.mT @ pulls for _, weights in self.weights()], dim=-2)

    def _logits(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self._keys.shape[-2], KEY_BLOCK):
            place = slice(start, start + KEY_BLOCK)
            yield place, self.queries @ self._keys[..., place, :].float().mT
