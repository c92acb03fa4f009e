"""Reuse policies and their options, and the forecasts that replace the model's output."""

from dataclasses import dataclass

import pytest
import torch

from flowcache import FlowCacheConfig, KVStorageConfig, ReusePolicy
from flowcache.chunk_model import ChunkInput, Solver
from flowcache.methods import INTERVAL_SCALE
from flowcache.reuse import ChunkwiseReuse, Interval, NoReuse, TeaCache, make_policy
from flowcache.reuse.forecast import REACH, CorrectedVelocity, VelocityForecast
from flowcache.reuse.interval import spread_steps

TIMES = (1.0, 0.9, 0.7, 0.4, 0.35, 0.1, 0.0)


def indicator(value):
    return torch.full((3,), value)


def begun(policy, num_chunk_steps=9):
    policy.begin(num_chunk_steps, (), None)
    return policy


def walk(policy, values):
    """Decisions for one chunk whose indicator takes these values, one a step."""
    count = len(values)
    begun(policy, count)
    return [policy.decide(i, count, {0: i}, {0: indicator(v)})[0] for i, v in enumerate(values)]


def test_chunkwise_accumulates_over_reuses_and_restarts_when_computed():
    decisions = walk(ChunkwiseReuse(0.25, 1), [1.0, 1.1, 1.21, 1.331, 1.4641, 1.6105, 1.7716])
    assert [d.reuse for d in decisions] == [False, True, True, False, True, True, False]
    assert [d.accumulated for d in decisions[1:4]] == pytest.approx([0.1, 0.2, 0.3], rel=1e-5)
    assert decisions[4].accumulated == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("policy", "values", "computed"),
    [
        (ChunkwiseReuse(0.5, 1, 0), [1.0, 1.5], [0, 1]),  # the threshold is reached, not passed
        (ChunkwiseReuse(0.0, 1), [1.0] * 4, [0, 1, 2, 3]),
        (ChunkwiseReuse(9.0, 3, 2), [1.0] * 6, [0, 1, 2, 4, 5]),
        (ChunkwiseReuse(9.0, 1, 0, final_window_steps=2), [1.0] * 5, [0, 3, 4]),
        (TeaCache(9.0, 2), [1.0] * 6, [0, 1, 5]),
        (TeaCache(0.0, 1), [1.0] * 3, [0, 1, 2]),
        (ChunkwiseReuse(0.5, 1, 0, coefficients=(10.0, 0.0)), [1.0, 1.04, 1.1], [0, 2]),
    ],
)
def test_steps_that_are_computed(policy, values, computed):
    assert [i for i, d in enumerate(walk(policy, values)) if not d.reuse] == computed


@pytest.mark.parametrize(
    ("steps", "changes", "reused"),
    [
        ((5, 3), (1.05, 1.05), [True, True]),
        ((5, 3), (1.05, 2.0), [False, False]),  # one reached the threshold
        ((5, 0), (1.05, 1.05), [False, False]),  # one starts
        ((8, 3), (1.05, 1.05), [False, True]),  # one is at its last step
    ],
)
def test_chunks_are_computed_together(steps, changes, reused):
    policy = begun(ChunkwiseReuse(0.2, 1, together=True))
    before = {c: step - 1 for c, step in enumerate(steps) if step > 0}
    policy.decide(1, 19, before, dict.fromkeys(before, indicator(1.0)))
    now = {c: indicator(change) for c, change in enumerate(changes)}
    decisions = policy.decide(2, 19, dict(enumerate(steps)), now)
    assert [d.reuse for d in decisions.values()] == reused


def test_chunks_decide_for_themselves_and_a_forgotten_one_is_computed():
    policy = begun(ChunkwiseReuse(0.2, 1))
    policy.decide(0, 9, {0: 0, 1: 0}, {0: indicator(1.0), 1: indicator(1.0)})
    decisions = policy.decide(1, 9, {0: 1, 1: 1}, {0: indicator(1.1), 1: indicator(2.0)})
    assert [decisions[c].reuse for c in (0, 1)] == [True, False]
    policy.forget(0)
    assert not policy.decide(2, 9, {0: 2}, {0: indicator(1.1)})[0].reuse


def test_teacache_decides_once_for_all_and_computes_where_chunks_changed():
    policy = begun(TeaCache(0.3, 1))
    policy.decide(0, 9, {0: 0}, {0: indicator(1.0), 1: indicator(1.0)})
    decisions = policy.decide(1, 9, {0: 1, 1: 0}, {0: indicator(1.4), 1: indicator(1.0)})
    assert decisions[0] == decisions[1]
    assert decisions[0].reuse and decisions[0].distance == pytest.approx(0.2)
    assert not policy.decide(2, 9, {1: 1}, {1: indicator(1.0)})[1].reuse


def test_an_interval_computes_all_chunks_together_counted_from_the_youngest():
    policy, computed = begun(Interval(3)), []
    for step in range(11):
        live = {c: step - 2 * c for c in (0, 1) if 0 <= step - 2 * c < 9}
        computed.append({c for c, d in policy.decide(step, 11, live, {}).items() if not d.reuse})
    assert computed == [{0}, set(), {0, 1}, set(), set(), {0, 1}, set(), set(), {0, 1}, set(), {1}]


