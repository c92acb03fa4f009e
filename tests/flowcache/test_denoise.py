"""The loop continues from a state as if it had never stopped, and stops at numbers that are not finite."""

import math
from dataclasses import replace

import pytest
import torch
from random_model import RandomModel, StraightSolver, denoised
from resumed import check_stream, saved
from torch import Tensor
from torch.utils._pytree import tree_leaves

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, Trace, cut_window
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.finite import FiniteWatch, NotFiniteError, check_finite
from flowcache.kv.original import OriginalCompression
from flowcache.noise import BlockNoise
from flowcache.parallel import Group, Layout
from flowcache.reuse import POLICIES, ChunkwiseReuse, Interval, make_policy
from flowcache.reuse.forecast import FORECASTS
from flowcache.state import VideoPart


def make_loop(config: FlowCacheConfig, stride=2, given=0, level=0.0) -> tuple:
    """Denoiser, window and schedule of seven chunks in blocks of noise."""
    noise = BlockNoise(torch.Generator().manual_seed(1), (4, 21, 1, 1), 9)
    prefix = torch.linspace(-1, 1, 12 * given).view(4, 3 * given, 1, 1) if given else None
    window = cut_window(noise, 3, prefix)
    drawn = {"condition_noise": level, "draw_noise": lambda step, shape: torch.full(shape, 0.1 * step)}
    return Denoiser(RandomModel(), config, **drawn), window, StaircaseSchedule(7, 6, stride, window.num_given)


def check(config: FlowCacheConfig, **options) -> None:
    """Stop behind one of the chunks, and continue from there in another loop."""

    def stream(trace, state):
        denoiser, window, schedule = make_loop(config, **options)
        denoiser.trace = trace
        if state is not None:
            denoiser.load_state_dict(state)
        for chunk in denoiser.run(window, schedule, StraightSolver()):
            yield VideoPart(chunk.latents.clone(), chunk.latents.clone(), denoiser.state_dict)

    check_stream(stream, f"{config.policy}{config.forecast}{options}")


ALL = [(name, "linear_velocity") for name in POLICIES]
ALL += [(name, forecast) for name in ("interval", "chunkwise") for forecast in FORECASTS]


@pytest.mark.parametrize(("name", "forecast"), ALL)
def test_every_policy_and_forecast_continues(name, forecast):
    options = {"threshold": 0.6, "warmup_steps": 2} if name in ("chunkwise", "teacache") else {}
    check(FlowCacheConfig(policy=make_policy(name, options), forecast=forecast, clean_pass=True))


def test_no_chunk_of_a_whole_window_is_forecast_when_the_others_run():
    """Two warm-up steps, which each chunk takes at another time, run the whole window."""
    denoiser, window, schedule = make_loop(FlowCacheConfig(policy=Interval(5, warmup_steps=2), whole_window=True))
    list(denoiser.run(window, schedule, StraightSolver()))
    reused = [{event.reused for event in step.events} for step in denoiser.trace.steps]
    assert {True} in reused and {False} in reused and {True, False} not in reused
    assert [step.flops == 0 for step in denoiser.trace.steps] == [each == {True} for each in reused]


WITHIN = KVCompressionConfig(original=OriginalCompression(trigger="step"))
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
    "given ones with noise": {"refresh_given": True},
    "none": {"whole_window": True},
}


@pytest.mark.parametrize(("stride", "given"), [(0, 2), (2, 0), (2, 2), (6, 0)])
@pytest.mark.parametrize("kept", CACHES)
def test_every_cache_continues(kept, given, stride):
    if "newest" in kept and stride == 0:
        stride = 1
    config, level = FlowCacheConfig(policy=ChunkwiseReuse(0.6, 2), **CACHES[kept]), 0.3 if "noise" in kept else 0.0
    check(config, stride=stride, given=given, level=level)


def test_a_state_holds_live_chunks_alone_and_exists_while_a_window_runs():
    """It does not grow with the video."""
    config = FlowCacheConfig(policy=Interval(2), compression=KVCompressionConfig(), clean_pass=True)
    denoiser, window, schedule = make_loop(config)
    with pytest.raises(RuntimeError, match="state_dict"):
        denoiser.state_dict()
    sizes = [len(saved(denoiser.state_dict(), Trace())) for _ in denoiser.run(window, schedule, StraightSolver())]
    assert max(sizes[4:]) < 1.1 * max(sizes[2:4])
    assert not denoiser.in_window


