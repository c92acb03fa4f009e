"""Sampling by several processes and several methods, what it leaves behind, and what it refuses."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from synthetic_run import FINISHED, PROMPTS, SAMPLES, make_run, make_sampling, read_manifest

from flowcache.benchmark.runs import find_model_runs
from flowcache.benchmark.samples import Sample, SamplesFailed
from flowcache.benchmark.sampling import run_on
from flowcache.parallel.launch import Rank, list_devices, select_device, start_on_all
from flowcache.running import run_checked
from flowcache.trace import Trace

SHAPES = [Sample(f"a shape-{index}", PROMPTS[0], index) for index in range(6)]
NAMES = [sample.name for sample in SHAPES]
SETTINGS = {"num_steps": 3, "video": {"size": 32}}


def sampling_in(folder, samples=SHAPES, **options):
    return make_sampling(folder, ("vanilla",), samples, **options)


def fork(function):
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


def exit_code(process):
    process.join(60)
    return process.exitcode


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def videos_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "videos").iterdir()}


def test_two_ranks_finish_what_a_killed_rank_left_as_one_would_have(tmp_path):
    alone, shared, log = (tmp_path / name for name in ("alone", "shared", "log"))

    def start(rank, dies_at=""):
        return fork(sampling_in(shared, rank=Rank(rank, 2, rank), log=log, dies_at=dies_at).run)

    assert "6 of 6" in sampling_in(alone).run()
    assert exit_code(start(1, NAMES[3])) == -signal.SIGKILL
    assert [record["name"] for record in read_manifest(shared)] == [NAMES[1]]
    assert list(videos_of(shared)) == [f"{NAMES[1]}.mp4"], "no unfinished video"

    processes = [start(rank) for rank in range(2)]
    assert [exit_code(process) for process in processes] == [0, 0]
    assert videos_of(shared) == videos_of(alone) and contents(shared) == FINISHED
    assert len((shared / "manifest.jsonl").read_text().splitlines()) == len(SHAPES), "none was made twice"
    assert {record["rank"] for record in read_manifest(shared)} == {0, 1}
    times = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    assert len(times) >= 2 and all(end <= start for (_, end), (start, _) in pairwise(times))


def test_only_missing_videos_are_made_again_and_a_record_describes_each(tmp_path):
    samples, calls = [SHAPES[0], Sample("é" * 125 + "x", PROMPTS[1], 7)], []
    sampling_in(tmp_path, samples).run()
    _, record = read_manifest(tmp_path)
    assert (record["prompt"], record["seed"], record["rank"], record["settings"]) == (PROMPTS[1], 7, 0, SETTINGS)
    assert record["file"] == f"videos/{samples[1].name}.mp4" and record["seconds"] > 0
    assert Trace.load(tmp_path / record["trace"]).method == "vanilla"
    assert len(record["environment"]["commit"].removesuffix("-dirty")) == 40
    assert "made 0 videos; 2 of 2" in sampling_in(tmp_path, samples, calls=calls).run() and calls == []
    (tmp_path / "videos" / f"{NAMES[0]}.mp4").unlink()
    assert "made 1 videos; 2 of 2" in sampling_in(tmp_path, samples).run()


def test_a_rank_that_fails_ends_after_the_videos_of_the_others(tmp_path):
    """The launcher ends all processes with the first that fails."""
    (folder,) = sampling_in(tmp_path).folders.values()
    held = multiprocessing.Event()

    def hold():
        with folder.open(), folder.lock(f"sample {NAMES[1]}"):
            held.set()
            time.sleep(1)
            (tmp_path / "released").touch()
            os._exit(0)

    other = fork(hold)
    assert held.wait(60)
    with pytest.raises(SamplesFailed):
        sampling_in(tmp_path, SHAPES[:2], errors={NAMES[0]: ValueError("bad")}).run()
    assert (tmp_path / "released").exists() and exit_code(other) == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_stop_at_once(tmp_path, error, capsys):
    sampling = sampling_in(tmp_path, errors={NAMES[0]: error})
    assert run_checked(lambda: sampling, lambda sampling: run_on(["cpu"], sampling)) in (1, 130)
    assert contents(tmp_path) == FINISHED and not videos_of(tmp_path)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "same command" in line


def test_repeated_failures_stop_the_process_and_come_last_in_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr("flowcache.benchmark.sampling.MAX_FAILURES_IN_A_ROW", 4)
    bad = dict.fromkeys(NAMES[:-1], RuntimeError("device lost"))
    for message in ("stopped after 4 failures in a row", "made 1 videos; 1 of"):
        with pytest.raises(SamplesFailed, match=message):
            sampling_in(tmp_path, errors=bad).run()


@pytest.mark.parametrize("line", ["[1]", '{"name": []}', '{"name": "a shape-0", "file": 3}', "[" * 5000, "\xff"])
def test_a_damaged_line_costs_one_video_only(tmp_path, line):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(f"{line}\n", encoding="latin-1")
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    for _ in range(2):
        assert "made 1 videos; 1 of 1" in sampling_in(tmp_path, SHAPES[:1]).run()
        manifest.write_bytes(manifest.read_bytes()[:-40])


def test_settings_of_a_folder_hold_once_it_has_a_video(tmp_path):
    with pytest.raises(SamplesFailed):
        sampling_in(tmp_path, SHAPES[:1], errors={NAMES[0]: ValueError("bad")}).run()
    late = sampling_in(tmp_path, SHAPES[1:2], num_steps=4)
    assert "1 of 1" in sampling_in(tmp_path, SHAPES[:1], num_steps=5).run()
    size = {"num_steps": 5, "video": {"size": 64}}
    other = sampling_in(tmp_path, [replace(SHAPES[0], seed=9)], num_steps=5)
    for message, refused in (
        (r"base_save_path: .* another num_steps", late.run),
        (r"another video.size \(32 there, 64 here\)", lambda: sampling_in(tmp_path, **size)),
        (r"another seed \(0 there, 9 here\)", other.check),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


@pytest.mark.parametrize("name", ["a/b", "a\nb", "a\0", "", ".", "..", "x" * 252])
def test_names_that_no_file_can_have_or_two_samples_share_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        Sample(name, "a", 0)
    with pytest.raises(ValueError, match="share the name"):
        sampling_in(tmp_path, [SHAPES[0], SHAPES[0]]).check()


def test_each_sample_is_made_by_all_methods_before_the_next_and_weights_are_read_once(tmp_path):
    calls, other = [], "flowcache:paper-fast"
    assert "made 4 videos; 4 of 4" in make_run(tmp_path, calls=calls)
    assert calls[0] == ("load", "vanilla")
    assert [name for name, _ in calls[1:]] == [s.name for s in SAMPLES for _ in range(2)]
    assert [method for _, method in calls[1:]] == [other, "vanilla", "vanilla", other], "in turn"


def test_failures_stop_neither_methods_nor_samples_and_are_tried_again(tmp_path):
    alone, failing = tmp_path / "alone", tmp_path / "failing"
    make_run(alone, samples=SHAPES)
    errors = {NAMES[0]: ValueError("undecodable"), NAMES[3]: torch.OutOfMemoryError("out of memory")}
    errors[NAMES[4]] = RuntimeError("not finite")
    with pytest.raises(SamplesFailed) as failure:
        make_run(failing, samples=SHAPES, errors=errors)
    first, *lines = str(failure.value).splitlines()
    assert "made 9 videos; 9 of 12" in first
    for (name, error), line in zip(errors.items(), lines, strict=True):
        assert f"vanilla/videos/{name}.mp4: {error}" in line
    assert find_model_runs(failing)[0].names == [*NAMES[1:3], NAMES[5]], "made by all methods"
    assert "made 3 videos; 12 of 12" in make_run(failing, samples=SHAPES)
    assert contents(failing) == ["flowcache_paper-fast", "vanilla", "ways.json"]
    assert videos_of(failing / "vanilla") == videos_of(alone / "vanilla")


def test_later_methods_are_listed_last_and_another_models_folder_is_refused(tmp_path):
    for methods in (("vanilla", "flowcache:paper-fast"), ("causal", "vanilla")):
        make_run(tmp_path, samples=SAMPLES[:1], methods=methods)
    content = json.loads((tmp_path / "ways.json").read_text())
    assert content["ways"] == ["vanilla", "flowcache:paper-fast", "causal"]
    with pytest.raises(ValueError, match="videos of Abacus"):
        replace(make_sampling(tmp_path), model="Quipu").check()


def test_ranks_are_those_of_the_launcher():
    assert Rank.from_environment({}) == Rank(0, 1, 0)
    assert Rank.from_environment({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}) == Rank(9, 16, 1)
    for environment in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}):
        with pytest.raises(ValueError, match="RANK: expected"):
            Rank.from_environment(environment)


def test_torchrun_serves_several_devices(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    monkeypatch.setattr(sys, "argv", ["sample_video.py", "--gpus", "0,1"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    for world, devices in ((None, ["cuda:0"]), (None, ["cuda:0", "cuda:1"]), ("2", ["cuda:0", "cuda:1"])):
        monkeypatch.setenv("WORLD_SIZE", world) if world else monkeypatch.delenv("WORLD_SIZE", raising=False)
        start_on_all(devices)
    assert [words[-4:] for words in started] == [["--nproc_per_node=2", *sys.argv]]


def test_devices_are_those_named(monkeypatch):
    def devices(count, text, gpus=""):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setenv("DEVICES", text)
        return list_devices(gpus)

    assert (devices(2, ""), devices(4, "1, 3")) == (["cuda:0", "cuda:1"], ["cuda:1", "cuda:3"])
    assert devices(4, "cpu") == devices(0, " ") == ["cpu"]
    for count, text in ((4, "0,x"), (4, "0,0"), (4, "4"), (4, "1,"), (0, "0")):
        with pytest.raises(ValueError, match="DEVICES: "):
            devices(count, text, "cpu")
    assert select_device(Rank(3, 4, 3), ["cpu"]) == "cpu"
    assert select_device(Rank(3, 4, 1), ["cuda:1", "cuda:3"]) == "cuda:3"
    with pytest.raises(ValueError, match="LOCAL_RANK"):
        select_device(Rank(2, 3, 2), ["cuda:1", "cuda:3"])
