"""Keep what the newest queries attend to."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from ...registry import option
from .attention import KEY_BLOCK, group_queries
from .base import ScoreInput, Scorer

#: Queries of a block: their product with a block of keys is what is held at once, per head.
QUERY_BLOCK = 256


@dataclass(frozen=True)
class Importance(Scorer):
    """Mean attention that a token or one of its neighbours draws (FlowCache, section 3.3).

    Args:
        pool: tokens over which the largest is taken, odd.
    """

    pool: int = option(7, 1, 999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool % 2 == 0:
            raise ValueError(f"pool: expected an odd number, got {self.pool}.")

    def score(self, tokens: ScoreInput) -> Tensor:
        mass = attention_mass(tokens.queries, tokens.keys)
        return max_pool1d(mass, self.pool, stride=1, padding=self.pool // 2)


def attention_mass(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean attention of each key over the queries, ``[..., kv_heads, tokens]``, fp32.

    Query heads that share a key-value head are pooled by their largest logit, before the softmax over all keys.

    Args:
        queries: ``[..., n, heads, head_dim]``; ``heads`` is a multiple of ``kv_heads``.
        keys: ``[..., tokens, kv_heads, head_dim]``.
    """
    *branches, num_tokens, kv_heads, _ = keys.shape
    mass = torch.zeros(*branches, kv_heads, num_tokens, device=keys.device)
    for place, weights in _weight_blocks(queries, keys):
        mass[..., place] += weights.sum(dim=-2)
    return mass / queries.shape[-3]


def _weight_blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Place of a block of keys, and the attention that it draws, ``[..., kv_heads, queries, keys]``.

    Two passes over blocks of keys: the first computes each query's normaliser. A single block needs one. Memory does
    not grow with queries times keys.
    """
    for block in queries.split(QUERY_BLOCK, dim=-3):
        if keys.shape[-3] <= KEY_BLOCK:
            ((place, logits),) = _logit_blocks(block, keys)
            yield place, logits.softmax(dim=-1)
            continue
        parts = [logits.logsumexp(dim=-1, keepdim=True) for _, logits in _logit_blocks(block, keys)]
        normaliser = torch.cat(parts, dim=-1).logsumexp(dim=-1, keepdim=True)
        for place, logits in _logit_blocks(block, keys):
            yield place, (logits - normaliser).exp_()


def _logit_blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Place of a block of keys, and its logits ``[..., kv_heads, queries, keys]``."""
    groups, grouped = queries.shape[-2] // keys.shape[-2], group_queries(queries, keys.shape[-2])
    for start in range(0, keys.shape[-3], KEY_BLOCK):
        block = keys[..., start : start + KEY_BLOCK, :, :].movedim(-3, -1)
        logits = _products(grouped, block, math.sqrt(queries.shape[-1])).unflatten(-2, (groups, -1))
        # With a single head, amax would copy.
        pooled = logits.amax(dim=-3) if groups > 1 else logits.squeeze(-3)
        yield slice(start, start + block.shape[-1]), pooled


def _products(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``queries @ keys / scale`` in fp32, of ``[..., n, head_dim]`` and ``[..., head_dim, tokens]``."""
    low = queries.dtype == keys.dtype and keys.dtype in (torch.float16, torch.bfloat16)
    if low and queries.is_cuda and torch.version.hip is None:
        # Tensor cores multiply these without loss and add up in fp32, many times as fast as fp32 itself.
        flat = torch.bmm(queries.flatten(0, -3), keys.flatten(0, -3), out_dtype=torch.float32)
        return flat.div_(scale).unflatten(0, queries.shape[:-2])
    return (queries.float() / scale) @ keys.float()
