"""Chunks in a cache, for its tests."""

from __future__ import annotations

import torch
from torch import Tensor

from flowcache.kv.cache import ChunkKVCache

TOKENS = 6  # of a chunk


def fill(cache: ChunkKVCache, chunk: int) -> tuple[Tensor, Tensor]:
    """Random keys and values of a chunk, ``[layers, branches, tokens, heads, width]``."""
    layout = cache.layout
    cache.enter(chunk, TOKENS)
    shape = (layout.num_layers, layout.num_branches, TOKENS, layout.num_heads, layout.head_dim)
    keys, values, queries = (torch.randn(shape) for _ in range(3))
    for layer in range(layout.num_layers):
        cache.write(layer, chunk, keys[layer], values[layer])
        cache.observe(layer, chunk, queries[layer])
    return keys, values
