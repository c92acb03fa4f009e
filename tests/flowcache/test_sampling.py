"""Sampling by several processes, what it leaves behind, and what it refuses."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from manifests import FINISHED, read_manifest

from flowcache.benchmark.ranks import Rank, device_of, list_devices, starts_others
from flowcache.benchmark.sample import Sample, SamplesFailed
from flowcache.benchmark.sample_folder import SampleFolder
from flowcache.benchmark.sampling import MAX_FAILURES_IN_A_ROW, SamplingJob, run_on
from flowcache.running import run_checked
from flowcache.trace import Trace
from flowcache.video import VideoWriter

SAMPLES = [Sample(f"a shape-{index}", "a shape", index) for index in range(6)]


class NoiseSampler:
    """Draws frames from the seed alone; writes down when it loads; dies or fails where it is told to."""

    def __init__(self, log=None, dies_at="", errors=None):
        self.settings = {"num_steps": 3, "video": {"size": 32}}
        self.log, self.dies_at, self.errors = log, dies_at, errors or {}

    def check(self, sample):
        """Refuse what is to fail with a ``LookupError``."""
        if isinstance(self.errors.get(sample.name), LookupError):
            raise ValueError("too short")

    def load(self):
        """Take some time, and say when."""
        start = time.monotonic()
        time.sleep(0.2)
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{start} {time.monotonic()}\n")

    def generate(self, sample, path):
        """Frames of noise, or an end without warning after the first of them."""
        frames = np.random.default_rng(sample.seed).integers(0, 255, (4, 32, 32, 3), np.uint8)
        with VideoWriter(path, 8) as writer:
            writer.write(frames[:1])
            if sample.name == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if sample.name in self.errors:
                raise self.errors[sample.name]
            writer.write(frames[1:])
        time.sleep(0.1)
        return Trace(method="noise")


def start(rank, folder, dies_at="", errors=None):
    """A process of its own that samples as one of two ranks."""

    def sample():
        sampler = NoiseSampler(folder.with_suffix(".loads"), dies_at, errors)
        job = SamplingJob(SAMPLES, sampler, SampleFolder(folder, sampler.settings), Rank(rank, 2, rank))
        job.check()
        try:
            job.run()
        except SamplesFailed:
            sys.exit(1)

    process = multiprocessing.get_context("fork").Process(target=sample)
    process.start()
    return process


def exit_code(process):
    process.join(60)
    return process.exitcode


def job_in(folder, samples=SAMPLES, errors=None, keep_going=False, **settings):
    sampler = NoiseSampler(errors=errors)
    target = SampleFolder(folder, {**sampler.settings, **settings})
    return SamplingJob(samples, sampler, target, keep_going=keep_going)


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def videos_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "videos").iterdir()}


def test_a_killed_rank_is_finished_by_two_others_as_one_would_have(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert "6 of 6" in job_in(alone).run()
    killed = start(1, shared, SAMPLES[3].name)
    assert exit_code(killed) == -signal.SIGKILL
    assert [record["name"] for record in read_manifest(shared)] == [SAMPLES[1].name]
    assert list(videos_of(shared)) == [f"{SAMPLES[1].name}.mp4"], "the unfinished one is not among them"

    processes = [start(rank, shared) for rank in range(2)]
    assert [exit_code(process) for process in processes] == [0, 0]
    assert videos_of(shared) == videos_of(alone)
    assert len((shared / "manifest.jsonl").read_text().splitlines()) == len(SAMPLES), "none was made twice"
    assert {record["rank"] for record in read_manifest(shared)} == {0, 1}
    assert contents(shared) == FINISHED
    loads = (shared.with_suffix(".loads")).read_text().splitlines()
    times = sorted(tuple(map(float, line.split())) for line in loads)
    assert len(times) >= 2 and all(end <= start for (_, end), (start, _) in pairwise(times))


def test_the_manifest_says_how_each_video_came_about(tmp_path):
    sample = Sample("a-0", "a", 7)
    job_in(tmp_path, [sample]).run()
    (record,) = read_manifest(tmp_path)
    assert (record["prompt"], record["seed"], record["rank"]) == ("a", 7, 0)
    assert record["settings"] == NoiseSampler().settings
    assert (tmp_path / record["file"]).is_file() and record["seconds"] > 0
    assert Trace.load(tmp_path / record["trace"]).method == "noise"
    assert len(record["environment"]["commit"].removesuffix("-dirty")) == 40


def test_what_is_there_is_not_made_again_unless_its_file_is_gone(tmp_path, monkeypatch):
    job_in(tmp_path, SAMPLES[:2]).run()
    monkeypatch.setattr(NoiseSampler, "load", lambda self: pytest.fail("weights were read"))
    assert "made 0 videos; 2 of 2" in job_in(tmp_path, SAMPLES[:2]).run()
    monkeypatch.undo()
    (tmp_path / "videos" / f"{SAMPLES[0].name}.mp4").unlink()
    assert "made 1 videos; 2 of 2" in job_in(tmp_path, SAMPLES[:2]).run()


def test_a_sample_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path):
    alone = tmp_path / "alone"
    job_in(alone).run()
    failing = tmp_path / "failing"
    errors = {
        SAMPLES[0].name: ValueError("frame 7 cannot be decoded"),
        SAMPLES[3].name: torch.OutOfMemoryError("CUDA out of memory"),
        SAMPLES[4].name: RuntimeError("not finite"),
    }
    with pytest.raises(SamplesFailed) as failure:
        job_in(failing, errors=errors).run()
    first, *lines = str(failure.value).splitlines()
    assert "made 3 videos; 3 of 6" in first
    assert [str(error) in line for error, line in zip(errors.values(), lines, strict=True)] == [True] * 3
    assert all(f"{name}.mp4" in line for name, line in zip(errors, lines, strict=True))
    assert contents(failing) == FINISHED
    assert [record["name"] for record in read_manifest(failing)] == [SAMPLES[i].name for i in (1, 2, 5)]

    assert "made 3 videos; 6 of 6" in job_in(failing).run()
    assert videos_of(failing) == videos_of(alone)


def test_failures_of_every_rank_are_in_the_list_and_stop_no_rank(tmp_path):
    errors = [
        {SAMPLES[rank].name: ValueError(f"rank {rank} failed"), SAMPLES[5].name: ValueError("bad")}
        for rank in range(2)
    ]
    processes = [start(rank, tmp_path / "out", errors=errors[rank]) for rank in range(2)]
    assert 1 in [exit_code(process) for process in processes]
    assert len(videos_of(tmp_path / "out")) == 5, "what fails in one process is made by the other"
    job = job_in(tmp_path / "out")
    assert list(job.failures().values()) == ["bad"]
    assert "6 of 6" in job.run()
    assert job.failures() == {}


def test_a_rank_that_fails_ends_after_the_videos_of_the_others(tmp_path):
    """The launcher ends all processes with the first that fails."""
    folder = SampleFolder(tmp_path, NoiseSampler().settings)

    def hold():
        with folder.open(), folder.locks.hold(f"sample {SAMPLES[1].name}"):
            (tmp_path / "held").touch()
            time.sleep(1)
            (tmp_path / "released").touch()
            os._exit(0)

    other = multiprocessing.get_context("fork").Process(target=hold)
    other.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(SamplesFailed):
        job_in(tmp_path, SAMPLES[:2], errors={SAMPLES[0].name: ValueError("bad")}).run()
    assert (tmp_path / "released").exists()
    assert exit_code(other) == 0


def test_a_full_disk_and_ctrl_c_stop_at_once(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            job_in(tmp_path, errors={SAMPLES[0].name: error}).run()
        assert contents(tmp_path) == FINISHED
        assert not videos_of(tmp_path)


def test_what_fails_every_time_stops_the_process_and_comes_last_in_the_next_run(tmp_path):
    samples = [Sample(f"a-{index}", "a", index) for index in range(MAX_FAILURES_IN_A_ROW + 2)]
    bad = {sample.name: RuntimeError("device lost") for sample in samples[:-1]}
    with pytest.raises(SamplesFailed, match=f"stopped after {MAX_FAILURES_IN_A_ROW} failures in a row"):
        job_in(tmp_path, samples, errors=bad).run()
    with pytest.raises(SamplesFailed, match="made 1 videos; 1 of"):
        job_in(tmp_path, samples, errors=bad).run()


def test_all_samples_that_cannot_be_made_are_named_at_the_start(tmp_path):
    bad = {SAMPLES[1].name: LookupError("too short"), SAMPLES[4].name: LookupError("too short")}
    with pytest.raises(SamplesFailed) as failure:
        job_in(tmp_path, errors=bad).check()
    assert all(f"{name}: too short" in str(failure.value) for name in bad)
    assert contents(tmp_path) == [], "nothing is written before all is checked"
    job = job_in(tmp_path, errors=bad, keep_going=True)
    job.check()
    with pytest.raises(SamplesFailed, match="4 of 6"):
        job.run()


def test_failures_bind_no_settings(tmp_path):
    with pytest.raises(SamplesFailed):
        job_in(tmp_path, SAMPLES[:1], errors={SAMPLES[0].name: ValueError("bad")}).run()
    assert "1 of 1" in job_in(tmp_path, SAMPLES[:1], num_steps=5).run()


def test_a_long_name_is_that_of_the_video(tmp_path):
    sample = Sample("é" * 125 + "x", "long", 0)
    job_in(tmp_path, [sample]).run()
    (record,) = read_manifest(tmp_path)
    assert record["file"] == f"videos/{sample.name}.mp4"
    assert Trace.load(tmp_path / record["trace"]).method == "noise"


@pytest.mark.parametrize(
    "line", ["[1]", '{"name": []}', '{"name": "a shape-0", "file": 3}', "[" * 5000, "\xff"]
)
def test_a_damaged_line_costs_one_video_and_nothing_else(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text(f"{line}\n", encoding="latin-1")
    (tmp_path / "settings.json").write_text(json.dumps(NoiseSampler().settings))
    assert "made 1 videos; 1 of 1" in job_in(tmp_path, SAMPLES[:1]).run()


def test_damaged_settings_are_named(tmp_path):
    job_in(tmp_path, SAMPLES[:1]).run()
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json cannot be read"):
        job_in(tmp_path, SAMPLES[:1])


def test_a_line_cut_short_costs_one_video_and_nothing_else(tmp_path):
    job_in(tmp_path, SAMPLES[:2]).run()
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    assert len(read_manifest(tmp_path)) == 1
    assert "made 1 videos; 2 of 2" in job_in(tmp_path, SAMPLES[:2]).run()
    assert [record["seed"] for record in read_manifest(tmp_path)] == [0, 1]


def test_videos_of_other_settings_are_kept_apart(tmp_path):
    job_in(tmp_path, SAMPLES[:1]).run()
    with pytest.raises(ValueError, match=r"other settings \(video.size is 32 there and 64 here\)"):
        job_in(tmp_path, video={"size": 64})
    with pytest.raises(ValueError, match=r"of another seed \(0 there, 9 here\)"):
        job_in(tmp_path, [replace(SAMPLES[0], seed=9)]).check()


def test_settings_of_a_run_that_made_nothing_bind_nobody(tmp_path):
    late = job_in(tmp_path, SAMPLES[:1])
    assert "1 of 1" in job_in(tmp_path, SAMPLES[:1], num_steps=5).run()
    with pytest.raises(ValueError, match="other settings"):
        SamplingJob(SAMPLES[1:2], late.sampler, late.folder).run()
    assert json.loads((tmp_path / "settings.json").read_text())["num_steps"] == 5


@pytest.mark.parametrize("name", ["a/b", "a\nb", "a\0", "", ".", "..", "x" * 252])
def test_names_that_no_file_can_bear_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        Sample(name, "a", 0)


def test_two_samples_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share the name"):
        job_in(tmp_path, [SAMPLES[0], SAMPLES[0]]).check()


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Rank(0, 1, 0)),
        ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, Rank(9, 16, 1)),
        ({"RANK": "2", "WORLD_SIZE": "2"}, None),
        ({"RANK": "x"}, None),
    ],
)
def test_ranks_are_those_of_the_launcher(environment, rank):
    if rank is None:
        with pytest.raises(ValueError, match="RANK must be a number below WORLD_SIZE"):
            Rank.from_environment(environment)
    else:
        assert Rank.from_environment(environment) == rank


def test_devices_are_those_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert list_devices("gpus", "") == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert list_devices("gpus", "cpu") == ["cpu"]
    named = list_devices("gpus", "1, 3")
    assert named == ["cuda:1", "cuda:3"]
    assert device_of(Rank(5, 6, 1), named) == "cuda:3"
    assert starts_others({}, named) and not starts_others({"WORLD_SIZE": "1"}, named)
    for text, message in (
        ("0,x", "numbers of GPUs"),
        ("0,0", "twice"),
        ("4", "names GPU 4"),
        ("1,", "numbers"),
    ):
        with pytest.raises(ValueError, match=f"DEVICES .*{message}|DEVICES {message}"):
            list_devices("DEVICES", text)
    with pytest.raises(ValueError, match="more processes"):
        device_of(Rank(2, 3, 2), named)


def test_without_a_gpu_the_cpu_serves_any_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list_devices("gpus", " ") == ["cpu"]
    assert device_of(Rank(7, 8, 7), ["cpu"]) == "cpu"
    with pytest.raises(ValueError, match="gpus names GPU 0, but PyTorch finds 0"):
        list_devices("gpus", "0")


def test_an_interrupted_benchmark_says_how_to_go_on(tmp_path, capsys):
    class Interrupted(NoiseSampler):
        def generate(self, sample, path):
            raise KeyboardInterrupt

    job = replace(job_in(tmp_path), sampler=Interrupted())
    assert run_checked(lambda: job, lambda job: run_on(["cpu"], job)) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "same command" in line
    assert not (tmp_path / ".unfinished").exists()
