"""The search for an interval that meets a target, with a pilot whose outcome is known."""

from pathlib import Path

import pytest
import torch

from flowcache import FlowCacheConfig, Trace
from flowcache.reuse import Interval, NoReuse
from flowcache.tuning import Target, Tuning, profile_folder

CACHE = FlowCacheConfig(policy=Interval(warmup_steps=2))
MODEL = {"model": "tiny", "video": {"steps": 20}}


class Pilot:
    """Saves FLOPs in proportion to the interval, with an error that grows with it; records its calls."""

    def __init__(self):
        self.asked = []

    def __call__(self, cache):
        self.asked.append(cache.policy)
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
    cache, expected, sentence = search.run(Pilot())
    # An interval of 3 is not enough, because of the warm-up steps.
    assert expected.speedup >= 3
    assert cache.policy == Interval(4, warmup_steps=2)
    assert cache.forecast == CACHE.forecast
    assert (expected.seconds, search.saved().seconds) == (5, 20)
    assert "a clock" in sentence
    loose, strict = (tuning(tmp_path, target=Target(psnr=psnr)).run(Pilot())[1] for psnr in (20, 26))
    assert strict.psnr >= 26 > loose.psnr >= 20
    assert loose.speedup > strict.speedup


def test_a_profile_is_made_once_for_all_targets(tmp_path):
    first, second, search = Pilot(), Pilot(), tuning(tmp_path)
    assert search.saved() is None
    search.check()
    search.run(first)
    assert first.asked == [NoReuse(), *(Interval(i, warmup_steps=2) for i in range(2, 11))]
    other = tuning(tmp_path, target=Target(psnr=22))
    other.check()
    other.run(second)
    assert not second.asked


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
    tuning(tmp_path).run(Pilot())
    with pytest.raises(ValueError, match=named):
        tuning(tmp_path, **changes).check()


def test_other_settings_have_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path))
    models = ("tiny", "other", "tiny")
    paths = {tuning(tmp_path, path=None, described={"model": model}).path for model in models}
    assert len(paths) == 2
    assert all(path.parent == profile_folder() and path.name.startswith("tiny-") for path in paths)
    monkeypatch.setenv("FLOWCACHE_CACHE", "~nosuch_user")
    with pytest.raises(ValueError, match="FLOWCACHE_CACHE"):
        profile_folder()
    monkeypatch.delenv("FLOWCACHE_CACHE")
    assert profile_folder() == Path.home() / ".cache" / "flowcache" / "profiles"


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}'])
def test_an_unreadable_profile_is_named(tmp_path, content):
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(ValueError, match=r"profile\.json.*delete"):
        tuning(tmp_path).check()


def test_a_target_out_of_reach_names_the_nearest(tmp_path):
    wanted = {Target(speedup=50): r"target_speedup.*50.*8\.33x", Target(psnr=90): r"psnr.*90.* 2\d\.\d dB"}
    for target, message in wanted.items():
        search = tuning(tmp_path, target=target)
        for call in (lambda s: s.run(Pilot()), lambda s: s.check()):
            with pytest.raises(ValueError, match=message):
                call(search)


@pytest.mark.parametrize(
    "wanted", [{}, {"speedup": 2, "psnr": 30}, {"speedup": 1}, {"psnr": float("nan")}, {"speedup": 1e9}]
)
def test_a_target_is_one_number(wanted):
    with pytest.raises(ValueError, match="target_speedup" if "speedup" in wanted or not wanted else "psnr"):
        Target(**wanted)
