"""A loop that continues from a state is the loop that never stopped."""

import random

import pytest
import torch
from random_model import RandomModel, StraightSolver
from resumed import decided, loaded, saved

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, cut_window
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.kv.original import OriginalCompression
from flowcache.noise import BlockNoise
from flowcache.reuse import POLICIES, ChunkwiseReuse, Interval, make_policy
from flowcache.reuse.forecast import FORECASTS


class Run:
    """A window of seven chunks in blocks of noise, at its beginning."""

    def __init__(self, config: FlowCacheConfig, stride=2, given=0, level=0.0) -> None:
        noise = BlockNoise(torch.Generator().manual_seed(1), (4, 21, 1, 1), 9)
        prefix = torch.linspace(-1, 1, 12 * given).view(4, 3 * given, 1, 1) if given else None
        self.window = cut_window(noise, 3, prefix)
        self.schedule = StaircaseSchedule(len(self.window.chunks), 6, stride, self.window.num_given)
        self.denoiser = Denoiser(
            RandomModel(), config, condition_noise=level, draw_noise=lambda step, shape: torch.full(shape, 0.1 * step)
        )

    def chunks(self):
        for chunk in self.denoiser.run(self.window, self.schedule, StraightSolver()):
            yield chunk.chunk, chunk.latents.clone()


def check(config: FlowCacheConfig, **options) -> None:
    """Stop behind two of the chunks, and continue from there in another run."""
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


ALL = [(name, "linear_velocity") for name in POLICIES]
ALL += [(name, forecast) for name in ("interval", "chunkwise") for forecast in FORECASTS]


@pytest.mark.parametrize(("name", "forecast"), ALL)
def test_every_policy_and_forecast_continues(name, forecast):
    options = {"threshold": 0.6, "warmup_steps": 2} if name in ("chunkwise", "teacache") else {}
    check(FlowCacheConfig(policy=make_policy(name, options), forecast=forecast, clean_pass=True))


WITHIN = KVCompressionConfig(original=OriginalCompression(within_step=True))
CACHES = {
    "all that was seen": {},
    "compressed when full": {"compression": KVCompressionConfig(budget=2), "clean_pass": True},
    "compressed within a step": {"compression": WITHIN},
    "the newest": {"clean_range": 1},
    "in host memory": {"storage": KVStorageConfig(offload=True), "clean_pass": True},
    "in eight bits": {"storage": KVStorageConfig(bits=8)},
    "compressed in four bits": {"storage": KVStorageConfig(bits=4), "compression": KVCompressionConfig()},
    "the newest in eight bits": {"storage": KVStorageConfig(bits=8), "clean_range": 1},
    "given ones at every step": {"refresh_given": True},
    "none": {"whole_window": True},
}


@pytest.mark.parametrize(("stride", "given"), [(0, 2), (2, 0), (2, 2), (6, 0)])
@pytest.mark.parametrize("kept", CACHES)
def test_every_cache_continues(kept, given, stride):
    if "newest" in kept and stride == 0:
        stride = 1
    check(FlowCacheConfig(policy=ChunkwiseReuse(0.6, 2), **CACHES[kept]), stride=stride, given=given)


def test_noise_on_given_frames_continues():
    check(FlowCacheConfig(refresh_given=True), given=2, level=0.3)


def test_a_state_holds_live_chunks_alone_and_exists_while_a_window_runs():
    """It does not grow with the video."""
    run = Run(FlowCacheConfig(policy=Interval(2), compression=KVCompressionConfig(), clean_pass=True))
    with pytest.raises(RuntimeError, match="state_dict"):
        run.denoiser.state_dict()
    sizes = [len(saved(run.denoiser.state_dict(), type(run.denoiser.trace)())) for _ in run.chunks()]
    assert max(sizes[4:]) < 1.1 * max(sizes[2:4])
    assert not run.denoiser.in_window
