"""Shift the kept keys and values until attention over them is what it was over all rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...registry import option
from ..scorers import ScoreInput
from ..scorers.importance import KEY_BLOCK, group_queries
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
        queries = group_queries(tokens.queries, tokens.keys.shape[-2]).float() / tokens.queries.shape[-1] ** 0.5
        every = [rows.transpose(1, 2) for rows in (tokens.keys, tokens.values)]
        mass = log_mass(queries, every[0])
        outputs = attend(queries, *every, mass)
        keys, values = (take_rows(rows, kept).transpose(1, 2).float() for rows in (tokens.keys, tokens.values))
        if self.mass is not None:
            keys = match_mass(queries, keys, mass, self.mass)
        if self.values is not None:
            values = match_outputs(queries, keys, values, outputs, self.values)
        return keys.transpose(1, 2), values.transpose(1, 2)


def log_mass(queries: Tensor, keys: Tensor) -> Tensor:
    """Log of the sum of each query's weights before they are normalised, ``[..., n, 1]``.

    Args:
        queries: ``[..., n, head_dim]``, divided by the square root of ``head_dim``.
        keys: ``[..., rows, head_dim]``.
    """
    parts = [logits.logsumexp(dim=-1, keepdim=True) for _, logits in _logit_blocks(queries, keys)]
    return torch.cat(parts, dim=-1).logsumexp(dim=-1, keepdim=True)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mass: Tensor) -> Tensor:
    """Output of attention, ``[..., n, head_dim]``."""
    blocks = _weight_blocks(queries, keys, mass)
    return sum(weights @ values[..., place, :].float() for place, weights in blocks)


def match_mass(queries: Tensor, keys: Tensor, mass: Tensor, ridge: float) -> Tensor:
    """Shift keys so that the log of their mass comes close to ``mass``, ``[..., n, 1]``.

    A shift of key j changes the log mass of query q by its weight ``w[q, j]`` times their product, so the Gram matrix
    of the regression is that of the weights times that of the queries, number by number.
    """
    own = log_mass(queries, keys)
    shared = _SHARED / keys.shape[-2]
    gram = (_gram(queries, keys, own) + shared) * (queries @ queries.mT)
    pulls = solve(gram, mass - own, ridge) * queries
    shift = shared * pulls.sum(dim=-2, keepdim=True)
    blocks = [weights.mT @ pulls for _, weights in _weight_blocks(queries, keys, own)]
    return keys + torch.cat(blocks, dim=-2) + shift


def match_outputs(queries: Tensor, keys: Tensor, values: Tensor, outputs: Tensor, ridge: float) -> Tensor:
    """Shift values so that the output of attention comes close to ``outputs``, ``[..., n, head_dim]``."""
    mass = log_mass(queries, keys)
    pulls = solve(_gram(queries, keys, mass), outputs - attend(queries, keys, values, mass), ridge)
    return values + torch.cat([weights.mT @ pulls for _, weights in _weight_blocks(queries, keys, mass)], dim=-2)


def solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve ``(gram + ridge * mean of its diagonal) x = right`` in fp32; 0 where that has no Cholesky factor."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(ridge * diagonal.mean(dim=-1, keepdim=True))
    # Without a look at ``failed`` on the host, so that a GPU need not be waited for.
    factor, failed = torch.linalg.cholesky_ex(gram)
    solution = torch.cholesky_solve(right, factor)
    return torch.where((failed == 0)[..., None, None], solution, 0.0)


def _gram(queries: Tensor, keys: Tensor, mass: Tensor) -> Tensor:
    """Products of the weights of each two queries, summed over the keys, ``[..., n, n]``."""
    return sum(weights @ weights.mT for _, weights in _weight_blocks(queries, keys, mass))


def _weight_blocks(queries: Tensor, keys: Tensor, mass: Tensor) -> Iterator[tuple[slice, Tensor]]:
    return ((place, (logits - mass).exp_()) for place, logits in _logit_blocks(queries, keys))


def _logit_blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Place of a block of keys, and its logits ``[..., queries, keys]``."""
    for start in range(0, keys.shape[-2], KEY_BLOCK):
        place = slice(start, start + KEY_BLOCK)
        yield place, queries @ keys[..., place, :].float().mT
