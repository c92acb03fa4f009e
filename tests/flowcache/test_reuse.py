"""When a chunk may skip the model."""

import pytest
import torch
from flowcache.reuse.error_controlled import ErrorControlled
from flowcache.reuse.planned import Planned, computed_share, steps_in_staircase

from flowcache import FlowCacheConfig
from flowcache.chunk_model import ChunkInput
from flowcache.config import PACES
from flowcache.reuse.chunkwise import ChunkwiseReuse
from flowcache.reuse.forecast import VelocityForecast
from flowcache.reuse.policy import NoReuse, polynomial, relative_l1
from flowcache.reuse.teacache import TeaCache


def indicator(value: float) -> torch.Tensor:
    return torch.full((3,), value)


def walk(policy, values, num_steps=None, chunk=0):
    """Decisions for one chunk whose indicator takes these values, one a step."""
    count = num_steps or len(values)
    return [policy.decide(i, count, {chunk: i}, {chunk: indicator(v)})[chunk] for i, v in enumerate(values)]


def test_relative_l1_by_hand():
    now, before = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -2.0])
    assert relative_l1([now], [before]) == [0.5]
    assert relative_l1([torch.ones(2)], [torch.zeros(2)])[0] == pytest.approx(1e8)
    assert relative_l1([], []) == []


def test_polynomial_has_its_highest_power_first():
    assert polynomial((2.0, 0.0, -1.0), 3.0) == 17.0


def test_chunkwise_accumulates_over_reuses_and_starts_again_when_computed():
    policy = ChunkwiseReuse(threshold=0.25, num_chunk_steps=7, warmup_steps=1, final_steps=1)
    decisions = walk(policy, [1.0, 1.1, 1.21, 1.331, 1.4641, 1.6105, 1.7716])
    assert [d.reuse for d in decisions] == [False, True, True, False, True, True, False]
    assert [d.accumulated for d in decisions[1:4]] == pytest.approx([0.1, 0.2, 0.3], rel=1e-5)
    assert decisions[4].accumulated == pytest.approx(0.1, rel=1e-4)


def test_threshold_is_reached_not_passed():
    policy = ChunkwiseReuse(threshold=0.5, num_chunk_steps=3, final_steps=0)
    assert [d.reuse for d in walk(policy, [1.0, 1.5])] == [False, False]


def test_threshold_zero_never_reuses():
    policy = ChunkwiseReuse(threshold=0.0, num_chunk_steps=9)
    assert not any(d.reuse for d in walk(policy, [1.0] * 9))


def test_warmup_and_last_steps_are_computed():
    policy = ChunkwiseReuse(threshold=9.0, num_chunk_steps=6, warmup_steps=3, final_steps=2)
    assert [d.reuse for d in walk(policy, [1.0] * 6)] == [False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("steps", "changes", "reused"),
    [
        ((5, 3), (1.05, 1.05), [True, True]),
        ((5, 3), (1.05, 2.0), [False, False]),
        ((5, 0), (1.05, 1.05), [False, False]),
        ((8, 3), (1.05, 1.05), [False, True]),
    ],
    ids=["none", "one has reached it", "one starts", "one is at its last step"],
)
def test_joint_chunks_are_computed_together(steps, changes, reused):
    policy = ChunkwiseReuse(threshold=0.2, num_chunk_steps=9, together=True)
    before = {c: step - 1 for c, step in enumerate(steps) if step > 0}
    policy.decide(1, 19, before, dict.fromkeys(before, indicator(1.0)))
    now = {c: indicator(change) for c, change in enumerate(changes)}
    decisions = policy.decide(2, 19, dict(enumerate(steps)), now)
    assert [d.reuse for d in decisions.values()] == reused


def test_chunks_decide_apart():
    policy = ChunkwiseReuse(threshold=0.2, num_chunk_steps=9)
    policy.decide(0, 9, {0: 0, 1: 0}, {0: indicator(1.0), 1: indicator(1.0)})
    decisions = policy.decide(1, 9, {0: 1, 1: 1}, {0: indicator(1.1), 1: indicator(2.0)})
    assert decisions[0].reuse
    assert not decisions[1].reuse


