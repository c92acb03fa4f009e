"""Sampling by several processes, what it leaves behind, and what it refuses."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from manifests import read_manifest

from flowcache.benchmark.locks import Locks
from flowcache.benchmark.ranks import Rank, device_of, list_devices, starts_others
from flowcache.benchmark.sample import Sample
from flowcache.benchmark.sample_folder import SampleFolder
from flowcache.benchmark.sampling import SamplingJob, run_on
from flowcache.command_line import run_checked
from flowcache.trace import Trace
from flowcache.video import VideoWriter

SAMPLES = [Sample(f"a shape-{index}", "a shape", index) for index in range(6)]


class NoiseSampler:
    """Draws frames from the seed alone; writes down when it loads; dies where it is told to."""

    def __init__(self, log=None, dies_at=""):
        self.settings = {"num_steps": 3, "video": {"size": 32}}
        self.log, self.dies_at = log, dies_at

    def check(self, sample):
        """Nothing to refuse."""

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
            writer.write(frames[1:])
        time.sleep(0.1)
        return Trace(method="noise")


def start(rank, folder, dies_at=""):
    """A process of its own that samples as one of two ranks."""

    def sample():
        sampler = NoiseSampler(folder.with_suffix(".loads"), dies_at)
        job = SamplingJob(SAMPLES, sampler, SampleFolder(folder, sampler.settings), Rank(rank, 2, rank))
        job.check()
        job.run()

    process = multiprocessing.get_context("fork").Process(target=sample)
    process.start()
    return process


def exit_code(process):
    process.join(60)
    return process.exitcode


def job_in(folder, samples=SAMPLES, **settings):
    sampler = NoiseSampler()
    return SamplingJob(samples, sampler, SampleFolder(folder, {**sampler.settings, **settings}))


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
    assert not any((shared / ".unfinished").iterdir())
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


@pytest.mark.parametrize("name", ["a/b", ".a", "", "x" * 240])
def test_names_that_no_file_can_bear_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        Sample(name, "a", 0)


def test_two_samples_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share the name"):
        job_in(tmp_path, [SAMPLES[0], SAMPLES[0]]).check()


def test_a_lock_keeps_other_processes_out_until_its_holder_is_gone(tmp_path):
    locks = Locks(tmp_path / "locks")

    def other_gets(name):
        child = os.fork()
        if child == 0:
            with Locks(tmp_path / "locks").attempt(name) as free:
                os._exit(free)
        return bool(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with locks.attempt("a") as free:
        assert free and not other_gets("a") and other_gets("b")
    assert other_gets("a"), "and the other one, which just ended while it held the lock, is no hindrance"
    assert other_gets("a")


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
    assert not any((tmp_path / ".unfinished").iterdir())
