"""The memory of a window is enough for every schedule, and where clean chunks lie changes nothing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from denoised import denoised
from random_model import RandomModel, StraightSolver

from flowcache import Denoiser, LoopOptions, StaircaseSchedule, cut_window
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.kv.original import OriginalCompression
from flowcache.reuse.forecast import VelocityForecast
from flowcache.reuse.policy import NoReuse

ORIGINAL = {"full": None, "over": OriginalCompression(within_step=True)}
HOST, EIGHT_BITS = KVStorageConfig(offload=True), KVStorageConfig(bits=8)


def run(chunks: int, given: int, missing: int, steps: int, stride: int, **options) -> torch.Tensor:
    """Denoise chunks of three frames, the last one shorter by ``missing``."""
    noise = torch.randn(4, 3 * chunks - missing, 1, 1, generator=torch.Generator().manual_seed(1))
    window = cut_window(noise, 3, noise[:, : 3 * given].clone() if given else None)
    schedule = StaircaseSchedule(chunks, steps, stride, given)
    denoiser = Denoiser(RandomModel(), NoReuse(), VelocityForecast(), LoopOptions(**options))
    return denoised(denoiser, window, schedule, StraightSolver())


@pytest.mark.parametrize("clean_pass", [False, True])
@pytest.mark.parametrize(("steps", "stride"), [(1, 1), (3, 0), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2)])
@pytest.mark.parametrize("clean_range", [None, 0, 1, 2])
def test_a_clean_range(steps, stride, clean_range, clean_pass):
    for given, missing in product((0, 2), (0, 2)):
        shape = (7, given, missing, steps, stride)
        options = {"clean_range": clean_range, "clean_pass": clean_pass}
        plain = run(*shape, **options)
        assert torch.equal(plain, run(*shape, storage=HOST, **options))
        assert torch.allclose(plain, run(*shape, storage=EIGHT_BITS, **options), atol=0.05)


@pytest.mark.parametrize(("when", "clean_pass"), [("full", False), ("full", True), ("over", False)])
@pytest.mark.parametrize(("steps", "stride"), [(1, 1), (3, 0), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2)])
def test_compression(steps, stride, when, clean_pass):
    for given, missing, budget in product((0, 2), (0, 2), (1, 2)):
        shape = (7, given, missing, steps, stride)
        options = {
            "compression": KVCompressionConfig(budget=budget, original=ORIGINAL[when]),
            "clean_pass": clean_pass,
        }
        plain = run(*shape, **options)
        stored = run(*shape, storage=HOST, **options)
        # For a short chunk, and for given ones before any is live, a cache without a store keeps more tokens.
        assert missing or given > budget or torch.equal(plain, stored)
        run(*shape, storage=EIGHT_BITS, **options)