def test_a_forgotten_chunk_is_computed():
    policy = ChunkwiseReuse(threshold=9.0, num_chunk_steps=9)
    walk(policy, [1.0, 1.0])
    policy.forget(0)
    assert not policy.decide(2, 9, {0: 2}, {0: indicator(1.0)})[0].reuse


def test_teacache_takes_one_decision_for_all():
    policy = TeaCache(threshold=0.3)
    policy.decide(0, 9, {0: 0}, {0: indicator(1.0), 1: indicator(1.0)})
    decisions = policy.decide(1, 9, {0: 1, 1: 0}, {0: indicator(1.4), 1: indicator(1.0)})
    assert decisions[0] == decisions[1]
    assert decisions[0].reuse
    assert decisions[0].distance == pytest.approx(0.2)


def test_teacache_forces_first_and_last_and_recurs_with_a_period():
    computed = [not d.reuse for d in walk(TeaCache(threshold=9.0, warmup_steps=2), [1.0] * 6)]
    assert computed == [True, True, False, False, False, True]
    computed = [not d.reuse for d in walk(TeaCache(threshold=9.0, period=3), [1.0] * 8)]
    assert computed == [True, False, True, True, False, True, True, True]


def test_no_reuse_asks_for_nothing():
    policy = NoReuse()
    assert not policy.needs_indicator
    assert not policy.decide(0, 1, {4: 0}, {})[4].reuse


def computed_by(policy, num_chunks, num_chunk_steps, stride):
    """Chunks that are computed at each step of a staircase."""
    steps = range(num_chunk_steps + stride * (num_chunks - 1))
    live = [
        {c: s - stride * c for c in range(num_chunks) if 0 <= s - stride * c < num_chunk_steps} for s in steps
    ]
    return [{c for c, d in policy.decide(s, len(steps), live[s], {}).items() if not d.reuse} for s in steps]


def test_an_interval_computes_all_chunks_together_counted_from_the_youngest():
    policy = FlowCacheConfig(policy="fixed_interval", interval=3, warmup_steps=1).make_policy(9)
    computed = computed_by(policy, 2, 9, stride=2)
    assert computed == [{0}, set(), {0, 1}, set(), set(), {0, 1}, set(), set(), {0, 1}, set(), {1}]


def test_a_plan_leaves_a_start_to_the_chunk_that_starts():
    policy = Planned((2, 3), num_chunk_steps=5, warmup_steps=1, final_steps=0)
    assert computed_by(policy, 2, 5, stride=4) == [{0}, set(), {0}, {0}, {1}, set(), {1}, {1}, set()]


