"""A resumed video is that of a run that was not killed."""

import errno
import shutil
from random import Random

import pytest
import torch
from resumed import check_stream, decided, kill_at, watched

from flowcache import PromptSchedule, Trace
from magi1 import method_config as magi_config
from skyreels_v2 import method_config as skyreels_config

COMPRESSED = {"compress_kv_cache": True, "total_cache_chunk_nums": 5}
RETIMED = {"scorer": "participative", "compactor": "retimed"}
MEASURED = {"rel_l1_thresh": 0.2, "warmup_steps": 1}
PAPER = {"preset": "paper-fast", "budget_block": 1}
RECOMPUTING = {"budget_block": 1, "prompt_switch": "recompute"}
PIXELS = torch.rand(3, 12, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
IMAGE, LAST = PIXELS[:, :1], PIXELS[:, 1:2]
#: Arguments of all streams, and those of streams of several windows, and of one.
ALL = {"magi1": {"num_frames": 44}, "skyreels_v2": {"height": 32, "width": 32, "inference_steps": 4}}
ALL["skyreels_v2"] |= {"ar_step": 2, "causal_block_size": 2, "base_num_frames": 17, "prefix": IMAGE}
CHANGING = {"prompt": PromptSchedule.parse("0: a red circle; 0.3: a circle; 0.8: a red circle")}
LONG, STREAMING = {"num_frames": 25, "overlap_history": 9, "last": LAST}, {"num_frames": 41, "streaming": True}
ORIGINAL = {"addnoise_condition": 20, "noise": "original"}
#: Model, name, configuration, arguments.
STREAMS = [
    ("magi1", "reuse", magi_config("flowcache", **MEASURED), {}),
    ("magi1", "reuse behind an image", magi_config("flowcache", **MEASURED), {"prefix": IMAGE}),
    ("magi1", "at intervals", magi_config("flowcache"), {}),
    ("magi1", "together", magi_config("teacache", **MEASURED), {}),
    ("magi1", "compressed", magi_config("flowcache", **COMPRESSED), {}),
    ("magi1", "re-timed", magi_config("flowcache", **COMPRESSED, **RETIMED), {}),
    ("magi1", "compressed behind a video", magi_config("flowcache", **COMPRESSED), {"prefix": PIXELS}),
    ("magi1", "in eight bits", magi_config("vanilla", **COMPRESSED, kv_bits=8), {}),
    ("magi1", "the newest", magi_config("flowcache", kv_bits=4), {"noise2clean_kvrange": [3, 2]}),
    ("magi1", "noise of the original", magi_config("flowcache"), {"prefix": IMAGE, "noise": "original"}),
    ("magi1", "changing prompts", magi_config("flowcache", **COMPRESSED), {**CHANGING, "prefix": PIXELS}),
    ("skyreels_v2", "changing prompts", skyreels_config("vanilla"), {**LONG, **CHANGING}),
    ("skyreels_v2", "prompts that recompute", skyreels_config("flowcache", **RECOMPUTING), {**STREAMING, **CHANGING}),
    (
        "skyreels_v2",
        "prompts of the paper",
        skyreels_config("flowcache", **{**PAPER, **RECOMPUTING}),
        {**STREAMING, **CHANGING},
    ),
    ("skyreels_v2", "reuse", skyreels_config("flowcache", threshold=0.05, use_ret_steps=False), LONG),
    ("skyreels_v2", "noise on the overlap", skyreels_config("flowcache"), {**LONG, "addnoise_condition": 20}),
    ("skyreels_v2", "noise of the original", skyreels_config("flowcache"), {**LONG, **ORIGINAL}),
    ("skyreels_v2", "whole window", skyreels_config("teacache"), LONG),
    ("skyreels_v2", "all together", skyreels_config("vanilla"), {**LONG, "ar_step": 0}),
    ("skyreels_v2", "all together, reused", None, {**LONG, "ar_step": 0}),
    ("skyreels_v2", "compressed", skyreels_config("flowcache", budget_block=1), STREAMING),
    ("skyreels_v2", "as the original compresses", skyreels_config("flowcache", **PAPER), STREAMING),
    ("skyreels_v2", "in eight bits", skyreels_config("flowcache", budget_block=1, kv_bits=8), STREAMING),
    ("skyreels_v2", "the newest", skyreels_config("causal", kvrange=1, kv_bits=4), STREAMING),
]


@pytest.mark.parametrize(("model", "name", "cache", "changes"), STREAMS)
def test_a_stream_resumes_from_any_part(pipelines, model, name, cache, changes):
    arguments = {**ALL[model], **changes, "cache": cache}
    stream, prompt = pipelines[model].stream, arguments.pop("prompt", "a red circle")
    check_stream(lambda trace, state: stream(prompt, **arguments, trace=trace, state=state), name)


def test_a_prompt_that_is_sent_late_leaves_the_live_chunk_as_it_is(pipelines):
    """The last chunk of this video is shorter than the others."""
    arguments = {**ALL["skyreels_v2"], **STREAMING, "cache": skyreels_config("flowcache", budget_block=1)}
    plain = list(pipelines["skyreels_v2"].stream("a red circle", **arguments))
    running = pipelines["skyreels_v2"].stream("a red circle", **arguments)
    sent = [*(next(running) for _ in plain[:-1]), running.send("a circle")]
    assert all(torch.equal(ours.latents, other.latents) for ours, other in zip(sent, plain, strict=True))


def test_killed_ten_times(skyreels, pipelines, tmp_path, monkeypatch):
    monkeypatch.setattr("skyreels_v2.adapter.load_pipeline", lambda *_, **__: pipelines["skyreels_v2"])
    flags = ["--prompt", "a red circle", "--outdir", "out", "--teacache_thresh", 0.05, "--ar_step", 2]
    flags += ["--num_frames", 25, "--base_num_frames", 17, "--overlap_history", 9, "--addnoise_condition", 20]
    folder = tmp_path / "out" / "skyreels_v2"

    def written():
        trace, video, picture = sorted(folder.iterdir(), key=lambda path: path.suffix)
        return video.read_bytes(), decided(Trace.load(trace)), picture.name

    assert skyreels(*flags) == 0
    whole = written()
    shutil.rmtree(folder)
    chosen = Random(0)
    for _ in range(10):
        kill_at(chosen.randrange(60), lambda: skyreels(*flags, "--resume"))
    assert skyreels(*flags, "--resume") == 0
    assert written() == whole


@pytest.fixture
def resume(magi, pipelines, monkeypatch):
    """The program of MAGI-1 with ``--resume`` and weights that are read already."""
    monkeypatch.setattr("magi1.adapter.load_pipeline", lambda *_, **__: pipelines["magi1"])
    flags = ["--output_path", "a.mp4", "--num_frames", 44, "--compress_kv_cache", "true"]
    return lambda *more: magi(*flags, "--total_cache_chunk_nums", 5, "--kv_bits", 8, "--resume", *more)


STOPS = [((KeyboardInterrupt,), 130), ((KeyboardInterrupt, 15), 143), ((OSError, errno.ENOSPC, "full"), 1)]


@pytest.mark.parametrize(("failure", "code"), STOPS)
def test_a_run_that_stops_names_its_state(resume, tmp_path, capsys, failure, code):
    def fail():
        raise failure[0](*failure[1:])

    for moment in (5, 58, 30):
        with watched(moment, fail):
            assert resume() == code
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        saved = (tmp_path / "a.resume.pt").exists()
        assert saved == ("a.resume.pt" in line), line
        assert saved == (moment > 5)
        assert not list(tmp_path.glob(".*")), "nothing is half-written"
    assert resume() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a.trace.json", "a.reuse.png"}


def test_a_state_of_another_prompt_or_setting_is_refused(resume, request, monkeypatch, capsys):
    assert kill_at(60, resume)
    request.getfixturevalue("unread")
    for flags, message in (
        (["--prompt", "a circle"], "prompt was 'a'"),
        (["--num_steps", 16, "--seed", 7], "runtime_config.num_steps was 8 and is 16 now, seed was 1234"),
        (["--kv_bits", 4], "reuse.storage.bits was 8 and is 4 now"),
    ):
        assert resume(*flags) == 2
        assert f"a.resume.pt belongs to another run: {message}" in capsys.readouterr().err
    monkeypatch.setattr("flowcache.sampler.folder_digest", lambda folder: "another")
    assert resume() == 2
    assert "a.resume.pt belongs to another run: weights.load was" in capsys.readouterr().err
