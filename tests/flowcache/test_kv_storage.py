"""A cache that keeps all tokens: clean chunks beside live ones, in fewer bits, or in host memory."""

from __future__ import annotations

import pytest
import torch
from cached import TOKENS, fill

from flowcache.kv.cache import CacheFullError, ChunkKVCache
from flowcache.kv.config import KVStorageConfig
from flowcache.kv.layout import CacheLayout
from flowcache.kv.quantized import dequantize, group_size, quantize

LAYOUT = CacheLayout(num_layers=3, num_branches=2, num_heads=2, head_dim=8)


def make_store(chunks: int, bits: int | None, layout: CacheLayout = LAYOUT):
    storage = KVStorageConfig(bits=bits, offload=bits is None)
    return storage.make_store(layout, chunks * TOKENS, TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [2, -1])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 1.0, 1e6])
def test_no_number_is_off_by_more_than_half_a_step(bits, dim, dtype, scale):
    numbers = (torch.randn(2, 3, 16, 2, 8).clamp(-3, 3) * torch.logspace(-3, 2, 8) * scale + 1).to(dtype)
    (codes, step, low), out = quantize(numbers, dim, bits), torch.empty_like(numbers)
    dequantize(codes, step, low, bits, out)
    numbers = numbers.float().clamp(-65504, 65504)
    rounding = torch.finfo(dtype).eps + torch.finfo(torch.float16).eps
    bound = step.float() / 2 * (1 + 1e-3) + numbers.abs().amax(dim=dim, keepdim=True) * rounding
    assert ((out.float() - numbers).abs() <= bound).all()


def test_keys_share_bounds_by_channel_and_values_by_token():
    store, rows = make_store(2, bits=8), torch.randn(2, 2 * TOKENS, 2, 8)
    by_channel = rows * torch.logspace(-3, 3, 8)
    by_token = rows * torch.logspace(-3, 3, 2 * TOKENS).view(-1, 1, 1)
    store.write(0, 0, by_channel, by_token)
    keys, values = torch.empty_like(rows), torch.empty_like(rows)
    store.read(0, 0, keys, values)
    assert ((keys - by_channel).norm(dim=1) / by_channel.norm(dim=1)).amax() < 0.01
    assert ((values - by_token).norm(dim=-1) / by_token.norm(dim=-1)).amax() < 0.01


@pytest.mark.parametrize(("unit", "size"), [(80, 80), (2025, 75), (2040, 68), (12, 12), (2027, 2027), (1, 1)])
def test_groups_divide_a_chunk(unit, size):
    assert group_size(unit) == size


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_those_of_codes_bounds_and_the_buffer(bits):
    rows, per_row = 5 * 80, 3 * 2 * 2  # layers, branches, heads
    store = KVStorageConfig(bits=bits).make_store(LAYOUT, rows, 80)
    bounds = 2 * 2 * (rows // 80) * per_row * 8 + 2 * 2 * rows * per_row
    assert (store.nbytes, store.host_nbytes) == (2 * rows * per_row * 8 * bits // 8 + bounds, 0)
    token = 2 * 2 * 2 * 8 * 4  # keys and values, branches, heads, channels, fp32
    assert ChunkKVCache(LAYOUT, 160).nbytes == 3 * 160 * token
    cache = ChunkKVCache(LAYOUT, 160, store=store)
    assert cache.nbytes == 3 * 160 * token + store.nbytes + (rows + 160) * token


@pytest.mark.parametrize(("stored", "bits", "most"), [(0, None, 0), (4, None, 0), (4, 8, 0.01), (4, 4, 0.15)])
def test_a_chunk_sees_itself_and_earlier_ones(stored, bits, most):
    cache, chunks = ChunkKVCache(LAYOUT, 5 * TOKENS, store=make_store(stored, bits) if stored else None), []
    for chunk in range(5):
        fill(cache, chunk)
        chunks.append(fill(cache, chunk))  # writing again replaces
        if chunk:
            cache.settle(chunk - 1)
    keys, values = (torch.cat(parts, dim=2) for parts in zip(*chunks, strict=True))
    for layer in (0, 2, 2, 1):
        for first, last in ((3, 4), (4, 4), (2, 4), (None, 4), (1, 2), (0, 0)):
            own = slice(TOKENS * (first or 0), TOKENS * (last + 1))
            for found, rows in zip(cache.read(layer, last, first), (keys, values), strict=True):
                assert (found - rows[layer, :, own]).norm() <= most * rows[layer, :, own].norm()
                assert last < 4 or torch.equal(found[:, -TOKENS:], rows[layer, :, -TOKENS:]), "live rows"
    assert (cache.num_tokens, cache.num_taken) == (5 * TOKENS, (5 - stored) * TOKENS)
    events = cache.pop_quantizations()
    assert [event.chunks for event in events] == ([[chunk] for chunk in range(4)] if bits else [])
    for chunk, event in enumerate(events):
        own = slice(TOKENS * chunk, TOKENS * (chunk + 1))
        for part, error in enumerate((event.key_error, event.value_error)):
            rows = chunks[chunk][part]
            each = [(cache.read(k)[part][:, own] - rows[k]).norm() / rows[k].norm() for k in range(3)]
            assert error == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_writes_between_two_reads_are_seen_and_stored_chunks_are_not_written():
    cache = ChunkKVCache(LAYOUT, 3 * TOKENS, store=make_store(1, None))
    for chunk in range(3):
        fill(cache, chunk)
    cache.settle(1)
    assert cache.num_taken == 3 * TOKENS, "an older chunk is live"
    before = cache.read(1)[0].clone()
    cache.settle(0)
    assert torch.equal(cache.read(1)[0], before)
    cache.settle(1)
    assert cache.num_taken == 2 * TOKENS, "the store has room for one"
    new = torch.randn(2, TOKENS, 2, 8)
    cache.write(1, 2, new, new)
    assert torch.equal(cache.read(1)[0][:, 2 * TOKENS :], new)
    with pytest.raises(ValueError, match="chunk"):
        cache.write(1, 0, new, new)
    fill(cache, 3)
    with pytest.raises(CacheFullError, match="chunk 4"):
        cache.enter(4, TOKENS)


def test_storage_is_checked():
    for settings, name in (({"bits": 2}, "bits"), ({}, "storage")):
        with pytest.raises(ValueError, match=name):
            KVStorageConfig(**settings)
    with pytest.raises(ValueError, match="bits=4"):
        make_store(1, bits=4, layout=CacheLayout(num_layers=1, num_branches=1, num_heads=1, head_dim=3))
