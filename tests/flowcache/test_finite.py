"""The loop stops at numbers that are not finite, and no state holds any."""

import math

import pytest
import torch
from random_model import RandomModel, StraightSolver

from flowcache import Denoiser, FlowCacheConfig, StaircaseSchedule, cut_window
from flowcache.config import KVCompressionConfig
from flowcache.finite import FiniteWatch, NotFiniteError, check_finite
from flowcache.reuse import ChunkwiseReuse, Interval


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


def tensors_of(state):
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


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
                assert all(tensor.isfinite().all() for tensor in tensors_of(loop.state_dict()))
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
