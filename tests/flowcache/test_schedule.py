"""Which chunks move when."""

import pytest

from flowcache import StaircaseSchedule


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"num_chunks": 0}, "num_chunks"),
        ({"num_steps": 0}, "num_steps"),
        ({"stride": 7}, "stride"),
        ({"stride": -1}, "stride"),
        ({"first_chunk": 3}, "first_chunk"),
    ],
)
def test_bad_counts_are_named(wrong, name):
    with pytest.raises(ValueError, match=name):
        StaircaseSchedule(**{"num_chunks": 3, "num_steps": 6, "stride": 2, **wrong})


@pytest.mark.parametrize("stride", [0, 1, 3, 7])
@pytest.mark.parametrize("given", [0, 2])
def test_the_staircase(stride, given):
    schedule = StaircaseSchedule(9, 7, stride, given)
    chunks, made = range(given, 9), {chunk: [] for chunk in range(9)}
    for step in range(len(schedule) + 2):
        steps = {c: schedule.local_step(c, step) for c in chunks}
        assert schedule.live(step) == {c: k for c, k in steps.items() if 0 <= k < 7}
        assert list(schedule.finished(step)) == [c for c, k in steps.items() if k == 7]
        for bound in range(9):
            assert schedule.first_below(bound, step) == next((c for c in chunks if steps[c] < bound), 9)
    for live in schedule:
        for chunk, local_step in live.items():
            made[chunk].append(local_step)
    assert made == {chunk: list(range(7)) if chunk >= given else [] for chunk in range(9)}
    assert schedule.max_live == max(len(live) for live in schedule)
