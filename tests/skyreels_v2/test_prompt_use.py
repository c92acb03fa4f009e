"""Prompts that SkyReels-V2 does not get as written: a warning, and the facts in the trace."""

from __future__ import annotations

import logging

import pytest

from flowcache import Trace
from skyreels_v2 import load_pipeline, resolve_model

QUICK = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}


@pytest.mark.parametrize("guidance", [1, 3])
def test_lost_words_are_a_warning_and_in_the_trace(checkpoint, caplog, guidance):
    pipeline, trace = load_pipeline(str(checkpoint), "cpu"), Trace()
    negative = None if guidance == 1 else "a" + " circle" * 8
    lost = {"prompt": {"unknown": ["zebra"]}}
    lost |= {"negative_prompt": {"cut": "circle circle"}} if negative else {}
    for _ in range(2):  # an equal warning is not repeated
        pipeline("a zebra", negative, trace=trace, guidance_scale=guidance, **QUICK)
        assert trace.settings["prompt_losses"] == lost
    records = [record for record in caplog.records if record.name == "flowcache.prompts"]
    assert [record.levelno for record in records] == [logging.WARNING] * len(lost)


def test_the_small_checkpoint_in_place_of_the_official_one_is_a_warning(caplog):
    with caplog.at_level(logging.INFO):
        load_pipeline("auto", "cpu")
        load_pipeline("small", "cpu")
    levels = [record.levelno for record in caplog.records if "small checkpoint" in record.message]
    assert levels == [logging.WARNING, logging.INFO]
    assert resolve_model("auto", "cuda").path is None


def test_benchmarks_warn_once_of_a_kind(checkpoint, caplog):
    pipeline = load_pipeline(str(checkpoint), "cpu")
    pipeline.prompt_warnings.once_a_kind = True
    pipeline(["a zebra", "a lion"], "a", **QUICK)
    (record,) = [record for record in caplog.records if record.name == "flowcache.prompts"]
    assert "zebra" in record.message
