"""Videos that were killed and go on are the videos of runs that were not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from resumed import decided, kill_at, loaded, saved, stop_at

from flowcache import Trace
from skyreels_v2 import Condition, VideoSettings, load_pipeline, method_config, sampler
from skyreels_v2.codec import VideoDecoder
from skyreels_v2.solver import ChunkUniPC

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
    "noise on what is taken over": ("flowcache", {}, {**LONG, "addnoise_condition": 20}),
    "whole window": ("teacache", {}, LONG),
    "all together": ("vanilla", {}, {**LONG, "ar_step": 0}),
    "compressed": ("flowcache", {"budget_block": 1}, STREAMING),
    "compressed as the original does": ("flowcache", {"preset": "paper-fast", "budget_block": 1}, STREAMING),
    "compressed, in eight bits": ("flowcache", {"budget_block": 1, "kv_bits": 8}, STREAMING),
    "the newest, in four bits": ("causal", {"kvrange": 1, "kv_bits": 4}, STREAMING),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stream_goes_on_from_any_part(pipeline, name):
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


def test_solver_and_decoder_go_on(pipeline):
    latents, velocities = torch.randn(4, 3, 4, 4), torch.randn(6, 4, 3, 4, 4)
    stopped, goes_on = ChunkUniPC(6, 8.0), ChunkUniPC(6, 8.0)
    for step in range(3):
        latents = stopped.step(7, step, latents, velocities[step])
    goes_on.load_state_dict(stopped.state_dict())
    for step in range(3, 6):
        after = [solver.step(7, step, latents, velocities[step]) for solver in (stopped, goes_on)]
        assert torch.equal(*after)
    stopped, goes_on = (VideoDecoder(pipeline.vae) for _ in range(2))
    stopped.decode(latents)
    goes_on.load_state_dict(stopped.state_dict())
    assert torch.equal(stopped.decode(latents), goes_on.decode(latents))


QUICK = ["--height", 32, "--width", 32, "--inference_steps", 4, "--ar_step", 2, "--causal_block_size", 2]
FLAGS = [*QUICK, "--prompt", "a red circle", "--outdir", "out"]
FLAGS += ["--teacache_thresh", 0.05]
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
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: loaded_once)
    chosen = random.Random(0)
    for _ in range(10):
        kill_at(chosen.randrange(60), lambda: front(*flags, "--resume"))
    assert front(*flags, "--resume") == 0
    assert {path.name for path in folder.iterdir()} == names
    assert video.read_bytes() == content
    assert decided(Trace.load(video.with_suffix(".trace.json"))) == decided(trace)


@pytest.mark.parametrize(("failure", "code"), [((KeyboardInterrupt,), 130), ((OSError, 28, "full"), 1)])
def test_a_run_that_stops_names_what_it_can_go_on_from(
    front, checkpoint, tmp_path, monkeypatch, capsys, pipeline, failure, code
):
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pipeline)
    flags = ["--model_id", checkpoint, *QUICK, "--num_frames", 17, "--prompt", "a", "--outdir", "out"]
    for resume, moment in ((["--resume"], 30), ([], 1)):
        assert stop_at(moment, failure, lambda resume=resume: front(*flags, *resume)) == code
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        assert bool(resume) == (".resume.pt" in line)
    assert front(*flags, "--resume") == 0
    folder = tmp_path / "out" / "skyreels_v2"
    assert sorted(path.name.partition(".")[2] for path in folder.iterdir()) == [
        "mp4",
        "reuse.png",
        "trace.json",
    ]


def test_other_weights_begin_another_video(front, checkpoint, monkeypatch, caplog):
    flags = ["--model_id", checkpoint, *QUICK, "--num_frames", 17, "--prompt", "a", "--resume"]
    assert kill_at(40, lambda: front(*flags))
    assert len(list(Path("outputs").rglob("*.part.mp4"))) == 1
    monkeypatch.setattr("skyreels_v2.sampler.folder_digest", lambda folder: "another")
    assert front(*flags) == 0
    assert len(list(Path("outputs").rglob("*.part.mp4"))) == 1, "that of the other weights is left alone"
