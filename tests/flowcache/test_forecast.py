"""What stands in for the model."""

import pytest
import torch

from flowcache import FlowCacheConfig
from flowcache.chunk_model import ChunkInput
from flowcache.reuse.forecast import REACH, VelocityForecast, lagrange_weights, within_reach

TIMES = (1.0, 0.9, 0.7, 0.4, 0.35, 0.1, 0.0)


def item(local_step, chunk=0):
    return ChunkInput(chunk, 0, torch.zeros(1, 1, 1, 1), (0.0,), local_step)


def taught(order, path, steps, with_errors=False):
    """A forecast that saw the velocities of a path at some steps."""
    forecast = VelocityForecast(order)
    forecast.begin(TIMES, with_errors)
    for step in steps:
        velocity = torch.full((1, 1, 1, 1), path(TIMES[step]), dtype=torch.float64)
        forecast.observe_evaluation([item(step)], [], [], [velocity])
    return forecast


def predicted(forecast, step):
    return forecast.predict(None, [item(step)])[0].item()


def test_lagrange_weights_by_hand():
    assert lagrange_weights([1.0, 0.5], 0.0) == [-1.0, 2.0]
    assert lagrange_weights([0.0, 1.0, 3.0], 2.0) == pytest.approx([-1 / 3, 1.0, 1 / 3])


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_polynomial_of_the_order_is_forecast_exactly_on_uneven_times(order):
    forecast = taught(order, lambda t: 2 + sum(3 * t**k for k in range(1, order + 1)), steps=(0, 1, 2))
    expected = 2 + sum(3 * 0.4**k for k in range(1, order + 1)) if order else 2
    assert predicted(forecast, 3) == pytest.approx(expected)


def test_with_few_evaluations_the_order_is_lower():
    assert predicted(taught(2, lambda t: t**2, steps=(0,)), 1) == 1.0
    assert predicted(taught(2, lambda t: 5 * t, steps=(0, 1)), 2) == pytest.approx(3.5)


def test_a_forecast_stays_where_its_reach_ends():
    assert within_reach([1.0, 0.9], 0.0) == pytest.approx(0.9 - REACH * 0.1)
    assert within_reach([0.4, 0.35], 0.3) == 0.3
    assert within_reach([0.0, 0.1], 1.0) == pytest.approx(0.1 + REACH * 0.1)


def test_errors_are_relative_and_told_once():
    forecast = taught(1, lambda t: t**2, steps=(0, 1, 2), with_errors=True)
    ((chunk, error),) = forecast.pop_errors().items()
    line = 0.81 + (0.81 - 1.0) / (0.9 - 1.0) * (0.7 - 0.9)
    assert chunk == 0
    assert error.value.item() == pytest.approx((0.49 - line) / 0.49)
    assert error.spread == pytest.approx(0.3 * 0.2)
    # the second derivative's half is 1: error = spread
    assert error.value.item() * 0.49 == pytest.approx(error.spread)
    assert forecast.pop_errors() == {}
    assert forecast.spread(0, 3) == pytest.approx(0.5 * 0.3)


def test_nothing_is_held_of_a_forgotten_chunk_or_an_earlier_window():
    forecast = taught(1, lambda t: t, steps=(0, 1, 2), with_errors=True)
    forecast.forget(0)
    assert not forecast.knows(0)
    assert forecast.pop_errors() == {}
    forecast = taught(1, lambda t: t, steps=(0, 1, 2))
    forecast.begin(TIMES)
    assert not forecast.knows(0)


def test_displacements_have_no_errors_to_control():
    with pytest.raises(ValueError, match="forecast must be of a velocity or a residual"):
        FlowCacheConfig(policy="error_controlled", forecast="hold_displacement")
