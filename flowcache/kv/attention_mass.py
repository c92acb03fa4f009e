"""How much attention keys draw from some queries, without ever holding queries x keys."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Queries and keys of a block: their product is what is held at once, per head.
QUERY_BLOCK, KEY_BLOCK = 256, 2048


def attention_mass(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean attention of each key over the queries, ``[kv_heads, tokens]``, fp32.

    Query heads that share a key-value head are pooled by their largest logit, before the softmax over all
    keys (FlowCache, section 3.3). Two passes over blocks of keys: the first gathers each query's normaliser,
    the second adds up; memory does not depend on the product of their numbers. One block needs one pass.

    Args:
        queries: ``[n, heads, head_dim]``, positions applied.
        keys: ``[tokens, kv_heads, head_dim]``, positions applied; ``heads`` is a multiple of ``kv_heads``.
    """
    mass = torch.zeros(keys.shape[1], len(keys), device=keys.device)
    for some in queries.split(QUERY_BLOCK):
        if len(keys) <= KEY_BLOCK:
            ((_, logits),) = _logit_blocks(some, keys)
            mass += logits.softmax(dim=-1).sum(dim=1)
            continue
        normaliser = torch.full((keys.shape[1], len(some)), -math.inf, device=keys.device)
        for _, logits in _logit_blocks(some, keys):
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(dim=-1))
        for place, logits in _logit_blocks(some, keys):
            mass[:, place] += (logits - normaliser.unsqueeze(-1)).exp_().sum(dim=1)
    return mass / len(queries)


def _logit_blocks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits ``[kv_heads, queries, some keys]`` block by block, with the place of the keys."""
    groups = queries.shape[1] // keys.shape[1]
    grouped = queries.float().unflatten(1, (-1, groups)).permute(1, 2, 0, 3)
    for start in range(0, len(keys), KEY_BLOCK):
        block = keys[start : start + KEY_BLOCK].float().permute(1, 2, 0).unsqueeze(1)
        logits = (grouped @ block).amax(dim=1) / math.sqrt(keys.shape[-1])
        yield slice(start, start + block.shape[-1]), logits
