"""Curves of closeness against compute, from runs whose outcome is known; and the ways that are measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from programs import load_script

from flowcache import FlowCacheConfig

#: Knob, share computed and dB of two captions.
RUNS = [(5, 0.2, (20.0, 30.0)), (3, 0.4, (40.0, 42.0)), (2, 0.6, (44.0, 50.0))]


@pytest.fixture
def curves(monkeypatch):
    return load_script("policy_curves", monkeypatch)


def points(curves, name, lift=0.0):
    return [
        curves.Point(name, knob, f"caption {i}", share, 1 / share, psnr + lift, 0.9)
        for knob, share, heights in RUNS
        for i, psnr in enumerate(heights)
    ]


def test_a_curve_is_of_medians_and_goes_straight_between_them(curves):
    curve = curves.Curve.of("interval, line", points(curves, "interval, line"))
    assert (curve.knobs, curve.computed, curve.psnr) == ((5, 3, 2), (0.2, 0.4, 0.6), (25.0, 41.0, 47.0))
    assert curve.psnr_at(0.3) == pytest.approx(33)
    assert curve.psnr_at(0.1) is None and curve.psnr_at(0.7) is None
    assert curve.computed_for(33) == pytest.approx(0.3)
    assert curve.computed_for(48) is None
    # the mean of 29 to 41 over .25 to .4, and of 41 to 44 over .4 to .5
    assert curve.area == pytest.approx((35 * 0.15 + 42.5 * 0.1) / 0.25, abs=0.02)


def test_the_gain_over_the_paper_is_told_at_each_of_its_points(curves, tmp_path):
    both = points(curves, curves.PAPER) + points(curves, "interval, line", lift=16.0)
    table = curves.report(both, tmp_path, "tiny")
    name = "interval, line"
    assert f"| 0.40 | 41.0 | 57.0 dB ({name}) | less than 0.20, more than 2.0x fewer ({name}) |" in table
    assert f"| 0.60 | 47.0 | 63.0 dB ({name}) | 0.28, 2.2x fewer ({name}) |" in table
    assert "| dB at .33 (mean) | its own | line |" in table
    assert f"| {curves.PAPER} | 35.7 (38.0) |  |" in table and "| interval |  | 51.7 (54.0) |" in table
    assert (tmp_path / "curves.md").read_text() == f"{table}\n"
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_settings_on_trial_take_the_place_of_what_has_a_name(monkeypatch):
    models = load_script("small_models", monkeypatch)
    policy, forecast = object(), object()
    plain = FlowCacheConfig(policy="none", forecast="linear_velocity")
    trial = models.TrialConfig.of(plain, trial_policy=policy, trial_forecast=forecast)
    assert (trial.make_policy(9), trial.make_forecast()) == (policy, forecast)
    assert replace(trial, trial_policy=None).make_policy(9).decide(0, 9, {0: 3}, {})[0].reuse is False
    assert trial.as_dict(9) == {"policy": "none"}
