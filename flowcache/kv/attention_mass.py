"""How much attention keys draw from some queries, without ever holding queries x keys."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Queries and keys of a block: their product is what is held at once, per head.
QUERY_BLOCK, KEY_BLOCK = 256, 2048


def attention_mass(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean attention of each key over the queries, ``[..., kv_heads, tokens]``, fp32.

    Query heads that share a key-value head are pooled by their largest logit, before the softmax over all
    keys (FlowCache, section 3.3). Two passes over blocks of keys: the first gathers each query's normaliser,
    the second adds up; memory does not depend on the product of their numbers. One block needs one pass.

    Args:
        queries: ``[..., n, heads, head_dim]``, positions applied.
        keys: ``[..., tokens, kv_heads, head_dim]``, positions applied; ``heads`` is a multiple of
            ``kv_heads``.
    """
    *branches, num_tokens, kv_heads, _ = keys.shape
    mass = torch.zeros(*branches, kv_heads, num_tokens, device=keys.device)
    for some in queries.split(QUERY_BLOCK, dim=-3):
        if num_tokens <= KEY_BLOCK:
            ((_, logits),) = _logit_blocks(some, keys)
            mass += logits.softmax(dim=-1).sum(dim=-2)
            continue
        normaliser = torch.full((*branches, kv_heads, some.shape[-3]), -math.inf, device=keys.device)
        for _, logits in _logit_blocks(some, keys):
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(dim=-1))
        for place, logits in _logit_blocks(some, keys):
            mass[..., place] += (logits - normaliser.unsqueeze(-1)).exp_().sum(dim=-2)
    return mass / queries.shape[-3]


def _logit_blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits ``[..., kv_heads, queries, some keys]`` block by block, with the place of the keys."""
    groups = queries.shape[-2] // keys.shape[-2]
    # The heads of a group side by side, as queries of one head: so their keys are not copied for each.
    grouped = queries.unflatten(-2, (-1, groups)).movedim(-4, -2).flatten(-3, -2)
    for start in range(0, keys.shape[-3], KEY_BLOCK):
        block = keys[..., start : start + KEY_BLOCK, :, :].movedim(-3, -1)
        logits = _products(grouped, block, math.sqrt(queries.shape[-1])).unflatten(-2, (groups, -1))
        # Of a single head, the largest is a copy.
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
