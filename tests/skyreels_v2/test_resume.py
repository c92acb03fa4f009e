"""A resumed video is that of a run that was not killed."""

from __future__ import annotations

import random

import pytest
import torch
from resumed import decided, kill_at, loaded, saved

from flowcache import Trace
from skyreels_v2 import Condition, VideoSettings, adapter, load_pipeline, method_config

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

    def stream(trace, state=None):
        arguments = {"settings": settings, "cache": cache, "condition": Condition(pixels[:, :1], last)}
        return pipeline.stream("a red circle", **arguments, trace=trace, state=state)

    trace, parts, states = Trace(), [], []
    for part in stream(trace):
        parts.append(part)
        states.append(saved(part.state(), trace) if part.state else None)
    offered = [place for place, state in enumerate(states) if state is not None]
    place = random.Random(name).choice(offered[:-1])
    state, other = loaded(states[place])
    rest = list(stream(other, state))
    assert len(rest) == len(parts) - place - 1
    for theirs, ours in zip(rest, parts[place + 1 :], strict=True):
        assert torch.equal(theirs.frames, ours.frames)
        assert torch.equal(theirs.latents, ours.latents)
    assert decided(other) == decided(trace)


QUICK = ["--height", 32, "--width", 32, "--inference_steps", 4, "--ar_step", 2, "--causal_block_size", 2]
FLAGS = [*QUICK, "--prompt", "a red circle", "--outdir", "out", "--teacache_thresh", 0.05]
FLAGS += ["--num_frames", 25, "--base_num_frames", 17, "--overlap_history", 9, "--addnoise_condition", 20]


def test_killed_ten_times(front, checkpoint, tmp_path, monkeypatch):
    flags = ["--model_id", checkpoint, *FLAGS]
    assert front(*flags) == 0
    folder = tmp_path / "out" / "skyreels_v2"
    (video,) = folder.glob("*.mp4")
    names, content = {path.name for path in folder.iterdir()}, video.read_bytes()
    trace = Trace.load(video.with_suffix(".trace.json"))
    for path in folder.iterdir():
        path.unlink()
    loaded_once = load_pipeline(str(checkpoint), "cpu")
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: loaded_once)
    chosen = random.Random(0)
    for _ in range(10):
        kill_at(chosen.randrange(60), lambda: front(*flags, "--resume"))
    assert front(*flags, "--resume") == 0
    assert {path.name for path in folder.iterdir()} == names
    assert video.read_bytes() == content
    assert decided(Trace.load(video.with_suffix(".trace.json"))) == decided(trace)
