"""The search for an interval that meets a target, with a pilot whose outcome is known."""

import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from flowcache import FlowCacheConfig, Trace
from flowcache.reuse import Interval, NoReuse
from flowcache.tuning import Target, Tuning, profile_folder

CACHE = FlowCacheConfig(policy=Interval(warmup_steps=2))
MODEL = {"model": "tiny", "video": {"steps": 20}}


def pilot(cache):
    """Save FLOPs in proportion to the interval, with an error that grows with it."""
    interval, warmup = (1, 0) if cache.policy == NoReuse() else (cache.policy.interval, 2)
    trace = Trace(environment={"hardware": "a clock"})
    trace.flops = {"vanilla": 100.0, "actual": 100.0 / interval + warmup}
    trace.seconds = {"denoise": 20.0 / interval}
    return torch.full((3, 4, 16, 16), 0.0 if interval == 1 else interval / 20), trace


def tuning(tmp_path, **changes):
    given = {"target": Target(speedup=3), "cache": CACHE, "num_steps": 20, "described": MODEL}
    return Tuning(**{**given, "name": "tiny", "path": tmp_path / "profile.json", **changes})


def test_the_best_setting_that_meets_the_target(tmp_path):
    search = tuning(tmp_path)
    cache, expected, sentence = search.run(pilot)
    # An interval of 3 is not enough, because of the warm-up steps.
    assert (cache.policy, cache.forecast) == (Interval(4, warmup_steps=2), CACHE.forecast)
    assert expected.speedup >= 3 and "a clock" in sentence
    assert (expected.seconds, search.saved().seconds) == (5, 20)
    loose, strict = (tuning(tmp_path, target=Target(psnr=psnr)).run(pilot)[1] for psnr in (20, 26))
    assert strict.psnr >= 26 > loose.psnr >= 20 and loose.speedup > strict.speedup


def test_a_profile_is_made_once_for_all_targets(tmp_path):
    first, second = Mock(wraps=pilot), Mock(wraps=pilot)
    for target, made in ((Target(speedup=3), first), (Target(psnr=22), second)):
        search = tuning(tmp_path, target=target)
        assert (search.saved() is None) == (made is first)
        search.check()
        search.run(made)
    asked = [call.args[0].policy for call in first.call_args_list]
    assert asked == [NoReuse(), *(Interval(i, warmup_steps=2) for i in range(2, 11))]
    assert not second.called


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_steps": 3}, "target_speedup"),
        ({"cache": FlowCacheConfig(policy="none")}, "target_speedup"),
        ({"described": {**MODEL, "model": "other"}}, "model"),
        ({"cache": FlowCacheConfig(policy=CACHE.policy, forecast="hold_velocity")}, r"cache\.forecast"),
        ({"num_steps": 8}, "intervals"),
        ({"num_steps": 8, "described": {"model": "tiny", "video": {"steps": 8}}}, r"video\.steps"),
    ],
)
def test_a_profile_of_other_settings_is_refused(tmp_path, changes, named):
    tuning(tmp_path).run(pilot)
    with pytest.raises(ValueError, match=named):
        tuning(tmp_path, **changes).check()


def test_other_settings_have_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path))
    paths = {tuning(tmp_path, path=None, described={"model": name}).path for name in ("tiny", "other", "tiny")}
    assert len(paths) == 2
    assert all(path.parent == profile_folder() and path.name.startswith("tiny-") for path in paths)
    monkeypatch.setenv("FLOWCACHE_CACHE", "~nosuch_user")
    with pytest.raises(ValueError, match="FLOWCACHE_CACHE"):
        profile_folder()
    monkeypatch.delenv("FLOWCACHE_CACHE")
    assert profile_folder() == Path.home() / ".cache" / "flowcache" / "profiles"


def test_a_target_out_of_reach_names_the_nearest(tmp_path):
    wanted = {Target(speedup=50): r"target_speedup.*50.*8\.33x", Target(psnr=90): r"psnr.*90.* 2\d\.\d dB"}
    for target, message in wanted.items():
        search = tuning(tmp_path, target=target)
        with pytest.raises(ValueError, match=message):
            search.run(pilot)
        with pytest.raises(ValueError, match=message):
            search.check()


@pytest.mark.parametrize(
    "wanted", [{}, {"speedup": 2, "psnr": 30}, {"psnr": math.nan}, {"speedup": 1}, {"speedup": 1e9}]
)
def test_a_target_is_one_number(wanted):
    with pytest.raises(ValueError, match=f"target_{next(iter(wanted), 'speedup')}"):
        Target(**wanted)
