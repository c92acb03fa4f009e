"""A loop that goes on from a state is the loop that never stopped."""

from __future__ import annotations

import random
from typing import get_args

import pytest
import torch
from random_model import RandomModel, StraightSolver
from resumed import decided, loaded, saved

from flowcache import Denoiser, FlowCacheConfig, LoopOptions, StaircaseSchedule, cut_window
from flowcache.config import KVCompressionConfig, KVStorageConfig, PolicyName
from flowcache.kv.original import OriginalCompression
from flowcache.noise import BlockNoise
from flowcache.reuse.forecast import FORECASTS

STEPS = 6
OVER = KVCompressionConfig(budget=1, original=OriginalCompression(within_step=True))


class Run:
    """A window of seven chunks in blocks of noise; a fresh one is at its beginning."""

    def __init__(self, config: FlowCacheConfig, stride=2, given=0, level=0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        noise = BlockNoise(generator, (4, 21, 1, 1), 9)
        prefix = torch.linspace(-1, 1, 12 * given).view(4, 3 * given, 1, 1) if given else None
        self.window = cut_window(noise, 3, prefix)
        self.schedule = StaircaseSchedule(len(self.window.chunks), STEPS, stride, self.window.num_given)
        options = LoopOptions(
            whole_window=config.whole_window,
            refresh_given=config.refresh_given,
            clean_pass=config.clean_pass,
            condition_noise=level,
            compression=config.compression,
            clean_range=config.clean_range,
            storage=config.storage,
            draw_noise=lambda step, shape: torch.full(shape, 0.1 * step),
        )
        self.denoiser = Denoiser(RandomModel(), config.make_policy(STEPS), config.make_forecast(), options)

    def chunks(self):
        for chunk in self.denoiser.run(self.window, self.schedule, StraightSolver()):
            yield chunk.chunk, chunk.latents.clone()


def check(config: FlowCacheConfig, **options) -> None:
    """Stop behind two of the chunks, and go on from there in another run."""
    whole, clean, states = Run(config, **options), [], []
    for chunk in whole.chunks():
        clean.append(chunk)
        states.append(saved(whole.denoiser.state_dict(), whole.denoiser.trace))
    assert len(clean) == len(whole.window.chunks) - whole.window.num_given
    for count in random.Random(0).sample(range(1, len(states)), 2):
        other = Run(config, **options)
        state, other.denoiser.trace = loaded(states[count - 1])
        other.denoiser.load_state_dict(state)
        rest = list(other.chunks())
        assert [c for c, _ in rest] == [c for c, _ in clean[count:]]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(rest, clean[count:], strict=True))
        assert decided(other.denoiser.trace) == decided(whole.denoiser.trace)


ALL = [(policy, "linear_velocity") for policy in get_args(PolicyName)]
ALL += [(policy, forecast) for policy in ("fixed_interval", "chunkwise") for forecast in FORECASTS]


@pytest.mark.parametrize(("policy", "forecast"), ALL)
def test_every_policy_and_forecast_goes_on(policy, forecast):
    settings = {"threshold": 0.6, "tolerance": 0.1, "warmup_steps": 2, "computed_steps": (0, 2, 4)}
    check(FlowCacheConfig(policy=policy, forecast=forecast, clean_pass=True, **settings))


CACHES = {
    "all that was seen": {},
    "compressed when full": {"compression": KVCompressionConfig(budget=2), "clean_pass": True},
    "compressed within a step": {"compression": OVER},
    "the newest": {"clean_range": 1},
    "in host memory": {"storage": KVStorageConfig(offload=True), "clean_pass": True},
    "in eight bits": {"storage": KVStorageConfig(bits=8)},
    "compressed in four bits": {"storage": KVStorageConfig(bits=4), "compression": KVCompressionConfig()},
    "the newest in eight bits": {"storage": KVStorageConfig(bits=8), "clean_range": 1},
    "given ones anew": {"refresh_given": True},
    "none": {"whole_window": True},
}


@pytest.mark.parametrize(("stride", "given"), [(0, 2), (2, 0), (2, 2), (6, 0)])
@pytest.mark.parametrize("kept", CACHES)
def test_every_cache_goes_on(kept, given, stride):
    if "newest" in kept and stride == 0:
        stride = 1
    check(FlowCacheConfig(threshold=0.6, warmup_steps=2, **CACHES[kept]), stride=stride, given=given)


def test_noise_on_given_frames_goes_on():
    check(FlowCacheConfig(refresh_given=True), given=2, level=0.3)


def test_a_state_holds_what_is_live_and_no_more():
    """It does not grow with the video."""
    run = Run(FlowCacheConfig(compression=KVCompressionConfig(budget=1), clean_pass=True))
    sizes = [len(saved(run.denoiser.state_dict(), type(run.denoiser.trace)())) for _ in run.chunks()]
    assert max(sizes[4:]) < 1.1 * max(sizes[2:4])


def test_there_is_no_state_before_the_first_chunk_and_after_the_last():
    run = Run(FlowCacheConfig())
    with pytest.raises(RuntimeError, match="state_dict has nothing to tell"):
        run.denoiser.state_dict()
    assert list(run.chunks())
    assert not run.denoiser.in_window