class BreakingModel(RandomModel):
    """Returns ``value`` for the last token of the first chunk in one of its calls."""

    def __init__(self, call: int, value: float) -> None:
        super().__init__()
        self.calls_left, self.value, self.broken = call, value, None

    def blocks(self, inputs, tokens, cache):
        outputs = super().blocks(inputs, tokens, cache)
        if self.calls_left == 0:
            self.broken = inputs[0].chunk
            outputs[0][0, -1, 0] = self.value
        self.calls_left -= 1
        return outputs


MEASURED = {"policy": ChunkwiseReuse(0.01, 1), "clean_pass": True, "compression": KVCompressionConfig()}
CONFIGS = {
    "plain": {"policy": "none"},
    "clean pass": {"policy": "none", "clean_pass": True},
    "reused": {"policy": Interval(2), "clean_pass": True, "forecast": "hold_residual"},
    "displaced": {"policy": Interval(2), "forecast": "hold_displacement"},
    "measured": MEASURED,
    "whole window": {"policy": "none", "whole_window": True},
}


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loop_stops_before_anything_broken_leaves_it(name, value):
    stopped = 0
    for call in range(12):
        window = cut_window(torch.zeros(4, 12, 1, 1), 2, torch.zeros(4, 5, 1, 1))
        schedule, model = StaircaseSchedule(6, 4, 2, window.num_given), BreakingModel(call, value)
        loop = Denoiser(model, FlowCacheConfig(**CONFIGS[name]))
        try:
            for _ in loop.run(window, schedule, StraightSolver()):
                assert model.broken is None
                leaves = tree_leaves(loop.state_dict())
                assert all(torch.as_tensor(leaf).isfinite().all() for leaf in leaves if leaf is not None)
            assert model.broken is None, "it has fewer calls"
        except NotFiniteError as error:
            assert f"chunk {model.broken} " in str(error)
            if name == "measured" and "latents" in str(error):
                assert model.calls_left == -1, "the next decision shows it"
            stopped += 1
    assert stopped >= 8


def test_an_indicator_that_breaks_is_named():
    model = RandomModel()
    model.indicators = lambda inputs: [item.latents * math.nan for item in inputs]
    loop = Denoiser(model, FlowCacheConfig(**MEASURED))
    with pytest.raises(NotFiniteError, match=r"distance of chunk 0 at step 1: .*nan"):
        list(loop.run(cut_window(torch.zeros(4, 12, 1, 1), 2), StaircaseSchedule(6, 4, 2), StraightSolver()))


def test_the_first_bad_step_is_named():
    watch = FiniteWatch()
    for step, value in enumerate([1.0, math.inf, math.nan]):
        watch.observe(f"step {step}", torch.tensor([0.0, value], dtype=torch.float16))
    with pytest.raises(NotFiniteError, match=r"step 1.*guidance_scale"):
        watch.check()
    watch.check()
    large = torch.full((1000,), 6e4, dtype=torch.float16)
    assert check_finite("large", large) is large
    check_finite("empty", torch.zeros(0, 3))


def test_noise_of_given_frames_is_that_of_the_first_process():
    """Without ``draw_noise``, each process draws from a generator of its own."""

    class Second(Group):
        def broadcast(self, tensor, device):
            return torch.ones(tensor.shape)

    class Shared(RandomModel):
        def cache_layout(self):
            return replace(super().cache_layout(), processes=Layout(world=Second()))

    def show(step: int, shape: torch.Size) -> Tensor:
        return torch.ones(shape)

    videos = []
    for model, draw in ((Shared(), None), (RandomModel(), show)):
        denoiser, window, schedule = make_loop(FlowCacheConfig(), given=1, level=0.5)
        denoiser = replace(denoiser, model=model, draw_noise=draw)
        videos.append(denoised(denoiser, window, schedule, StraightSolver()))
    assert torch.equal(*videos)
