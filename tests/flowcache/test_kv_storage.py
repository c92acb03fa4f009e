"""Clean chunks in fewer bits or in host memory."""

from __future__ import annotations

import pytest
import torch
from cached import TOKENS, fill

from flowcache.config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from flowcache.kv.cache import CacheFullError, CacheLayout, ChunkKVCache
from flowcache.kv.compression import CompressedKVCache
from flowcache.kv.quantized import Codes, dequantize, group_size, quantize

LAYOUT = CacheLayout(num_layers=3, num_branches=2, num_heads=2, head_dim=8)


def make_store(rows: int, bits: int | None = None, offload: bool = False, layout: CacheLayout = LAYOUT):
    return KVStorageConfig(bits=bits, offload=offload).make_store(layout, rows, TOKENS)


def make_cache(bits: int | None = None, live: int = 2, clean: int = 4) -> ChunkKVCache:
    store = make_store(clean * TOKENS, bits, offload=bits is None)
    return ChunkKVCache(LAYOUT, live * TOKENS, store=store)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [2, -1])
@pytest.mark.parametrize("bits", [8, 4])
def test_no_number_is_off_by_more_than_half_a_step(bits, dim, dtype):
    numbers = (torch.randn(2, 3, 16, 2, 8) * torch.logspace(-3, 2, 8) + 1).to(dtype)
    quantized, out = quantize(numbers, dim, bits), torch.empty_like(numbers)
    dequantize(quantized, bits, out)
    rounding = torch.finfo(dtype).eps + torch.finfo(torch.float16).eps
    largest = numbers.float().abs().amax(dim=dim, keepdim=True)
    bound = quantized.scale.float() / 2 * (1 + 1e-3) + largest * rounding
    assert ((out.float() - numbers.float()).abs() <= bound).all()


def test_numbers_that_have_a_code_come_back_exactly():
    for bits in (8, 4):
        numbers = torch.arange(2.0**bits).view(1, -1)
        quantized, out = quantize(numbers, -1, bits), torch.empty_like(numbers)
        dequantize(quantized, bits, out)
        assert torch.equal(out, numbers)
    assert quantized.codes.tolist() == [[low + 16 * (low + 8) for low in range(8)]], "two halves, two a byte"
    same, out = torch.full((2, 4), 3.0), torch.empty(2, 4)
    for number in (3.0, 0.0, 1e6):
        dequantize(quantize(same.fill_(number), -1, 4), 4, out)
        assert torch.equal(out, same.clamp_max(torch.finfo(torch.float16).max)), "no step is no trouble"


