"""The search for a setting that meets a target, with a pilot whose outcome is known."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from flowcache.reuse.plans import Plans

from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import Parser, add_target_flags, target_of
from flowcache.output import VideoOutput
from flowcache.tuning import Profile, Target, Tuning, ladder, profile_folder

CACHE = FlowCacheConfig(forecast="linear_velocity", warmup_steps=2)
MODEL = {"model": "tiny", "video": {"steps": 20}}


class Pilot:
    """Saves as many FLOPs as the interval says, and errs the more the larger it is; remembers who called."""

    def __init__(self):
        self.asked = []

    def __call__(self, cache: FlowCacheConfig) -> VideoOutput:
        self.asked.append(cache)
        interval, warmup = 1 if cache.policy == "none" else cache.interval, cache.warmup_steps
        if cache.policy == "planned":
            interval, warmup = 20 / len(cache.computed_steps), 0
        wrong = 0.0 if interval == 1 else interval / 20
        trace = Trace(environment={"hardware": "a clock"})
        trace.flops = {"vanilla": 100.0, "actual": 100.0 / interval + warmup}
        trace.seconds = {"denoise": 20.0 / interval}
        frames = torch.full((3, 4, 16, 16), wrong)
        return VideoOutput(frames, frames, trace)


def tuning(tmp_path, **changes):
    given = {"target": Target(speedup=3), "cache": CACHE, "num_steps": 20, "plans": None, "described": MODEL}
    return Tuning(**{**given, "name": "tiny", "path": tmp_path / "profile.json", **changes})


def test_the_best_setting_that_is_fast_enough(tmp_path):
    tuned = tuning(tmp_path).run(Pilot())
    assert tuned.expected.speedup >= 3
    # three steps apart is not enough, for those at the start are all computed
    assert (tuned.cache.policy, tuned.cache.interval) == ("fixed_interval", 4)
    assert tuned.cache.forecast == CACHE.forecast, "the rest stays as it was"
    assert (tuned.expected.seconds, tuned.seconds) == (5, 20)
    assert "5.0 s instead of 20.0 s on a clock" in str(tuned)


def test_the_fastest_setting_that_is_close_enough(tmp_path):
    loose = tuning(tmp_path, target=Target(psnr=20)).run(Pilot())
    strict = tuning(tmp_path, target=Target(psnr=26)).run(Pilot())
    assert loose.expected.psnr >= 20
    assert strict.expected.psnr >= 26
    assert loose.expected.speedup > strict.expected.speedup
    profile = Profile.load(tmp_path / "profile.json")
    assert not [s for s in profile.settings if s.psnr >= 20 and s.speedup > loose.expected.speedup]


def test_a_profile_is_made_once(tmp_path):
    first, second = Pilot(), Pilot()
    search = tuning(tmp_path)
    assert search.saved() is None
    search.check()
    search.run(first)
    assert [cache.policy for cache in first.asked] == ["none"] + ["fixed_interval"] * len(search.ladder)
    other = tuning(tmp_path, target=Target(psnr=22))
    other.check()
    other.run(second)
    assert not second.asked, "one profile serves all targets"
    assert Profile.load(search.path) == search.saved()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"described": {**MODEL, "model": "other"}}, "model"),
        ({"described": {"model": "tiny", "video": {"steps": 30}}}, "video.steps"),
        ({"cache": FlowCacheConfig(forecast="hold_velocity", warmup_steps=2)}, "cache.forecast"),
        ({"num_steps": 8}, "ladder"),
        ({"num_steps": 8, "described": {"model": "tiny", "video": {"steps": 8}}}, "video.steps"),
    ],
)
def test_a_profile_of_other_settings_is_refused(tmp_path, changes, named):
    tuning(tmp_path).run(Pilot())
    with pytest.raises(ValueError, match=rf"is of other settings: {named} was .* and is .* now; give"):
        tuning(tmp_path, **changes).check()


def test_other_settings_have_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path))
    paths = {
        tuning(tmp_path, path=None, described={"model": model}).path for model in ("tiny", "other", "tiny")
    }
    assert len(paths) == 2
    monkeypatch.setenv("FLOWCACHE_CACHE", "~nosuch_user")
    with pytest.raises(ValueError, match="FLOWCACHE_CACHE"):
        profile_folder()
    monkeypatch.delenv("FLOWCACHE_CACHE")
    assert profile_folder() == Path.home() / ".cache" / "flowcache" / "profiles"
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path))
    assert all(path.parent == profile_folder() and path.name.startswith("tiny-") for path in paths)


def test_plans_beside_the_model_are_tried_as_well(tmp_path):
    times = tuple(step / 20 for step in range(21))
    plans = Plans({"steps": 20}, "linear_velocity", ((0, 19),), times, (1.0,) * 20, "by hand")
    search = tuning(tmp_path, target=Target(speedup=9), plans=plans)
    for _ in range(2):  # measured, and from the file
        tuned = search.run(Pilot())
        assert (tuned.cache.policy, tuned.cache.computed_steps) == ("planned", (0, 19))
    with pytest.raises(ValueError, match="is of other settings: ladder"):
        tuning(tmp_path).check()


def test_an_unreadable_profile_is_named(tmp_path):
    for content in ("{", "[]", json.dumps({"format": 0})):
        (tmp_path / "profile.json").write_text(content)
        with pytest.raises(ValueError, match=r"profile.json cannot be read as a profile: .*; delete it"):
            tuning(tmp_path).check()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(speedup=50), r"target_speedup 50 is out of reach: the nearest comes to 8\.33x fewer FLOPs"),
        (Target(psnr=90), r"target_psnr 90 is out of reach: the nearest comes to .* 2\d\.\d dB"),
    ],
)
def test_what_is_out_of_reach_names_the_nearest(tmp_path, target, message):
    search = tuning(tmp_path, target=target)
    with pytest.raises(ValueError, match=message):
        search.run(Pilot())
    with pytest.raises(ValueError, match=message):
        search.check()


def test_the_ladder_leaves_steps_to_skip(tmp_path):
    assert ladder(2, 4) == []
    assert [rung["interval"] for rung in ladder(3, 8)] == [2, 3, 4]
    with pytest.raises(ValueError, match="target_speedup needs more steps"):
        tuning(tmp_path, num_steps=3)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "exactly one"),
        ({"speedup": 2, "psnr": 30}, "exactly one"),
        ({"speedup": 1}, "target_speedup must be above 1, got 1"),
        ({"psnr": float("nan")}, "target_psnr must be at least 0, got nan"),
    ],
)
def test_a_target_is_one_number(wanted, message):
    with pytest.raises(ValueError, match=message):
        Target(**wanted)


def parse(*flags) -> argparse.Namespace:
    parser = Parser()
    add_target_flags(parser)
    parser.add_argument("--method", default="flowcache")
    parser.add_argument("--preset")
    return parser.parse_args([str(flag) for flag in flags])


def test_a_target_excludes_what_it_would_choose():
    assert target_of(parse("--preset", "fast"), {"plan": 0.5}) is None
    assert target_of(parse("--target_psnr", 30), {"plan": None}) == Target(psnr=30)
    with pytest.raises(ValueError, match="target_speedup and preset exclude each other"):
        target_of(parse("--target_speedup", 3, "--preset", "fast"), {})
    with pytest.raises(ValueError, match="target_speedup and plan exclude each other"):
        target_of(parse("--target_speedup", 3), {"plan": 0.5})
    with pytest.raises(ValueError, match="target_speedup needs method flowcache, got causal"):
        target_of(parse("--target_speedup", 3, "--method", "causal"), {})
    with pytest.raises(ValueError, match="profile needs target_speedup or target_psnr"):
        target_of(parse("--profile", "a.json"), {})


def test_a_target_replaces_method_and_preset_of_a_script():
    args = parse(
        "--target_speedup", 3, "--defaults", "--preset", "quality", "--defaults", "--method", "vanilla"
    )
    assert target_of(args, {}) == Target(speedup=3)
    assert (args.method, args.preset) == ("flowcache", None)
    args = parse("--target_speedup", 3, "--method", "causal", "--defaults", "--method", "flowcache")
    with pytest.raises(ValueError, match="target_speedup needs method flowcache, got causal"):
        target_of(args, {})
