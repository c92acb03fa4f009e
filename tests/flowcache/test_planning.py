"""Plans against plain search."""

from itertools import combinations

import numpy as np
import pytest
import torch

from flowcache.chunk_model import ChunkInput
from flowcache.reuse.forecast import VelocityForecast
from flowcache.reuse.planned import computed_share, steps_in_staircase
from flowcache.reuse.planning import PathRecorder, all_harms, harm_of, measure_amplification, plan_steps

TIMES = np.linspace(1, 0, 10) ** 1.5


@pytest.fixture
def velocities():
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 6, (1, 40))
    return np.sin(4 * TIMES[:-1, None] ** 2 + phases)


def gram_of(velocities):
    return velocities @ velocities.T / velocities.shape[1]


def harm_in_staircase(plan, harms, stride):
    return sum(harm_of(harms, row) for row in steps_in_staircase(plan, 9, stride))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("share", "stride"), [(0.35, 9), (0.4, 3), (0.7, 0)])
def test_no_other_small_plan_does_less_harm(velocities, order, share, stride):
    gram, weights = gram_of(velocities), np.linspace(5, 1, 9)
    harms = all_harms(TIMES, gram, order, weights)
    plan = plan_steps(TIMES, gram, share, stride, order, weights)
    assert plan == sorted(plan) and plan[0] == 0 and computed_share(plan, 9, stride) <= share
    every = [(0, *steps) for n in range(9) for steps in combinations(range(1, 9), n)]
    affordable = [steps for steps in every if computed_share(steps, 9, stride) <= share]
    least = min(harm_in_staircase(steps, harms, stride) for steps in affordable)
    assert harm_in_staircase(plan, harms, stride) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_a_plan_does_no_more_harm_than_any_interval(velocities, stride):
    harms = all_harms(TIMES, gram_of(velocities))
    for interval in (2, 3, 4):
        even = range(0, 9, interval)
        plan = plan_steps(TIMES, gram_of(velocities), computed_share(even, 9, stride), stride)
        assert harm_in_staircase(plan, harms, stride) <= harm_in_staircase(even, harms, stride)


def test_harm_is_the_squared_displacement_of_the_forecasts(velocities):
    forecast = VelocityForecast(1)
    forecast.begin(TIMES)
    computed, astray, total = (0, 1, 4, 8), 0, 0.0
    for step in range(9):
        if step in computed:
            total += (np.square(astray)).mean() if step else 0.0
            astray = np.zeros(40)
            forecast._learn(0, step, velocities[step])
        else:
            length = TIMES[step + 1] - TIMES[step]
            astray += length * (velocities[step] - forecast._carry_on(0, step))
    assert harm_of(all_harms(TIMES, gram_of(velocities)), computed) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("wrong", "name"), [({"share": 0.1}, "share"), ({"share": 1.5}, "share"), ({"order": 2}, "order")]
)
def test_what_cannot_be_planned_is_named(velocities, wrong, name):
    with pytest.raises(ValueError, match=name):
        plan_steps(TIMES, gram_of(velocities), **{"share": 0.4, "stride": 3} | wrong)


def test_a_recorder_averages_inner_products_over_chunks():
    recorder, paths = PathRecorder(), torch.randn(2, 3, 4, 1, 2, 2)
    recorder.begin((1.0, 0.6, 0.3, 0.0))
    for chunk, path in enumerate(paths):
        for step, velocity in enumerate(path):
            item = ChunkInput(chunk, 0, torch.zeros(4, 1, 2, 2), (0.0,), step)
            recorder.observe_evaluation([item], [], [], [velocity])
        recorder.forget(chunk)
    expected = torch.stack([path.flatten(1) @ path.flatten(1).T / 16 for path in paths]).mean(0)
    np.testing.assert_allclose(recorder.gram, expected.numpy(), rtol=1e-6, atol=1e-7)
    assert plan_steps(recorder.times, recorder.gram, share=1, stride=3) == [0, 1, 2]


def test_amplification_is_what_comes_of_a_skipped_step_over_its_harm(velocities):
    gram = gram_of(velocities)

    def final_without(step):
        harm = harm_of(all_harms(TIMES, gram), [k for k in range(9) if k != step])
        return torch.full((3, 3), (5 * harm) ** 0.5)

    growth = measure_amplification(TIMES, gram, torch.zeros(3, 3), final_without)
    np.testing.assert_allclose(growth, 5, rtol=1e-5)
