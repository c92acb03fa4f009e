"""Chunks in a cache, and windows whose cache is bounded, for tests."""

import torch
from random_model import RandomModel, StraightSolver, denoised
from torch import Tensor

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, Trace, cut_window
from flowcache.kv.cache import ChunkKVCache
from flowcache.kv.config import KVStorageConfig
from flowcache.kv.original import OriginalCompression

TOKENS = 6  # of a chunk

HOST, EIGHT_BITS = KVStorageConfig(offload=True), KVStorageConfig(bits=8)

#: Times of compression, with whether chunks run once more when they are clean.
TIMES = [(None, False), (None, True), (OriginalCompression(within_step=True), False)]


def fill(cache: ChunkKVCache, chunk: int, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Random keys and values of a chunk, ``[layers, branches, tokens, heads, width]``."""
    layout = cache.layout
    cache.enter(chunk, tokens)
    keys, values, queries = (torch.randn(layout.shape(tokens)) for _ in range(3))
    for layer in range(layout.num_layers):
        cache.write(layer, chunk, keys[layer], values[layer])
        cache.observe(layer, chunk, queries[layer])
    return keys, values


def run(
    chunks: int = 8, given: int = 0, missing: int = 0, steps: int = 4, stride: int = 2, model=None, **options
) -> tuple[Tensor, Trace]:
    """Denoise chunks of three frames, the last one shorter by ``missing``; every chunk runs at every step."""
    noise = torch.randn(4, 3 * chunks - missing, 1, 1, generator=torch.Generator().manual_seed(1))
    window = cut_window(noise, 3, noise[:, : 3 * given].clone() if given else None)
    denoiser = Denoiser(model or RandomModel(), FlowCacheConfig(policy="none", **options))
    schedule = StaircaseSchedule(chunks, steps, stride, given)
    return denoised(denoiser, window, schedule, StraightSolver()), denoiser.trace
