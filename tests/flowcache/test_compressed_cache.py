"""A cache that keeps within its budget, on a model of random numbers."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from cached import TOKENS, fill
from denoised import denoised
from random_model import RandomModel, StraightSolver

from flowcache import Denoiser, LoopOptions, StaircaseSchedule, cut_window
from flowcache.config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from flowcache.kv import compression as compressed
from flowcache.kv.cache import CacheFullError, CacheLayout, ChunkKVCache
from flowcache.kv.compression import CompressedKVCache
from flowcache.kv.manager import CacheManager
from flowcache.kv.original import OriginalCompression
from flowcache.kv.scorers import Scorer
from flowcache.kv.selection import TokenSelector
from flowcache.kv.within_step import WithinStepCache
from flowcache.reuse.forecast import VelocityForecast
from flowcache.reuse.policy import NoReuse

ORIGINAL = {"full": None, "over": OriginalCompression(within_step=True)}
LAYOUT = CacheLayout(num_layers=2, num_branches=2, num_heads=2, head_dim=4)


def make_cache(capacity: int, **options) -> CompressedKVCache:
    selector = KVCompressionConfig(**options).make_selector(tokens_per_frame=2, tokens_per_chunk=TOKENS)
    return CompressedKVCache(LAYOUT, capacity, selector)


def test_keeps_whole_tokens_and_leaves_live_chunks_alone():
    cache = make_cache(capacity=4 * TOKENS)
    stored = [fill(cache, chunk) for chunk in range(4)]
    cache.make_room([0, 1], TOKENS)
    cache.enter(4, TOKENS)
    assert cache.chunks == [2, 3, 4]
    assert cache.num_kept == TOKENS
    clean_keys = torch.cat([stored[0][0], stored[1][0]], dim=2)
    clean_values = torch.cat([stored[0][1], stored[1][1]], dim=2)
    for layer in range(2):
        keys, values = cache.read(layer, 3)
        assert torch.equal(keys[:, TOKENS:], torch.cat([stored[2][0], stored[3][0]], dim=2)[layer])
        for branch in range(2):
            for head in range(2):
                kept = keys[branch, :TOKENS, head]
                places = [
                    int((clean_keys[layer, branch, :, head] == key).all(dim=-1).nonzero()) for key in kept
                ]
                assert places == sorted(set(places)), "each once, in the order of time"
                assert torch.equal(
                    values[branch, :TOKENS, head], clean_values[layer, branch, places, head]
                ), "values stay with their keys"


def test_events_tell_where_kept_tokens_come_from():
    cache = make_cache(capacity=3 * TOKENS, scorer="recency")
    for chunk in range(3):
        fill(cache, chunk)
    cache.make_room([0, 1], TOKENS)
    fill(cache, 3)
    cache.make_room([2], TOKENS)
    first, second = cache.pop_events()
    assert (first.chunks, first.rows_before, first.rows_after) == ([0, 1], 12, 6)
    assert first.kept_of == {1: 1.0}
    assert (second.chunks, second.kept_of) == ([2], {2: 1.0})
    assert cache.pop_events() == []


class OneQuery(Scorer):
    """Notes the queries that it is given."""

    def __init__(self):
        self.seen = []

    def score(self, tokens):
        self.seen.append(tokens.queries[:, 0, 0, 0].tolist())
        return -tokens.ages.float()


def observed(*asked: tuple[int, int | None, float], due: dict[int, list[int]] | None = None) -> list:
    """Queries of both branches by which a layer is compressed.

    Args:
        asked: chunk, branch and value of queries, one after another.
        due: what is compressed while they ask; None: afterwards.
    """
    scorer = OneQuery()
    layout = replace(LAYOUT, num_layers=1)
    cache = WithinStepCache(layout, 3 * TOKENS, TokenSelector(scorer, 2, TOKENS))
    for chunk in range(3):
        cache.enter(chunk, TOKENS)
    if due is not None:
        cache.prepare({c: range(max(d) + 1) for c, d in due.items()}, TOKENS - 1)
    for chunk, branch, value in asked:
        shape = (TOKENS, 2, 4) if branch is not None else (2, TOKENS, 2, 4)
        cache.observe(0, chunk, torch.full(shape, value), branch)
    if due is None:
        cache.make_room([0, 1], TOKENS)
    return scorer.seen


def test_whose_queries_count():
    assert observed((0, None, 1.0), (2, None, 3.0)) == [[3.0, 3.0]]
    assert observed((2, None, 3.0), (0, None, 1.0)) == [[3.0, 3.0]], "the newest chunk's, in any order"
    assert observed((2, 0, 3.0), (2, 1, 4.0)) == [[3.0, 4.0]], "each branch by its own"
    assert observed((2, 1, 4.0)) == [[4.0, 4.0]], "one that has not asked by another's"
    assert observed((1, None, 2.0), (2, None, 3.0), due={1: [0]}) == [[2.0, 2.0]], "the due chunk's own"
    assert observed((1, None, 2.0), (2, None, 3.0), due={}) == []


def test_sink_survives_many_rounds():
    cache = make_cache(capacity=3 * TOKENS, scorer="sink_window")
    keys, _ = fill(cache, 0)
    fill(cache, 1)
    for chunk in range(2, 12):
        fill(cache, chunk)
        cache.make_room([chunk - 2, chunk - 1] if chunk == 2 else [chunk - 1], TOKENS)
    assert torch.equal(cache.read(0)[0][:, 0], keys[0][:, 0]), "the very first token is still there"


def test_full_of_live_chunks_is_an_error():
    cache = make_cache(capacity=2 * TOKENS)
    fill(cache, 0)
    fill(cache, 1)
    with pytest.raises(CacheFullError, match="Give the cache a budget of more chunks"):
        cache.make_room([], TOKENS)
    with pytest.raises(CacheFullError, match="Chunk 2 needs 6 tokens"):
        cache.enter(2, TOKENS)


def test_memory_is_that_of_the_capacity():
    short, long = (make_cache(capacity=5 * TOKENS) for _ in range(2))
    for cache, count in ((short, 5), (long, 50)):
        for chunk in range(count):
            cache.make_room(cache.chunks[:2], TOKENS)
            fill(cache, chunk)
    assert short.nbytes == long.nbytes == ChunkKVCache(LAYOUT, 5 * TOKENS).nbytes
    assert long.num_tokens <= long.capacity


@pytest.mark.parametrize("missing", [1, 4, 5, 6])
def test_live_rows_move_up_whole_however_far(missing):
    """In pieces of that many rows; the last one may be smaller."""
    cache = make_cache(capacity=4 * TOKENS)
    stored = [fill(cache, chunk) for chunk in range(4)]
    cache.make_room([0, 1], missing)
    assert cache.num_kept == 2 * TOKENS - missing
    for layer in range(2):
        for rows, live in zip(cache.read(layer), (0, 1), strict=True):
            expected = torch.cat([stored[2][live], stored[3][live]], dim=2)[layer]
            assert torch.equal(rows[:, cache.num_kept :], expected)


def test_layers_together_are_compressed_as_each_alone(monkeypatch):
    caches = []
    for numbers in (2**22, 1):
        monkeypatch.setattr(compressed, "NUMBERS_AT_ONCE", numbers)
        torch.manual_seed(1)
        caches.append(make_cache(capacity=3 * TOKENS))
        for chunk in range(6):
            caches[-1].make_room(caches[-1].chunks[:2], TOKENS)
            fill(caches[-1], chunk)
    for layer in range(2):
        for together, alone in zip(*(cache.read(layer) for cache in caches), strict=True):
            assert torch.equal(together, alone)
    assert caches[0].pop_events() == caches[1].pop_events()


def run(num_chunks=8, given=0, missing=0, num_steps=4, **options):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, 3 * num_chunks - missing, 1, 1, generator=generator)
    prefix = noise[:, : 3 * given].clone() if given else None
    window = cut_window(noise, 3, prefix)
    schedule = StaircaseSchedule(len(window.chunks), num_steps, num_steps // 2, window.num_given)
    denoiser = Denoiser(RandomModel(), NoReuse(), VelocityForecast(), LoopOptions(**options))
    return denoised(denoiser, window, schedule, StraightSolver()), denoiser.trace


@pytest.mark.parametrize("clean_pass", [False, True])
def test_a_budget_that_never_fills_changes_nothing(clean_pass):
    plain, _ = run(clean_pass=clean_pass)
    roomy, trace = run(clean_pass=clean_pass, compression=KVCompressionConfig(budget=8))
    assert torch.equal(plain, roomy)
    assert not any(record.compressions for record in trace.steps)
    assert "compress" not in run(clean_pass=clean_pass)[1].seconds


@pytest.mark.parametrize("storage", [None, KVStorageConfig(offload=True)])
@pytest.mark.parametrize("when", ["full", "over"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_short_last_chunk_takes_no_room_from_others(when, storage, missing):
    plain, _ = run(8, missing=missing)
    for budget in (5, 7, 20):
        compression = KVCompressionConfig(budget=budget, original=ORIGINAL[when])
        roomy, trace = run(8, missing=missing, storage=storage, compression=compression)
        compressed_any = any(record.compressions for record in trace.steps)
        assert compressed_any == (budget == 5)
        assert compressed_any or torch.equal(plain, roomy)


def test_given_chunks_are_no_clean_ones_at_the_only_step():
    compression = KVCompressionConfig(budget=4, original=ORIGINAL["over"])
    latents, trace = run(12, 2, num_steps=1, compression=compression)
    assert latents.isfinite().all() and len(trace.steps) == 1


@pytest.mark.parametrize(("when", "clean_pass"), [("full", False), ("full", True), ("over", False)])
@pytest.mark.parametrize("given", [0, 1, 5])
def test_the_loop_keeps_within_the_budget(when, clean_pass, given):
    options = {
        "clean_pass": clean_pass,
        "compression": KVCompressionConfig(budget=1, original=ORIGINAL[when]),
    }
    latents, trace = run(16, given, **options)
    live = 2 + (when == "over")
    assert latents.isfinite().all()
    assert max(record.kv_tokens for record in trace.steps) <= 3 * (1 + live)
    assert sum(len(record.compressions) for record in trace.steps) > 5
    assert 0 < trace.seconds["compress"] < sum(record.seconds for record in trace.steps)
    longer = run(64, given, **options)[1]
    assert longer.windows[0].kv_bytes == trace.windows[0].kv_bytes
    assert trace.flops["actual"] < trace.flops["causal"]


@pytest.mark.parametrize("clean_pass", [False, True])
@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("clean_range", [None, 1])
def test_where_clean_chunks_lie_changes_nothing(clean_pass, given, clean_range):
    options = {"clean_pass": clean_pass, "clean_range": clean_range}
    plain, _ = run(9, given, **options)
    stored, trace = run(9, given, storage=KVStorageConfig(offload=True), **options)
    assert torch.equal(plain, stored)
    assert not any(record.quantizations for record in trace.steps)
    assert torch.allclose(plain, run(9, given, storage=KVStorageConfig(bits=8), **options)[0], atol=0.02)


def test_more_given_chunks_than_fit_are_run_one_by_one():
    plain, storage = run(9, 5)[0], KVStorageConfig(offload=True)
    for compression in (None, KVCompressionConfig(budget=7)):
        stored, _ = run(9, 5, storage=storage, compression=compression)
        assert torch.allclose(plain, stored, atol=1e-6)


def test_every_chunk_that_others_follow_is_quantised_once():
    _, trace = run(9, 2, storage=KVStorageConfig(bits=4))
    events = [event for record in trace.steps for event in record.quantizations]
    assert [event.chunks for event in events] == [[chunk] for chunk in range(7)]
    assert all(0 < event.key_error < 0.2 and 0 < event.value_error < 0.2 for event in events)


@pytest.mark.parametrize(("when", "clean_pass"), [("full", False), ("full", True), ("over", False)])
@pytest.mark.parametrize("given", [0, 1, 5])
@pytest.mark.parametrize("storage", [KVStorageConfig(offload=True), KVStorageConfig(bits=8)])
def test_a_budget_of_stored_chunks(when, clean_pass, given, storage):
    options = {
        "clean_pass": clean_pass,
        "compression": KVCompressionConfig(budget=1, original=ORIGINAL[when]),
    }
    plain, _ = run(16, given, **options)
    stored, trace = run(16, given, storage=storage, **options)
    # more given chunks than one: where nothing is live yet, a cache without a store keeps more of them
    if given <= 1:
        error = (plain - stored).norm() / plain.norm()
        assert error < 0.1 if storage.bits else torch.equal(plain, stored)
    assert max(record.kv_tokens for record in trace.steps) <= 3 * (1 + 2 + (when == "over"))
    compressed = sum(len(record.compressions) for record in trace.steps)
    quantised = sum(len(record.quantizations) for record in trace.steps)
    assert compressed > 5
    assert quantised == (compressed + 1 if storage.bits else 0), "each compression, and the first chunk"
    longer = run(64, given, storage=storage, **options)[1]
    assert longer.windows[0].kv_bytes == trace.windows[0].kv_bytes


def test_newest_clean_chunks_alone_are_seen():
    _, trace = run(12, clean_range=1)
    plain = run(12)[1]
    assert trace.flops["actual"] < 0.6 * plain.flops["actual"]


class ReachingModel(RandomModel):
    """Sees fewer chunks the further on it is, and most once it is clean."""

    def reach(self, local_step):
        return (3, 2, 2, 1, 4)[4 if local_step is None else local_step]


@pytest.mark.parametrize("clean_pass", [False, True])
@pytest.mark.parametrize("given", [0, 2, 5])
@pytest.mark.parametrize(
    ("model", "clean_range"), [(ReachingModel, None), (RandomModel, 0), (RandomModel, 2)]
)
def test_what_nothing_sees_again_is_not_kept(monkeypatch, model, clean_range, given, clean_pass):
    monkeypatch.setattr(sys.modules[__name__], "RandomModel", model)
    options = {"clean_pass": clean_pass, "clean_range": clean_range}
    rolled, trace = run(12, given, **options)
    assert run(40, given, **options)[1].windows[0].kv_bytes == trace.windows[0].kv_bytes
    with monkeypatch.context() as patch:
        patch.setattr(CacheManager, "_chunks_behind", lambda _: None)
        whole, unrolled = run(12, given, **options)
    assert torch.equal(rolled, whole)
    assert trace.windows[0].kv_bytes < unrolled.windows[0].kv_bytes
    assert trace.flops == unrolled.flops


def test_a_long_window_is_not_looked_at_whole_at_every_step(monkeypatch):
    """What is made for a step is for the chunks that may run at it."""
    counts = []
    plain = Denoiser._inputs

    def watched(*args):
        inputs = plain(*args)
        counts.append(len(inputs))
        return inputs

    monkeypatch.setattr(Denoiser, "_inputs", watched)
    run(64, 3, clean_pass=True, compression=KVCompressionConfig(budget=1))
    assert max(counts[1:]) <= 3, "two live chunks and the one that has just finished"


def test_settings_that_exclude_each_other():
    compression = KVCompressionConfig()
    with pytest.raises(ValueError, match="need a KV cache"):
        FlowCacheConfig(whole_window=True, compression=compression)
    with pytest.raises(ValueError, match="clean_pass"):
        FlowCacheConfig(clean_pass=True, compression=replace(compression, original=ORIGINAL["over"]))
    with pytest.raises(ValueError, match="refresh_given"):
        FlowCacheConfig(refresh_given=True, compression=compression)
    with pytest.raises(ValueError, match="total must be at least 3 chunks, as 2 are live"):
        run(compression=replace(compression, total=2))
    wrong = {"budget": 0, "mix_lambda": 2.0, "scorer": "best", "strategy": "row", "max_queries": 0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            KVCompressionConfig(**{name: value})


def test_a_store_without_use_is_told(caplog):
    plain, stored = run(2), run(2, storage=KVStorageConfig(bits=8))
    assert torch.equal(plain[0], stored[0])
    assert plain[1].windows == stored[1].windows
    assert "kv_bits and kv_offload have no effect" in caplog.text


@pytest.mark.parametrize("clean_pass", [False, True])
@pytest.mark.parametrize("given", [0, 2, 5])
@pytest.mark.parametrize("clean_range", [0, 1, 3])
def test_a_rolling_cache_of_stored_chunks(clean_pass, given, clean_range):
    options = {"clean_pass": clean_pass, "clean_range": clean_range}
    plain, _ = run(16, given, **options)
    stored, trace = run(16, given, storage=KVStorageConfig(offload=True), **options)
    assert torch.allclose(plain, stored, atol=1e-6)
    quantised, longer = (run(n, given, storage=KVStorageConfig(bits=8), **options) for n in (16, 48))
    assert torch.allclose(plain, quantised[0], atol=0.05)
    assert quantised[1].windows[0].kv_bytes == longer[1].windows[0].kv_bytes
    assert max(step.kv_tokens for step in trace.steps) == max(
        step.kv_tokens for step in run(16, given, **options)[1].steps
    )