def test_intervals_of_the_presets_grow_with_the_root_of_the_steps():
    presets = {"quality": (2, 2, 2), "balanced": (2, 3, 4), "fast": (3, 5, 6), "turbo": (4, 7, 8)}
    for preset, intervals in presets.items():
        policy = Interval(scale=INTERVAL_SCALE[preset])
        assert tuple(map(policy.interval_for, (16, 50, 64))) == intervals
        assert policy.interval_for(2) == 2
        assert FlowCacheConfig(policy=policy).as_dict(64)["interval"] == intervals[-1]


def test_a_bent_interval_is_denser_at_the_end_and_leaves_out_the_last_step():
    assert spread_steps(50, 5, 0.9) == {0, 5, 11, 17, 23, 30, 36, 42, 46, 48}
    assert [sorted(spread_steps(n, 2, 0.9)) for n in (1, 2, 3, 6)] == [[0], [0, 1], [0, 1], [0, 2, 4]]
    for interval in range(2, 11):
        steps = spread_steps(30, interval, 0.9)
        assert len(steps) == max(2, round(30 / interval)) and max(steps) == 28
    policy = begun(Interval(5, final_steps=0, bend=0.9), 50)
    computed = {k for k in range(50) if not policy.decide(k, 50, {0: k, 1: k}, {})[1].reuse}
    assert computed == spread_steps(50, 5, 0.9)
    policy = begun(Interval(1, bend=0.9), 50)
    assert not any(policy.decide(k, 50, {0: k}, {})[0].reuse for k in range(50))


def test_policies_are_made_by_name_with_options_as_text():
    assert make_policy("none", {}) == NoReuse()
    assert make_policy("fixed_interval", {"interval": "3", "scale": "0.5"}) == Interval(3, 0.5)
    assert make_policy("teacache", {"threshold": "0.3", "indicator": "1"}) == TeaCache(0.3, indicator="1")
    options = {"together": "true", "coefficients": "1,2"}
    assert make_policy("chunkwise", options) == ChunkwiseReuse(together=True, coefficients=(1, 2))


UNKNOWN = [("cubic", {}), ("interval", {"period": 3}), ("interval", {"interval": 0})]
UNKNOWN += [("chunkwise", {"warmup_steps": 1.5}), ("teacache", {"coefficients": "1,x"})]


@pytest.mark.parametrize(("name", "options"), UNKNOWN)
def test_other_policies_and_options_are_named(name, options):
    with pytest.raises(ValueError, match=next(iter(options), "policy.*cubic")):
        make_policy(name, options)


@dataclass
class Own(ReusePolicy):
    offset: int = 1

    def decide(self, step, num_steps, live, indicators): ...


def test_a_configuration_takes_any_policy_and_copies_it():
    config = FlowCacheConfig(policy=Own(offset=2))
    assert config.make_policy() == config.policy and config.make_policy() is not config.policy
    assert {"policy": "Own", "offset": 2, "whole_window": False}.items() <= config.as_dict().items()
    assert FlowCacheConfig(policy="teacache") == FlowCacheConfig(policy=TeaCache())


WRONG = [{"policy": "cubic"}, {"policy": 3}, {"forecast": "cubic"}, {"bidirectional": True}]
WRONG += [{"clean_range": 0, "whole_window": True}, {"clean_pass": True, "whole_window": True}]
WRONG += [{"refresh_given": True, "storage": KVStorageConfig(bits=8)}]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_configurations_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FlowCacheConfig(**wrong)


def item(local_step):
    return ChunkInput(0, 0, torch.zeros(1, 1, 1, 1), (0.0,), local_step)


def taught(order, factor, steps):
    """A forecast that saw velocities in proportion to the time at some steps."""
    forecast = VelocityForecast(order)
    forecast.begin(TIMES)
    for step in steps:
        velocity = torch.full((1, 1, 1, 1), factor * TIMES[step], dtype=torch.float64)
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
    assert taught(order, 5, steps).predict(None, [item(step)])[0].item() == pytest.approx(expected)


def test_nothing_is_kept_of_a_forgotten_chunk_or_an_earlier_window():
    for clear in (lambda f: f.forget(0), lambda f: f.begin(TIMES)):
        forecast = taught(1, 1, steps=(0, 1, 2))
        assert forecast.evaluated_at(0) == [0.9, 0.7]
        clear(forecast)
        assert not forecast.knows(0)


class Straight(Solver):
    times = TIMES

    def step(self, chunk, local_step, latents, velocity):
        return latents + (TIMES[local_step + 1] - TIMES[local_step]) * velocity


def test_skipped_steps_are_corrected_by_the_next_evaluation():
    """Velocities in proportion to the time: the line between two is exact, what was forecast before is not."""
    forecast, solver = CorrectedVelocity(), Straight()
    forecast.begin(TIMES)
    latents = exact = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for step, computed in enumerate((True, False, False, True, True, False)):
        velocity = torch.full_like(latents, 5 * TIMES[step])
        if computed:
            forecast.observe_evaluation([item(step)], [], [], [velocity])
            before = forecast.correct(0, step, latents, solver)
            assert torch.allclose(before, exact), step
        else:
            before, (velocity,) = latents, forecast.predict(None, [item(step)])
        latents = solver.step(0, step, before, velocity)
        forecast.observe_step(0, step, before, latents, not computed)
        exact = solver.step(0, step, exact, torch.full_like(exact, 5 * TIMES[step]))
        if step == 1:
            latents, exact = latents + 7, exact + 7  # a callback's change stays
            assert not torch.allclose(latents, exact)
