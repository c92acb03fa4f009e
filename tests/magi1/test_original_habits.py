"""Flags and variables of the original's command lines."""

from __future__ import annotations

import numpy as np
import pytest
from programs import Program
from reference import ROOT

from flowcache.trace import Trace
from magi1 import adapter

FOLDER = ROOT / "FlowCache4MAGI-1"
QUICK = ["--num_frames", 16, "--method", "flowcache", "--preset", "turbo"]


@pytest.fixture
def model(weights):
    return ["--config_file", str(weights), "--model", "official"]


@pytest.fixture
def front(monkeypatch, tmp_path, model):
    """The program, run in an empty folder on the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    return Program(FOLDER / "generate_video.py", monkeypatch, (*model, "--prompt", "a"))


@pytest.fixture
def prepared(front, model):
    def prepare(*typed, model=model):
        words = [*model, *map(str, typed)]
        return front.prepare(*words)

    return prepare


@pytest.fixture
def table(tmp_path):
    """Where the official code has it, seen from the folder that it runs in."""
    path = tmp_path / "example" / "assets" / "special_tokens.npz"
    path.parent.mkdir(parents=True)
    rows = {"other_tokens": 100, "caption_token": 1, "logo_token": 1}
    np.savez(path, **{name: np.ones((count, 16)) for name, count in rows.items()})
    return path


@pytest.mark.parametrize("words", [["--log"], ["--print_peak_memory", "--log"], ["--log", "false"]])
def test_switches_need_no_value(prepared, words):
    assert prepared(*words, "--seed", 7).sampler.runtime.seed == 7
    assert prepared("--compress_kv_cache", *words).sampler.config.compression is not None


def test_seed_minus_one_is_drawn_and_named(front, tmp_path, caplog):
    caplog.set_level("INFO")
    assert front(*QUICK, "--seed", -1) == 0
    (video,) = (tmp_path / "outputs" / "magi1").glob("*.mp4")
    seed = Trace.load(video.with_suffix(".trace.json")).settings["video"]["seed"]
    assert seed >= 0
    assert f"_seed{seed}_" in video.name
    assert f"seed: {seed}" in caplog.text


def test_drawn_seeds_differ_and_are_refused_where_a_run_is_resumed(prepared):
    assert len({prepared("--seed=-1").sampler.runtime.seed for _ in range(3)}) == 3
    with pytest.raises(ValueError, match=r"seed: .* resume"):
        prepared("--seed", -1, "--resume")


@pytest.mark.parametrize("word", ["yes", "ON", "true", "1", "y", "enabled"])
def test_special_tokens_are_switched_on_by_the_words_of_the_original(prepared, table, monkeypatch, word):
    monkeypatch.setenv("PAD_STATIC", word)
    assert str(prepared().request.switches) == "static, high_quality, duration"


@pytest.mark.parametrize("word", ["no", "off", "False", "0", ""])
def test_special_tokens_are_switched_off_by_their_variable(prepared, table, monkeypatch, word):
    monkeypatch.setenv("PAD_HQ", word)
    assert str(prepared().request.switches) == "duration"


@pytest.mark.parametrize("how", ["flag", "variable", "official code"])
def test_the_usual_special_tokens_are_on_where_their_table_is_found(
    prepared, table, monkeypatch, caplog, how
):
    caplog.set_level("INFO")
    words = []
    if how != "official code":
        table = table.rename("t.npz")
    if how == "flag":
        words = ["--special_tokens", table]
    elif how == "variable":
        monkeypatch.setenv("SPECIAL_TOKEN_PATH", str(table))
    request = prepared(*words).request
    assert str(request.switches) == "high_quality, duration"
    assert request.special_tokens.others.shape == (100, 16)
    assert "special tokens: high_quality, duration" in caplog.text


def test_without_their_table_there_are_none_and_one_line_says_so(prepared, caplog):
    caplog.set_level("INFO")
    assert not prepared().request.switches.any
    (line,) = [record.message for record in caplog.records if "special tokens" in record.message]
    assert "none" in line and "--special_tokens" in line


def test_the_trace_names_the_special_tokens(front, table):
    assert front(*QUICK, "--output_path", "a.mp4") == 0
    assert Trace.load("a.trace.json").settings["special_tokens"] == "high_quality, duration"


def test_a_table_of_the_official_model_does_not_stop_the_small_checkpoint(prepared, table):
    small = ["--model", "small"]
    assert not prepared(model=small).request.switches.any
    with pytest.raises(ValueError, match="the text encoder's"):
        prepared("--special_tokens", table, model=small)


def test_torchrun_of_a_single_video_is_refused(front, monkeypatch, capsys):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert front() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "WORLD_SIZE" in line and "sample_video.py" in line
