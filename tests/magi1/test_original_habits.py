"""Flags and variables of the original's command lines."""

from __future__ import annotations

import numpy as np
import pytest
from programs import Program
from reference import ROOT

from flowcache.trace import Trace
from magi1 import model_source

QUICK = ["--num_frames", 16, "--method", "flowcache", "--preset", "turbo"]


@pytest.fixture
def front(monkeypatch, tmp_path, weights):
    """The program, run in an empty folder on the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    first = ("--config_file", weights, "--model", "official", "--prompt", "a")
    return Program(ROOT / "FlowCache4MAGI-1" / "generate_video.py", monkeypatch, first)


@pytest.fixture
def table(tmp_path):
    """The table of special tokens in its place in the official code, seen from the working folder."""
    path = tmp_path / "example" / "assets" / "special_tokens.npz"
    path.parent.mkdir(parents=True)
    rows = {"other_tokens": 100, "caption_token": 1, "logo_token": 1}
    np.savez(path, **{name: np.ones((count, 16)) for name, count in rows.items()})
    return path


def test_switches_need_no_value_and_a_seed_of_minus_one_is_drawn(front, tmp_path, caplog):
    caplog.set_level("INFO")
    assert front(*QUICK, "--log", "--print_peak_memory", "--log", "false", "--seed", -1) == 0
    (video,) = (tmp_path / "outputs" / "magi1").glob("*.mp4")
    seed = Trace.load(video.with_suffix(".trace.json")).settings["video"]["seed"]
    assert seed >= 0
    assert f"_seed{seed}_" in video.name
    assert f"seed: {seed}" in caplog.text
    assert "special tokens: none" in caplog.text and "--special_tokens" in caplog.text
    assert front(*QUICK, "--seed", -1, "--resume") == 2


@pytest.mark.parametrize("how", ["flag", "variable", "official code"])
def test_the_usual_special_tokens_are_on_with_their_table(front, table, monkeypatch, how):
    monkeypatch.setenv("PAD_STATIC", "y")
    words = ["--special_tokens", table.rename("t.npz")] if how == "flag" else []
    if how == "variable":
        monkeypatch.setenv("SPECIAL_TOKEN_PATH", str(table.rename("t.npz")))
    assert front(*QUICK, *words, "--output_path", "a.mp4") == 0
    assert Trace.load("a.trace.json").settings["special_tokens"] == "static, high_quality, duration"


@pytest.mark.parametrize(
    ("words", "variables", "named"),
    [
        ([], {"RANK": "1", "WORLD_SIZE": "2"}, "WORLD_SIZE"),
        ([], {"PAD_HQ": "1"}, "SPECIAL_TOKEN_PATH"),
        (["--model", "small", "--special_tokens", "example/assets/special_tokens.npz"], {}, "special_tokens"),
    ],
)
def test_refusals(front, table, monkeypatch, capsys, words, variables, named):
    monkeypatch.setattr(model_source, "load_transformer", lambda *_: pytest.fail("weights were read"))
    if not words:
        table.unlink()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert front(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