def test_keys_share_bounds_by_channel_and_values_by_token():
    store, rows = make_store(2 * TOKENS, bits=8), torch.randn(2, 2 * TOKENS, 2, 8)
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
def test_packed_bytes_are_as_promised(bits):
    rows, per_row = 5 * 80, 3 * 2 * 2  # layers, branches, heads
    store = KVStorageConfig(bits=bits).make_store(LAYOUT, rows, 80)
    codes = 2 * rows * per_row * 8 * bits // 8
    of_keys, of_values = 2 * 2 * (rows // 80) * per_row * 8, 2 * 2 * rows * per_row
    assert store.nbytes == codes + of_keys + of_values
    assert store.host_nbytes == 0
    cache = ChunkKVCache(LAYOUT, 160, store=store)
    token = 2 * 2 * 2 * 8 * 4  # keys and values, branches, heads, channels, fp32
    assert cache.nbytes == 3 * 160 * token + store.nbytes + (rows + 160) * token


def test_four_bits_need_pairs_of_channels():
    odd = CacheLayout(num_layers=1, num_branches=1, num_heads=1, head_dim=3)
    with pytest.raises(ValueError, match="even number of channels, got 3"):
        make_store(TOKENS, bits=4, layout=odd)
    make_store(TOKENS, bits=8, layout=odd)


@pytest.mark.parametrize(("bits", "most"), [(None, 0), (8, 0.01), (4, 0.15)])
def test_settled_chunks_are_read_with_the_live_ones(bits, most):
    cache, stored = make_cache(bits), []
    for chunk in range(5):
        stored.append(fill(cache, chunk))
        if chunk:
            cache.settle(chunk - 1)
    keys, values = (torch.cat(parts, dim=2) for parts in zip(*stored, strict=True))
    for layer in (0, 2, 2, 1):
        for first, last in ((3, 4), (4, 4), (2, 4), (None, 4), (1, 2), (0, 0)):
            own = slice(TOKENS * (first or 0), TOKENS * (last + 1))
            read = cache.read(layer, last, first)
            for found, wanted in zip(read, (keys, values), strict=True):
                wanted = wanted[layer, :, own]
                assert (found - wanted).norm() <= most * wanted.norm()
            if first == 4:
                assert torch.equal(read[0], keys[layer, :, own]), "live rows are as they were"
    assert cache.num_tokens == 5 * TOKENS
    assert cache.num_taken == TOKENS


def test_what_is_written_between_two_reads_is_seen():
    cache = make_cache()
    fill(cache, 0)
    cache.settle(0)
    fill(cache, 1)
    cache.read(1)
    new = torch.randn(2, TOKENS, 2, 8)
    cache.write(1, 1, new, new)
    assert torch.equal(cache.read(1)[0][:, TOKENS:], new)
    fill(cache, 2)
    before = cache.read(1)[0].clone()
    cache.settle(1)
    assert torch.equal(cache.read(1)[0], before)
    with pytest.raises(ValueError, match="settled chunk"):
        cache.write(1, 0, new, new)


def test_a_chunk_stays_where_there_is_no_room_for_it():
    cache = make_cache(live=3, clean=1)
    for chunk in range(3):
        fill(cache, chunk)
    cache.settle(1)
    assert cache.num_taken == 3 * TOKENS, "an older one is live"
    cache.settle(0)
    cache.settle(1)
    assert cache.num_taken == 2 * TOKENS, "one has room"
    fill(cache, 3)
    with pytest.raises(CacheFullError, match="18 of 18 are taken"):
        cache.enter(4, TOKENS)


def test_without_a_store_nothing_moves_or_is_copied():
    cache = ChunkKVCache(LAYOUT, 2 * TOKENS)
    fill(cache, 0)
    where = cache.read(0)[0].data_ptr()
    cache.settle(0)
    assert cache.read(0)[0].data_ptr() == where == cache._keys.data_ptr()
    assert cache.pop_quantizations() == []
    assert cache.nbytes == 2 * 3 * 2 * 2 * TOKENS * 2 * 8 * 4


def test_errors_are_those_of_the_rows():
    cache = make_cache(bits=4)
    keys, values = fill(cache, 0)
    cache.settle(0)
    (event,) = cache.pop_quantizations()
    assert event.chunks == [0]
    for error, part, rows in ((event.key_error, 0, keys), (event.value_error, 1, values)):
        each = [(cache.read(k)[part] - rows[k]).norm() / rows[k].norm() for k in range(3)]
        assert error == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)
    assert cache.pop_quantizations() == []


@pytest.mark.parametrize("bits", [None, 8])
def test_compression_keeps_the_same_tokens(bits):
    """Of rows that were stored, and of one that still lies with the live ones."""
    selector = KVCompressionConfig(scorer="recency").make_selector(2, TOKENS)
    store = make_store(2 * TOKENS, bits, offload=bits is None)
    stored = CompressedKVCache(LAYOUT, 2 * TOKENS, selector, store)
    plain = CompressedKVCache(LAYOUT, 4 * TOKENS, selector)
    for cache in (stored, plain):
        torch.manual_seed(0)
        for chunk in range(7):
            if chunk > 3:
                cache.make_room(list(range(chunk - 1)), TOKENS)
            fill(cache, chunk)
            if chunk:
                cache.settle(chunk - 1)
    assert stored.num_kept == plain.num_kept == 2 * TOKENS
    for layer in range(3):
        for found, wanted in zip(stored.read(layer), plain.read(layer), strict=True):
            assert (found - wanted).norm() <= (0 if bits is None else 0.02) * wanted.norm()
    chunks = [event.chunks for event in stored.pop_quantizations()]
    assert chunks == ([] if bits is None else [[0], [1], [0, 1, 2], [3], [4]])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="bits must be 8 or 4, got 2"):
        KVStorageConfig(bits=2)
    with pytest.raises(ValueError, match="storage must ask for something"):
        KVStorageConfig()
    assert KVStorageConfig.of(None, False) is None
    storage = KVStorageConfig.of(8, True)
    with pytest.raises(ValueError, match="storage needs a KV cache"):
        FlowCacheConfig(whole_window=True, storage=storage)
    with pytest.raises(ValueError, match="set refresh_given to false"):
        FlowCacheConfig(refresh_given=True, storage=storage)
    assert FlowCacheConfig(storage=storage).as_dict()["storage"] == {"bits": 8, "offload": True}


def test_codes_of_a_step_that_is_lost_in_rounding():
    tiny = torch.tensor([[1.0, 1.0 + 1e-7, 1.0, 1.0]])
    quantized = quantize(tiny, -1, 8)
    assert isinstance(quantized, Codes)
    assert quantized.scale.item() == 0
    out = torch.empty_like(tiny)
    dequantize(quantized, 8, out)
    assert (out - tiny).abs().amax() < 1e-6
