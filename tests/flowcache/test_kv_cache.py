"""Keys and values that chunks leave for each other."""

import pytest
import torch

from flowcache.kv.cache import CacheFullError, CacheLayout, ChunkKVCache


def make_cache(capacity=10):
    return ChunkKVCache(CacheLayout(num_layers=2, num_branches=2, num_heads=3, head_dim=4), capacity)


def test_a_chunk_sees_itself_and_what_came_before():
    cache = make_cache()
    stored = {}
    for chunk, tokens in ((0, 3), (1, 2), (2, 4)):
        cache.enter(chunk, tokens)
        stored[chunk] = torch.randn(2, tokens, 3, 4), torch.randn(2, tokens, 3, 4)
        cache.write(1, chunk, *stored[chunk])
    keys, values = cache.read(1, last_chunk=1)
    assert torch.equal(keys, torch.cat([stored[0][0], stored[1][0]], dim=1))
    assert torch.equal(values, torch.cat([stored[0][1], stored[1][1]], dim=1))
    assert cache.read(1)[0].shape[1] == cache.num_tokens == 9
    assert cache.read(0, 1)[0].shape[1] == 5


def test_writing_again_replaces():
    cache = make_cache()
    cache.enter(0, 2)
    cache.enter(0, 2)
    for _ in range(2):
        new = torch.randn(2, 2, 3, 4)
        cache.write(0, 0, new, new)
    assert torch.equal(cache.read(0)[0], new)
    assert cache.num_tokens == 2


def test_capacity_is_a_promise():
    cache = make_cache(capacity=5)
    before = cache.nbytes
    cache.enter(0, 4)
    with pytest.raises(CacheFullError, match="Chunk 1 needs 2 tokens, but 4 of 5 are taken"):
        cache.enter(1, 2)
    with pytest.raises(ValueError, match="holds 4 tokens, not 3"):
        cache.enter(0, 3)
    assert cache.nbytes == before == 2 * 2 * 2 * 5 * 3 * 4 * 4


def test_dropping_the_oldest_leaves_the_others_as_they_are():
    cache = make_cache()
    stored = []
    for chunk in range(5):
        if chunk > 2:
            cache.drop([chunk - 3])
        cache.enter(chunk, 3)
        stored.append(torch.randn(2, 2, 3, 3, 4))
        for layer in range(2):
            cache.write(layer, chunk, stored[-1][layer], -stored[-1][layer])
    assert cache.chunks == [2, 3, 4]
    for layer in range(2):
        keys, values = cache.read(layer)
        assert torch.equal(keys, torch.cat([part[layer] for part in stored[2:]], dim=1))
        assert torch.equal(values, -keys)
        assert torch.equal(cache.read(layer, 3, 3)[0], stored[3][layer])
