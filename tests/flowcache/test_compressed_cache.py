"""A cache that keeps within its budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from cached import EIGHT_BITS, TOKENS, fill, run

from flowcache import FlowCacheConfig
from flowcache.kv import compression
from flowcache.kv.cache import CacheFullError
from flowcache.kv.compression import CompressedKVCache
from flowcache.kv.config import KVCompressionConfig
from flowcache.kv.layout import CacheLayout
from flowcache.kv.original import OriginalCompression
from flowcache.kv.scorers import SCORERS, Paper, Random, Scorer
from flowcache.kv.selection import TokenSelector
from flowcache.kv.within_step import WithinStepCache
from flowcache.registry import make_by_name

LAYOUT = CacheLayout(num_layers=2, num_branches=2, num_heads=2, head_dim=4)


def make_cache(chunks: int, kind=CompressedKVCache, layout=LAYOUT, **options) -> CompressedKVCache:
    selector = TokenSelector(KVCompressionConfig(**options), 2, TOKENS)
    return kind(layout, chunks * TOKENS, selector)


@pytest.mark.parametrize("missing", [1, 4, 5, 6])
def test_keeps_whole_tokens_and_leaves_live_chunks_alone(missing):
    cache = make_cache(4)
    stored = [fill(cache, chunk) for chunk in range(4)]
    cache.make_room([0, 1], missing)
    cache.enter(4, missing)
    assert cache.chunks == [2, 3, 4]
    assert cache.num_kept == 2 * TOKENS - missing
    clean_keys, clean_values = (torch.cat(parts, dim=2) for parts in zip(*stored[:2], strict=True))
    for layer in range(2):
        keys, values = cache.read(layer, 3)
        assert torch.equal(keys[:, cache.num_kept :], torch.cat([stored[2][0], stored[3][0]], dim=2)[layer])
        for branch, head in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
            kept, clean = keys[branch, : cache.num_kept, head], clean_keys[layer, branch, :, head]
            places = [int((clean == key).all(dim=-1).nonzero()) for key in kept]
            assert places == sorted(set(places)), "each once, in the order of time"
            own = clean_values[layer, branch, places, head]
            assert torch.equal(values[branch, : cache.num_kept, head], own), "values stay with their keys"


def test_events_name_the_origin_of_kept_tokens():
    cache = make_cache(3, scorer="recency")
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
    scorer, kind = FirstQuery(), CompressedKVCache if due is None else WithinStepCache
    cache = make_cache(3, kind, replace(LAYOUT, num_layers=1), scorer=scorer)
    for chunk in range(3):
        cache.enter(chunk, TOKENS)
    cache.prepare(due or {}, TOKENS - 1)
    for chunk, branch, value in asked:
        shape = (TOKENS, 2, 4) if branch is not None else (2, TOKENS, 2, 4)
        cache.observe(0, chunk, torch.full(shape, value), branch)
    if due is None:
        cache.make_room([0, 1], TOKENS)
    assert scorer.seen == expected


def test_the_first_token_survives_many_rounds_in_constant_memory():
    cache = make_cache(3, scorer="sink_window")
    keys, before = fill(cache, 0)[0], cache.nbytes
    fill(cache, 1)
    for chunk in range(2, 50):
        fill(cache, chunk)
        cache.make_room([chunk - 2, chunk - 1], TOKENS)
    assert torch.equal(cache.read(0)[0][:, 0], keys[0][:, 0])
    assert cache.nbytes == before and cache.num_tokens <= cache.capacity


def test_full_of_live_chunks_is_an_error():
    cache = make_cache(2)
    fill(cache, 0)
    fill(cache, 1)
    with pytest.raises(CacheFullError, match="budget"):
        cache.make_room([], TOKENS)
    with pytest.raises(CacheFullError, match="chunk 2"):
        cache.enter(2, TOKENS)


def test_layers_together_are_compressed_as_each_alone(monkeypatch):
    caches = []
    for numbers in (2**22, 1):
        monkeypatch.setattr(compression, "NUMBERS_AT_ONCE", numbers)
        torch.manual_seed(1)
        caches.append(make_cache(3))
        for chunk in range(6):
            caches[-1].make_room(caches[-1].chunks[:2], TOKENS)
            fill(caches[-1], chunk)
    for layer in range(2):
        for together, alone in zip(*(cache.read(layer) for cache in caches), strict=True):
            assert torch.equal(together, alone)
    assert caches[0].pop_events() == caches[1].pop_events()


def test_scorers_are_made_by_name_with_options_as_typed():
    assert make_by_name("scorer", SCORERS, "paper", {"mix_lambda": "0.5", "pool": 3}) == Paper(3, 0.5)
    own = KVCompressionConfig(scorer="random")
    assert own.scorer == Random() and own.as_dict()["scorer"] == "random" and own.as_dict()["seed"] == 0
    assert KVCompressionConfig(mix_lambda=0.2).scorer == Paper(mix_lambda=0.2)
    wrong = [("best", {}), ("paper", {"lambda": 1}), ("paper", {"mix_lambda": "2"}), ("paper", {"pool": "x"})]
    for name, options in [*wrong, ("paper", {"pool": 4}), ("recency", {"seed": 1})]:
        with pytest.raises(ValueError, match=next(iter(options), "scorer")):
            make_by_name("scorer", SCORERS, name, options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", 0), ("mix_lambda", 2.0), ("scorer", "best"), ("strategy", "row"), ("max_queries", 0)],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        KVCompressionConfig(**{name: value})


def test_settings_of_the_cache_that_exclude_each_other():
    within = KVCompressionConfig(original=OriginalCompression(within_step=True))
    for settings in ({"whole_window": True}, {"refresh_given": True}, {"clean_pass": True}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            FlowCacheConfig(**settings, compression=within)
        if "clean_pass" not in settings:
            with pytest.raises(ValueError, match=next(iter(settings))):
                FlowCacheConfig(**settings, storage=EIGHT_BITS)
    with pytest.raises(ValueError, match="total"):
        run(compression=KVCompressionConfig(total=2))
