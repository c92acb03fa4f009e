"""A resumed video is that of a run that was not killed."""

import pytest
import torch
from resumed import check_killed_often, check_stream

from skyreels_v2 import VideoSettings, adapter, load_pipeline, method_config

SMALL = {"height": 32, "width": 32, "inference_steps": 4, "ar_step": 2, "causal_block_size": 2}
LONG = {"num_frames": 25, "base_num_frames": 17, "overlap_history": 9}
STREAMING = {"num_frames": 41, "base_num_frames": 17, "streaming": True}


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    pipeline = load_pipeline(str(checkpoint), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CASES = {
    "reuse": ("flowcache", {"threshold": 0.05, "use_ret_steps": False}, LONG),
    "noise on the overlap": ("flowcache", {}, {**LONG, "addnoise_condition": 20}),
    "whole window": ("teacache", {}, LONG),
    "all together": ("vanilla", {}, {**LONG, "ar_step": 0}),
    "compressed": ("flowcache", {"budget_block": 1}, STREAMING),
    "compressed as the original does": ("flowcache", {"preset": "paper-fast", "budget_block": 1}, STREAMING),
    "compressed, in eight bits": ("flowcache", {"budget_block": 1, "kv_bits": 8}, STREAMING),
    "the newest, in four bits": ("causal", {"kvrange": 1, "kv_bits": 4}, STREAMING),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stream_resumes_from_any_part(pipeline, name):
    method, options, changes = CASES[name]
    cache, settings = method_config(method, **options), VideoSettings(**{**SMALL, **changes})
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 2, 32, 32, generator=generator) * 2 - 1
    last = None if settings.streaming else pixels[:, 1:]

    arguments = {"settings": settings, "cache": cache, "prefix": pixels[:, :1], "last": last}
    check_stream(lambda trace, state: pipeline.stream("a", **arguments, trace=trace, state=state), name)


QUICK = ["--height", 32, "--width", 32, "--inference_steps", 4, "--ar_step", 2, "--causal_block_size", 2]
FLAGS = [*QUICK, "--prompt", "a red circle", "--outdir", "out", "--teacache_thresh", 0.05]
FLAGS += ["--num_frames", 25, "--base_num_frames", 17, "--overlap_history", 9, "--addnoise_condition", 20]


def test_killed_ten_times(front, checkpoint, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pipeline)
    folder = tmp_path / "out" / "skyreels_v2"
    check_killed_often(lambda *more: front("--model_id", checkpoint, *FLAGS, *more), folder)
