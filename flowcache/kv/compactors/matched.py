"""Shift the kept keys and values until attention over them is what it was over all rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import option
from ..scorers import ScoreInput
from ..scorers.attention import KEY_BLOCK, Blocks
from .base import Compactor, take_rows

#: Weight of the shift that all keys of a head share, over that of each key's own.
_SHARED = 10.0


@dataclass(frozen=True)
class Matched(Compactor):
    """Two ridge regressions per KV head, over the recorded queries and in fp32.

    First keys, so that the log of a query's attention mass over the kept rows is that over all rows; then values, so
    that its output is. The idea is that of Fast KV Compaction via Attention Matching (arXiv 2602.16284). There a bias
    per row restores the mass; here the keys themselves do, so that no attention kernel changes: a mass is nearly
    linear in small shifts of the keys.

    Args:
        mass: ridge of the keys, over the mean diagonal of the normal equations; None: leave keys.
        values: ridge of the values, likewise; None: leave values.
    """

    mass: float | None = option(1.0, 0.01, 1e6)
    values: float | None = option(0.3, 0.01, 1e6)

    def compact(self, tokens: ScoreInput, kept: Tensor) -> tuple[Tensor, Tensor]:
        blocks, outputs = tokens.attention
        keys, values = (take_rows(rows, kept).transpose(1, 2).float() for rows in (tokens.keys, tokens.values))
        if self.mass is not None:
            keys = match_mass(blocks.queries, keys, blocks.mass, self.mass)
        if self.values is not None:
            values = match_outputs(blocks.queries, keys, values, outputs, self.values)
        return keys.transpose(1, 2), values.transpose(1, 2)


def match_mass(queries: Tensor, keys: Tensor, mass: Tensor, ridge: float) -> Tensor:
    """Shift keys so that the log of their mass comes close to ``mass``, ``[..., n, 1]``.

    A shift of key j changes the log mass of query q by its weight ``w[q, j]`` times their product, so the Gram matrix
    of the regression is that of the weights times that of the queries, number by number.
    """
    blocks, gram, shared = Blocks(queries, keys), None, _SHARED / keys.shape[-2]
    for _, weights, faded in blocks:
        gram = _add_gram(gram, weights, faded)
    pulls = solve(gram.add_(shared).mul_(queries @ queries.mT), mass - blocks.mass, ridge) * queries
    return keys + blocks.pull(pulls) + shared * pulls.sum(dim=-2, keepdim=True)


def match_outputs(queries: Tensor, keys: Tensor, values: Tensor, outputs: Tensor, ridge: float) -> Tensor:
    """Shift values so that the output of attention comes close to ``outputs``, ``[..., n, head_dim]``."""
    rows, asked = keys.shape[-2], queries.shape[-2]
    if rows < min(asked, KEY_BLOCK):
        # The primal problem has fewer equations than the dual, and the same solution.
        weights = (queries @ keys.mT).softmax(dim=-1)
        missing = weights.mT @ (outputs - weights @ values)
        return values + solve(weights.mT @ weights, missing, ridge * rows / asked)
    blocks, gram, own = Blocks(queries, keys), None, 0.0
    for place, weights, faded in blocks:
        gram = _add_gram(gram, weights, faded)
        own = faded * own + weights @ values[..., place, :]
    return values + blocks.pull(solve(gram, outputs - own, ridge))


def solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve ``(gram + ridge * mean of its diagonal) x = right`` in fp32; 0 where that has no Cholesky factor."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(ridge * diagonal.mean(dim=-1, keepdim=True))
    # Without a look at ``failed`` on the host, so that a GPU need not be waited for.
    factor, failed = torch.linalg.cholesky_ex(gram)
    solution = torch.cholesky_solve(right, factor)
    return torch.where((failed == 0)[..., None, None], solution, 0.0)


def _add_gram(gram: Tensor | None, weights: Tensor, faded: Tensor) -> Tensor:
    """Products of each two queries' weights, summed over the keys of another block, too, ``[..., n, n]``."""
    products = weights @ weights.mT
    return products if gram is None else products.addcmul_(faded * gram, faded.mT)
