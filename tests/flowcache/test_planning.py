"""Plans against plain search."""

from itertools import combinations

import numpy as np
import pytest
import torch

from flowcache.chunk_model import ChunkInput
from flowcache.reuse.forecast import VelocityForecast
from flowcache.reuse.planning import PathRecorder, harm_of, measure_amplification, plan_steps

TIMES = np.linspace(1, 0, 10) ** 1.5


@pytest.fixture
def velocities():
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 6, (1, 40))
    return np.sin(4 * TIMES[:-1, None] ** 2 + phases)


def gram_of(velocities):
    return velocities @ velocities.T / velocities.shape[1]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("num_computed", [3, 5, 8])
def test_no_other_plan_does_less_harm(velocities, order, num_computed):
    gram, weights = gram_of(velocities), np.linspace(5, 1, 9)
    plan = plan_steps(TIMES, gram, num_computed, order, weights)
    plans = [(0, *rest, 8) for rest in combinations(range(1, 8), num_computed - 2)]
    best = min(plans, key=lambda steps: harm_of(TIMES, gram, steps, order, weights))
    assert plan == list(best)


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
    assert harm_of(TIMES, gram_of(velocities), computed) == pytest.approx(total, rel=1e-9)


def test_both_ends_are_kept(velocities):
    plan = plan_steps(TIMES, gram_of(velocities), 6, warmup_steps=3, final_steps=2)
    assert {0, 1, 2, 7, 8} <= set(plan)
    assert len(plan) == 6


@pytest.mark.parametrize(("wrong", "name"), [({"num_computed": 1}, "num_computed"), ({"order": 2}, "order")])
def test_what_cannot_be_planned_is_named(velocities, wrong, name):
    with pytest.raises(ValueError, match=name):
        plan_steps(TIMES, gram_of(velocities), **{"num_computed": 4} | wrong)


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
    assert plan_steps(recorder.times, recorder.gram, 3) == [0, 1, 2]


def test_amplification_is_what_comes_of_a_skipped_step_over_its_harm(velocities):
    gram = gram_of(velocities)

    def final_without(step):
        harm = harm_of(TIMES, gram, [k for k in range(9) if k != step])
        return torch.full((3, 3), (5 * harm) ** 0.5)

    growth = measure_amplification(TIMES, gram, torch.zeros(3, 3), final_without)
    np.testing.assert_allclose(growth, 5, rtol=1e-5)
