"""The cache of a window: large enough for every schedule, bounded, and the same wherever clean chunks are."""

from itertools import product

import pytest
import torch
from cached import EIGHT_BITS, HOST, TIMES, run
from random_model import RandomModel

from flowcache.kv.config import KVCompressionConfig
from flowcache.kv.manager import CacheManager

STAIRCASES = [(1, 1), (3, 0), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2)]


@pytest.mark.parametrize(("steps", "stride"), STAIRCASES)
@pytest.mark.parametrize("original_and_pass", TIMES)
@pytest.mark.parametrize(("clean_range", "budget"), [(None, 0), (0, 0), (1, 0), (2, 0), (None, 1), (None, 2)])
def test_storage_changes_nothing(steps, stride, clean_range, budget, original_and_pass):
    original, clean_pass = original_and_pass
    compression = KVCompressionConfig(budget=budget, original=original) if budget else None
    options = {"compression": compression, "clean_range": clean_range, "clean_pass": clean_pass}
    for given, missing in product((0, 2), (0, 2)):
        shape = (7, given, missing, steps, stride)
        plain, stored, quantised = (run(*shape, storage=s, **options)[0] for s in (None, HOST, EIGHT_BITS))
        # For a short chunk, and for given ones before any is live, a cache without a store keeps more tokens.
        if not budget or not (missing or given > budget):
            assert torch.equal(plain, stored)
        assert budget or torch.allclose(plain, quantised, atol=0.05)


@pytest.mark.parametrize("storage", [None, HOST])
@pytest.mark.parametrize(("original", "clean_pass"), TIMES)
@pytest.mark.parametrize(("given", "missing"), [(0, 0), (0, 1), (0, 2), (5, 0)])
def test_a_budget_that_never_fills_changes_nothing(given, missing, original, clean_pass, storage):
    options = {"clean_pass": clean_pass, "storage": storage}
    plain, trace = run(8, given, missing, **options)
    assert "compress" not in trace.seconds
    for budget in (5, 7, 20) if given == 0 else (7,):
        compression = KVCompressionConfig(budget=budget, original=original)
        roomy, trace = run(8, given, missing, compression=compression, **options)
        assert any(record.compressions for record in trace.steps) == (budget == 5)
        if budget > 5 and not (given and original):  # within a step, given chunks are not seen at the first
            assert torch.allclose(plain, roomy, atol=1e-6 if given else 0)


def test_given_chunks_are_not_clean_at_the_only_step():
    compression = KVCompressionConfig(budget=4, original=TIMES[2][0])
    assert len(run(12, 2, steps=1, stride=0, compression=compression)[1].steps) == 1


@pytest.mark.parametrize(("original", "clean_pass"), TIMES)
@pytest.mark.parametrize("given", [0, 1, 5])
@pytest.mark.parametrize("storage", [None, HOST, EIGHT_BITS])
def test_the_loop_keeps_within_the_budget(original, clean_pass, given, storage):
    options = {
        "clean_pass": clean_pass,
        "compression": KVCompressionConfig(budget=1, original=original),
        "storage": storage,
    }
    latents, trace = run(16, given, **options)
    assert max(record.kv_tokens for record in trace.steps) <= 3 * (1 + 2 + (original is not None))
    compressed = sum(len(record.compressions) for record in trace.steps)
    quantised = sum(len(record.quantizations) for record in trace.steps)
    assert compressed > 5
    assert quantised == (compressed + 1 if storage and storage.bits else 0), "and the first chunk"
    assert 0 < trace.seconds["compress"] < sum(record.seconds for record in trace.steps)
    assert run(64, given, **options)[1].windows[0].kv_bytes == trace.windows[0].kv_bytes
    assert trace.flops["actual"] < trace.flops["causal"]
    if given <= 1:  # of more given chunks, a cache without a store keeps more before others are live
        plain = run(16, given, **options | {"storage": None})[0]
        assert (plain - latents).norm() <= (0.1 if storage and storage.bits else 0) * plain.norm()


class ReachingModel(RandomModel):
    """Sees fewer chunks at later local steps, and most once it is clean."""

    def reach(self, local_step):
        return (3, 2, 2, 1, 4)[4 if local_step is None else local_step]


@pytest.mark.parametrize("clean_pass", [False, True])
@pytest.mark.parametrize("given", [0, 2, 5])
@pytest.mark.parametrize("model", [ReachingModel(), 0, 1, 3])
def test_chunks_that_no_step_reads_are_dropped(monkeypatch, model, given, clean_pass):
    options = {"clean_pass": clean_pass}
    options |= {"clean_range": model} if isinstance(model, int) else {"model": model}
    rolled, trace = run(16, given, **options)
    stored, of_stored = run(16, given, storage=HOST, **options)
    assert torch.allclose(rolled, stored, atol=1e-6)
    assert max(s.kv_tokens for s in trace.steps) == max(s.kv_tokens for s in of_stored.steps)
    for storage in (None, EIGHT_BITS):
        short, long = (run(n, given, storage=storage, **options)[1].windows[0].kv_bytes for n in (16, 48))
        assert short == long
    monkeypatch.setattr(CacheManager, "_chunks_behind", lambda _: None)
    whole, unrolled = run(16, given, **options)
    assert torch.equal(rolled, whole)
    assert trace.windows[0].kv_bytes < unrolled.windows[0].kv_bytes
    assert trace.flops == unrolled.flops


def test_a_clean_range_is_seen_alone():
    assert run(12, clean_range=1)[1].flops["actual"] < 0.6 * run(12)[1].flops["actual"]


def test_storage_without_use_is_reported(caplog):
    (plain, trace), (stored, of_stored) = run(2, stride=0), run(2, stride=0, storage=EIGHT_BITS)
    assert torch.equal(plain, stored)
    assert trace.windows == of_stored.windows
    assert "kv_bits" in caplog.text
