"""Words of prompts that SkyReels-V2 does not get: a warning, and the facts in the trace."""

from __future__ import annotations

import logging

import pytest
from programs import Program
from reference import ROOT

from flowcache.trace import Trace
from skyreels_v2 import load_pipeline, resolve_model

FOLDER = ROOT / "FlowCache4SkyReels-V2"
LOGGER = "flowcache.prompts"
QUICK = ["--height", 32, "--width", 32, "--num_frames", 5, "--inference_steps", 2, "--method", "vanilla"]


@pytest.mark.parametrize("guidance", [1, 3])
def test_lost_words_are_a_warning_and_in_the_trace(checkpoint, monkeypatch, tmp_path, caplog, guidance):
    monkeypatch.chdir(tmp_path)
    program = Program(FOLDER / "generate_video_df.py", monkeypatch)
    negative = [] if guidance == 1 else ["--negative_prompt", "a" + " circle" * 8]
    flags = ["--model_id", checkpoint, *QUICK, "--guidance_scale", guidance]
    assert program(*flags, "--prompt", "a zebra", *negative) == 0
    (trace,) = tmp_path.rglob("*.trace.json")
    lost = {"prompt": {"unknown": ["zebra"]}}
    if guidance > 1:
        lost["negative_prompt"] = {"cut": "circle circle"}
    assert Trace.load(trace).settings["prompt_losses"] == lost
    records = [record for record in caplog.records if record.name == LOGGER]
    assert [record.levelno for record in records] == [logging.WARNING] * guidance.bit_length()


@pytest.mark.parametrize("flag", ["--prompt", "--negative_prompt"])
def test_a_prompt_of_which_nothing_is_left_is_refused(checkpoint, monkeypatch, tmp_path, capsys, flag):
    monkeypatch.chdir(tmp_path)
    program = Program(FOLDER / "generate_video_df.py", monkeypatch)
    assert program("--model_id", checkpoint, *QUICK, "--prompt", "a", flag, "&nbsp;") == 2
    assert flag.removeprefix("--") in capsys.readouterr().err


def test_a_benchmark_warns_once_of_a_kind(checkpoint, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    program = Program(FOLDER / "sample_video.py", monkeypatch)
    (tmp_path / "scene.txt").write_text("a zebra\na lion\n")
    flags = ["--model_id", checkpoint, *QUICK, "--gpus", "cpu", "--negative_prompt", "a"]
    assert program(*flags, "--vbench_prompt_dir", tmp_path, "--dimension", "scene", "--samples", 1) == 0
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert "zebra" in record.message


def test_the_small_checkpoint_in_place_of_the_official_one_is_a_warning(caplog):
    with caplog.at_level(logging.INFO):
        load_pipeline("auto", "cpu")
        load_pipeline("small", "cpu")
    levels = [record.levelno for record in caplog.records if "small checkpoint" in record.message]
    assert levels == [logging.WARNING, logging.INFO]
    assert resolve_model("auto", "cuda").path is None
