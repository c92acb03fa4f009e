"""Words of a prompt that MAGI-1 does not get: a warning, and the facts in the trace."""

from __future__ import annotations

import logging

import pytest
from programs import Program
from reference import ROOT

from flowcache.model_files import load_tokenizer
from flowcache.prompts import PromptWarnings, find_losses
from flowcache.trace import Trace
from magi1 import model_source
from magi1.model_source import resolve_model
from magi1.request import VideoRequest
from magi1.text_encoder import T5_FOLDER

LOGGER = "flowcache.prompts"


def test_lost_words_are_a_warning_and_in_the_trace(front, weights, caplog):
    prompt = "a red zebra 猫" + " circle" * 70
    flags = ["--config_file", weights, "--model", "official", "--method", "vanilla", "--num_frames", 4]
    assert front(*flags, "--prompt", prompt, "--output_path", "a.mp4") == 0
    lost = Trace.load("a.trace.json").settings["prompt_losses"]
    assert lost == {"prompt": {"removed": ["猫"], "unknown": ["zebra"], "cut": " ".join(["circle"] * 14)}}
    records = [record for record in caplog.records if record.name == LOGGER]
    assert [record.levelno for record in records] == [logging.WARNING] * 3


def test_a_benchmark_warns_once_of_a_kind(weights, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    program = Program(ROOT / "FlowCache4MAGI-1" / "sample_video.py", monkeypatch)
    (tmp_path / "scene.txt").write_text("a zebra\na lion\n")
    yaml = ROOT / "FlowCache4MAGI-1" / "yaml_config" / "sample" / "flowcache_vbench.yaml"
    flags = ["--config_file", weights, "--model", "official", "--gpus", "cpu", "--num_frames", 4]
    flags += ["--yaml_config", yaml, "--vbench_prompt_dir", tmp_path, "--dimension", "scene", "--samples", 1]
    assert program(*flags, "--base_save_path", "out", "--method", "vanilla") == 0
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert "zebra" in record.message
    traces = [Trace.load(path).settings["prompt_losses"] for path in sorted(tmp_path.glob("out/traces/*"))]
    assert traces == [{"prompt": {"unknown": ["lion"]}}, {"prompt": {"unknown": ["zebra"]}}]


def test_the_small_checkpoint_lists_its_words(caplog):
    tokenizer = load_tokenizer(model_source.SMALL / "t5" / T5_FOLDER)
    PromptWarnings().warn("prompt", find_losses("a cat", "a cat", tokenizer, 64), tokenizer)
    unknown, _, known = caplog.records[0].message.partition("It knows")
    assert "cat" in unknown
    assert all(word in known for word in ("circle", "bounces", "purple", "grey"))


def test_a_request_of_which_nothing_is_left_is_refused(weights):
    config = resolve_model(weights, model="official", device="cpu").config
    with pytest.raises(ValueError, match=r"prompt: .*一只猫"):
        VideoRequest(prompt="一只猫", config=config)
    VideoRequest(prompt="", config=config)