@pytest.mark.parametrize("plan", [range(0, 9, 4), (1, 2, 5), ()])
@pytest.mark.parametrize("stride", [0, 2, 3, 9])
def test_the_steps_that_a_plan_comes_to_for_each_chunk(plan, stride):
    count = max(1, -(-9 // stride)) if stride else 1
    computed = computed_by(Planned(plan, num_chunk_steps=9), count, 9, stride)
    own = [[s - stride * c for s, chunks in enumerate(computed) if c in chunks] for c in range(count)]
    assert steps_in_staircase(plan, 9, stride) == own[::-1]
    assert computed_share(plan, 9, stride) == pytest.approx(sum(map(len, own)) / count / 9)


def control(tolerance, path, **options):
    """Which steps of one chunk are computed when its velocity takes this path over ten even steps."""
    times = [1 - 0.1 * i for i in range(11)]
    forecast = VelocityForecast(1)
    policy = ErrorControlled(tolerance, 10, **options)
    policy.begin(times, forecast)
    forecast.begin(times, policy.needs_errors)
    decisions = []
    for step in range(10):
        decisions.append(policy.decide(step, 10, {0: step}, {})[0])
        if not decisions[-1].reuse:
            item = ChunkInput(0, 0, torch.zeros(1, 1, 1, 1), (0.0,), step)
            forecast.observe_evaluation([item], [], [], [torch.full((1, 1, 1, 1), path(times[step]))])
    return decisions


def test_error_control_skips_all_of_a_straight_path_once_it_knows():
    decisions = control(0.01, lambda t: 1 + t)
    assert [d.reuse for d in decisions] == [False] * 3 + [True] * 6 + [False]


def test_error_control_spends_no_more_than_its_tolerance():
    mild, strict = (control(tolerance, lambda t: 1 + t**2) for tolerance in (0.01, 0.002))
    assert sum(d.reuse for d in mild) > sum(d.reuse for d in strict) > 0
    assert all(d.accumulated < 0.002 for d in strict if d.reuse)
    assert not any(d.reuse for d in control(0.0, lambda t: 1 + t))


def test_error_control_is_bounded_in_a_row_and_warms_up():
    decisions = control(9.0, lambda t: 1 + t**2, max_reuses=2, warmup_steps=4)
    assert [d.reuse for d in decisions] == [False] * 4 + [True, True, False] * 2


def test_a_chunk_that_cannot_be_judged_yet_follows_the_others():
    times, forecast = [1 - 0.1 * i for i in range(11)], VelocityForecast(1)
    policy = ErrorControlled(0.01, 10, together=True)
    policy.begin(times, forecast)
    forecast.begin(times, policy.needs_errors)
    computed = []
    for step in range(12):
        live = {chunk: step - 7 * chunk for chunk in (0, 1) if 0 <= step - 7 * chunk < 10}
        decisions = policy.decide(step, 17, live, {})
        ran = [chunk for chunk, decision in decisions.items() if not decision.reuse]
        computed.append(ran)
        items = [ChunkInput(c, 0, torch.zeros(1, 1, 1, 1), (0.0,), live[c]) for c in ran]
        path = [torch.full((1, 1, 1, 1), 1 + times[live[c]]) for c in ran]
        forecast.observe_evaluation(items, [], [], path)
        for chunk in (c for c in live if live[c] == 9):
            policy.forget(chunk)
    # A straight path: known after three values, then skipped but where the other starts or the first ends.
    assert computed == [[0], [0], [0], [], [], [], [], [0, 1], [], [0], [1], [1]]


@pytest.mark.parametrize(
    ("preset", "intervals"),
    [("quality", (2, 2, 2)), ("balanced", (2, 3, 4)), ("fast", (3, 5, 6)), ("turbo", (4, 7, 8))],
)
def test_intervals_of_the_presets_grow_with_the_root_of_the_steps(preset, intervals):
    cache = FlowCacheConfig(policy="fixed_interval", pace=PACES[preset])
    assert tuple(map(cache.interval_for, (16, 50, 64))) == intervals
    assert cache.interval_for(2) == 2
    assert cache.as_dict(64)["interval"] == intervals[-1], "a trace tells the steps, not the pace alone"


@pytest.mark.parametrize(
    ("policy", "made"),
    [
        ({"policy": "fixed_interval", "interval": 3}, Planned((0, 3, 6, 9), 10, warmup_steps=5)),
        ({"policy": "planned", "computed_steps": (0, 4)}, Planned((0, 4), 10, warmup_steps=5)),
        ({"policy": "error_controlled", "together": True}, ErrorControlled(0.01, 10, 5, together=True)),
    ],
)
def test_a_configuration_makes_its_policy(policy, made):
    policy = FlowCacheConfig(**policy).make_policy(10)
    assert (type(policy), vars(policy)) == (type(made), vars(made))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"policy": "planned"}, "computed_steps must name"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"pace": 0.0}, "pace must be at least"),
        ({"tolerance": -1.0}, "tolerance must be at least 0, got -1.0"),
        ({"forecast": "cubic"}, "forecast must be one of hold_residual"),
    ],
)
def test_wrong_settings_are_named(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        FlowCacheConfig(**wrong)
