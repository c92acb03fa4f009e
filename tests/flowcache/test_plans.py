"""Plans on disk."""

import json

import pytest

from flowcache.reuse.plans import Plans, file_name

SAMPLING = {"steps": 4, "stride": 2, "shift": 8.0}
TIMES, GROWTH = (1.0, 0.8, 0.5, 0.2, 0.0), (9.0, 4.0, 2.0, 1.0)
PLANS = Plans(SAMPLING, "linear_velocity", ((0, 3), (0, 1, 3)), TIMES, GROWTH, made="by hand")


def test_saved_plans_are_found_by_their_sampling(tmp_path):
    assert PLANS.save(tmp_path) == tmp_path / "plans/steps4_stride2_shift8.json"
    assert Plans.find(tmp_path, SAMPLING) == PLANS
    assert Plans.find(tmp_path, SAMPLING | {"shift": 5.0}) is None


def test_the_nearest_share_is_taken():
    assert [PLANS.share_of(plan) for plan in PLANS.steps] == [0.625, 0.875]
    assert PLANS.of_share(0.4) == (0, 3)
    assert PLANS.of_share(0.9) == (0, 1, 3)


@pytest.mark.parametrize("steps", [(), (0, 2, 1), (0, 1, 1), (0, 4), (-1, 2)])
def test_a_plan_that_cannot_be_followed_is_refused(steps):
    with pytest.raises(ValueError, match="steps must rise, from 0 or more to below 4"):
        Plans(SAMPLING, "linear_velocity", (steps,), PLANS.times, PLANS.amplification, "")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', json.dumps({"format": 1, "steps": 3})])
def test_a_file_without_plans_is_named(tmp_path, content):
    path = tmp_path / file_name(SAMPLING)
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=r"stride2_shift8\.json cannot be read as plans"):
        Plans.find(tmp_path, SAMPLING)
