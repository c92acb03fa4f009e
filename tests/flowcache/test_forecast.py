"""What replaces the model's output."""

import pytest
import torch

from flowcache.chunk_model import ChunkInput
from flowcache.reuse.forecast import REACH, VelocityForecast

TIMES = (1.0, 0.9, 0.7, 0.4, 0.35, 0.1, 0.0)


def item(local_step):
    return ChunkInput(0, 0, torch.zeros(1, 1, 1, 1), (0.0,), local_step)


def taught(order, path, steps):
    """A forecast that saw the velocities of a path at some steps."""
    forecast = VelocityForecast(order)
    forecast.begin(TIMES)
    for step in steps:
        velocity = torch.full((1, 1, 1, 1), path(TIMES[step]), dtype=torch.float64)
        forecast.observe_evaluation([item(step)], [], [], [velocity])
    return forecast


@pytest.mark.parametrize(
    ("order", "steps", "step", "expected"),
    [
        (0, (0, 1, 2), 3, 5 * 0.7),
        (1, (0, 1, 2), 3, 5 * 0.4),  # a line is exact at uneven times
        (1, (0,), 1, 5 * 1.0),  # one evaluation is held
        (1, (0, 1), 5, 5 * (0.9 - REACH * 0.1)),  # clamped
        (1, (0, 0), 1, 5 * 1.0),  # two evaluations at one time
    ],
)
def test_forecast_of_a_line(order, steps, step, expected):
    forecast = taught(order, lambda t: 5 * t, steps)
    assert forecast.predict(None, [item(step)])[0].item() == pytest.approx(expected)


def test_nothing_is_kept_of_a_forgotten_chunk_or_an_earlier_window():
    for clear in (lambda f: f.forget(0), lambda f: f.begin(TIMES)):
        forecast = taught(1, lambda t: t, steps=(0, 1, 2))
        assert forecast.evaluated_at(0) == [0.9, 0.7]
        clear(forecast)
        assert not forecast.knows(0)
