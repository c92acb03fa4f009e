"""A cache within its capacity: clean chunks beside live ones, in fewer bits, in host memory, compressed."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from cached import TOKENS, fill, run

from flowcache import FlowCacheConfig
from flowcache.kv.cache import CacheFullError, ChunkKVCache
from flowcache.kv.compression import CompressedKVCache, FullKVCache, WithinStepKVCache
from flowcache.kv.config import KVCompressionConfig, KVStorageConfig
from flowcache.kv.layout import CacheLayout
from flowcache.kv.original import OriginalCompression
from flowcache.kv.quantized import dequantize, group_size, quantize
from flowcache.kv.scorers import SCORERS, Paper, Scorer
from flowcache.kv.selection import TokenSelector
from flowcache.registry import make_by_name

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


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_those_of_codes_bounds_and_the_buffer(bits):
    sizes = {80: 80, 2025: 75, 2040: 68, 12: 12, 2027: 2027, 1: 1}
    assert {unit: group_size(unit) for unit in sizes} == sizes
    with pytest.raises(ValueError, match="bits=4"):
        make_store(1, 4, replace(LAYOUT, head_dim=3))
    rows, per_row = 5 * 80, 3 * 2 * 2  # layers, branches, heads
    store = KVStorageConfig(bits=bits).make_store(LAYOUT, rows, 80)
    bounds = 2 * 2 * (rows // 80) * per_row * 8 + 2 * 2 * rows * per_row
    token = 2 * 2 * 2 * 8 * 4  # keys and values, branches, heads, channels, fp32
    assert (store.nbytes, store.host_nbytes) == (2 * rows * per_row * bits + bounds, 0)
    assert ChunkKVCache(LAYOUT, 160).nbytes == 3 * 160 * token
    sizes = {live: ChunkKVCache(LAYOUT, 160, live, store).nbytes - store.nbytes for live in (True, False)}
    assert sizes == {True: (3 * 160 + rows + 160) * token, False: (rows + 160) * token}
    assert ChunkKVCache(LAYOUT, 160, False, store, max_rows=rows).nbytes == store.nbytes + rows * token


@pytest.mark.parametrize(("stored", "bits", "most"), [(0, None, 0), (4, None, 0), (4, 8, 0.01), (4, 4, 0.15)])
def test_a_chunk_sees_itself_and_earlier_ones(stored, bits, most):
    cache, chunks = ChunkKVCache(LAYOUT, 5 * TOKENS, store=make_store(stored, bits) if stored else None), []
    for chunk in range(5):
        fill(cache, chunk)
        chunks.append(fill(cache, chunk))  # writing again replaces
        if chunk:
            cache.update_clean([chunk - 1], ())
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
    cache.update_clean([1], ())
    assert cache.num_taken == 3 * TOKENS, "an older chunk is live"
    before = cache.read(1)[0].clone()
    cache.update_clean([0], ())
    assert torch.equal(cache.read(1)[0], before)
    cache.update_clean([1], ())
    assert cache.num_taken == 2 * TOKENS, "the store has room for one"
    new = torch.randn(2, TOKENS, 2, 8)
    cache.write(1, 2, new, new)
    assert torch.equal(cache.read(1)[0][:, 2 * TOKENS :], new)
    with pytest.raises(ValueError, match="chunk"):
        cache.write(1, 0, new, new)
    fill(cache, 3)
    with pytest.raises(CacheFullError, match="chunk 4"):
        cache.enter(4, TOKENS)


@pytest.mark.parametrize("bits", [None, 8])
def test_layers_share_the_rows_of_live_chunks(bits):
    caches, found = [ChunkKVCache(LAYOUT, 3 * TOKENS, keeps, make_store(2, bits)) for keeps in (True, False)], []
    for cache in caches:
        torch.manual_seed(1)
        for first in range(4):  # three live chunks, of which the oldest becomes clean in this call
            for chunk in range(first, first + 3):
                cache.enter(chunk, TOKENS)
            cache.update_clean([first], [first - 2], during_call=True)
            for layer in range(3):
                for chunk in range(first, first + 3):
                    cache.write(layer, chunk, *torch.randn(2, 2, TOKENS, 2, 8))
                found.append(torch.stack(cache.read(layer)))
            cache.end_call()
    assert all(map(torch.equal, found[:12], found[12:]))
    assert caches[1].num_tokens == 4 * TOKENS, "two chunks are stored, two are live"
    with pytest.raises(RuntimeError, match="reads_fresh"):
        caches[1].read(0)


def make_cache(chunks: int, kind=FullKVCache, layout=LAYOUT, **options) -> CompressedKVCache:
    options = {"scorer": "paper", "compactor": "select", "query_granularity": "token"} | options
    selector = TokenSelector(KVCompressionConfig(**options), 2, TOKENS)
    return kind(layout, chunks * TOKENS, selector, TOKENS)


@pytest.mark.parametrize("missing", [1, 4, 5, 6])
def test_keeps_whole_tokens_and_leaves_live_chunks_alone(missing):
    cache = make_cache(4)
    stored = [fill(cache, chunk) for chunk in range(4)]
    cache.make_room([0, 1], missing)
    cache.enter(4, missing)
    assert cache.chunks == [2, 3, 4]
    assert cache.num_kept == 2 * TOKENS - missing
    clean_keys, clean_values = (torch.cat(parts, dim=2) for parts in zip(*stored[:2], strict=True))
    for layer in range(3):
        keys, values = cache.read(layer, 3)
        assert torch.equal(keys[:, cache.num_kept :], torch.cat([stored[2][0], stored[3][0]], dim=2)[layer])
        for branch, head in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
            kept, clean = keys[branch, : cache.num_kept, head], clean_keys[layer, branch, :, head]
            places = [int((clean == key).all(dim=-1).nonzero()) for key in kept]
            assert places == sorted(set(places)), "each once, in the order of time"
            own = clean_values[layer, branch, places, head]
            assert torch.equal(values[branch, : cache.num_kept, head], own), "values stay with their keys"


def test_events_name_the_origin_of_kept_tokens_and_live_chunks_may_fill_the_cache():
    cache = make_cache(3, scorer="recency")
    for chunk in range(3):
        fill(cache, chunk)
    cache.make_room([0, 1], TOKENS)
    fill(cache, 3)
    with pytest.raises(CacheFullError, match="budget"):
        cache.make_room([], 2 * TOKENS)
    with pytest.raises(CacheFullError, match="chunk 4"):
        cache.enter(4, TOKENS)
    cache.make_room([2], TOKENS)
    first, second = cache.pop_events()
    assert (first.chunks, first.rows_before, first.rows_after, first.kept_of) == ([0, 1], 12, 6, {1: 1.0})
    assert (second.chunks, second.kept_of) == ([2], {2: 1.0})
    assert cache.pop_events() == []


def test_tokens_come_from_the_chunks_that_they_were_in_whatever_their_lengths():
    cache = make_cache(4, scorer="recency")
    for chunk, length in enumerate((2, TOKENS, TOKENS)):
        fill(cache, chunk, length)
    cache.make_room([0, 1, 2], cache.capacity - TOKENS)
    assert cache.pop_events()[0].kept_of == {2: 1.0}


@dataclass(frozen=True)
class FirstQuery(Scorer):
    """Records the queries that it is given."""

    seen: list = field(default_factory=list)

    def score(self, tokens):
        self.seen.append(tokens.queries[:, 0, 0, 0].tolist())
        return -tokens.ages.float()


@pytest.mark.parametrize(
    ("asked", "due", "expected"),
    [
        ([(0, None, 1.0), (2, None, 3.0)], None, [[3.0, 3.0]]),  # the newest chunk's queries, in any order
        ([(2, None, 3.0), (0, None, 1.0)], None, [[3.0, 3.0]]),
        ([(2, 0, 3.0), (2, 1, 4.0)], None, [[3.0, 4.0]]),  # each branch's own
        ([(2, 1, 4.0)], None, [[4.0, 4.0]]),  # another branch's until then
        ([(1, None, 2.0), (2, None, 3.0)], {1: range(1)}, [[2.0, 2.0]]),  # within a step: the reader's
        ([(1, None, 2.0), (2, None, 3.0)], {}, []),
    ],
)
def test_whose_queries_count(asked, due, expected):
    scorer, kind = FirstQuery(), FullKVCache if due is None else WithinStepKVCache
    cache = make_cache(3, kind, replace(LAYOUT, num_layers=1), scorer=scorer)
    for chunk in range(3):
        cache.enter(chunk, TOKENS)
    cache.prepare(due or {}, TOKENS - 1)
    for chunk, branch, value in asked:
        shape = (TOKENS, 2, 8) if branch is not None else (2, TOKENS, 2, 8)
        cache.observe(0, chunk, torch.full(shape, value), branch)
    if due is None:
        cache.make_room([0, 1], TOKENS)
    assert scorer.seen == expected


class QueryOfEachChunk(FirstQuery):
    def score(self, tokens):
        self.seen.append(tokens.queries[0, ::TOKENS, 0, 0].tolist())
        return -tokens.ages.float()


def test_queries_of_live_chunks_and_of_the_last_two_that_became_clean_count():
    scorer = QueryOfEachChunk()
    options = {"scorer": scorer, "query_granularity": "live"}
    cache = make_cache(8, CompressedKVCache, replace(LAYOUT, num_layers=1), **options)
    for call in range(4):
        cache.update_clean(range(call + 1), (), during_call=True)
        for chunk in range(call, call + 3):
            fill(cache, chunk)
            cache.observe(0, chunk, torch.full((2, TOKENS, 2, 8), 10.0 * call + chunk))
        cache.end_call()
    assert scorer.seen == [[0, 11, 12, 13], [11, 22, 23, 24], [22, 33, 34, 35]]


def test_scorers_are_made_by_name_with_options_as_typed():
    assert make_by_name("scorer", SCORERS, "paper", {"mix_lambda": "0.5", "pool": 3}) == Paper(3, 0.5)
    own = KVCompressionConfig(scorer="random").as_dict()
    assert (own["scorer"], own["seed"]) == ("random", 0)
    assert KVCompressionConfig(scorer="paper", mix_lambda=0.2).scorer == Paper(mix_lambda=0.2)
    wrong = [("best", {}), ("paper", {"lambda": 1}), ("paper", {"mix_lambda": "2"}), ("paper", {"pool": "x"})]
    for name, options in [*wrong, ("paper", {"pool": 4}), ("recency", {"seed": 1})]:
        with pytest.raises(ValueError, match=next(iter(options), "scorer")):
            make_by_name("scorer", SCORERS, name, options)


WITHIN = {"compression": KVCompressionConfig(original=OriginalCompression(trigger="step"))}


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        (KVCompressionConfig, "budget", {"budget": 0}),
        (KVCompressionConfig, "mix_lambda", {"mix_lambda": 2.0, "scorer": "paper"}),
        (KVCompressionConfig, "mix_lambda", {"mix_lambda": 0.1}),
        (KVCompressionConfig, "scorer", {"scorer": "best"}),
        (KVCompressionConfig, "compactor", {"compactor": "retimed", "original": OriginalCompression()}),
        (KVCompressionConfig, "strategy", {"strategy": "row"}),
        (KVStorageConfig, "bits", {"bits": 2}),
        (KVStorageConfig, "storage", {}),
        (FlowCacheConfig, "clean_pass", {"clean_pass": True, **WITHIN}),
        (FlowCacheConfig, "whole_window", {"whole_window": True, **WITHIN}),
        (run, "total", {"compression": KVCompressionConfig(total=2)}),
    ],
)
def test_settings_are_checked(kind, name, settings):
    with pytest.raises(ValueError, match=name):
        kind(**settings)
