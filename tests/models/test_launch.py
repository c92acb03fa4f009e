"""Programs started as several processes: one video, one report, and one end."""

import os
import re
import signal
import subprocess
import sys
from functools import partial
from random import Random

import pytest
import torch
from launched import launch
from programs import FOLDERS, script_words
from reference import ROOT
from resumed import decided, watched

from flowcache import Trace
from flowcache.parallel import Group
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline

TOGETHER = {"magi1": ("--cp_size", 2), "skyreels_v2": ("--use_usp",)}
KEPT = {"a.mp4", "a.trace.json", "a.reuse.png"}


def run(front, words, around, rank):
    return around(rank, partial(front, "--use_usp", *words[rank]))


def run_plainly(_, run):
    return run()


def run_out_of_memory(failing, rank, run):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    with watched(3 if rank == failing else -1, fail):
        return run()


def run_until_killed(moments, rank, run):
    with watched(moments[rank], lambda: os.kill(os.getpid(), signal.SIGKILL)):
        return run()


def read_offload(found, rank, run):
    """Run where the second process has a small GPU, or its like; 11 if weights are offloaded, else 10."""
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowcache.cli.log_needs", lambda *_: found if rank else [])
        patch.setattr("flowcache.cli.Job.run", lambda job, _: ran.append(job.sampler.model.loading.offload) or "")
        return run() or 10 + ran[0]


def run_snippet(snippet, folder, rank):
    exec(snippet, made := {})
    torch.save(made["video"].latents, folder / f"{rank}.pt")


@pytest.fixture
def together(program, tmp_path):
    """Run the program of SkyReels-V2 in two processes."""
    front = program("skyreels_v2")
    front.first += ("--num_frames", 17, "--output_path", "a.mp4")

    def start(*words, of_rank=lambda _: (), around=run_plainly):
        of_each = [(*words, *of_rank(rank)) for rank in range(2)]
        return launch(tmp_path / "said", partial(run, front, of_each, around))

    start.alone = front
    return start


@pytest.fixture
def whole(together, tmp_path):
    """The video and the decisions of one process, whose files are gone."""
    assert together.alone() == 0
    found = take(tmp_path)
    assert not list(tmp_path.glob("a.*"))
    return found


def take(folder):
    """Video and decisions, whose files are removed; nothing else may be there."""
    assert {path.name for path in folder.glob("*a*.*")} == KEPT
    trace = Trace.load(folder / "a.trace.json")
    for window in trace.windows:
        window.kv_rank_bytes.clear()  # of each process
    found = (folder / "a.mp4").read_bytes(), decided(trace)
    for name in KEPT:
        (folder / name).unlink()
    return found


def test_the_first_of_two_processes_writes_the_video_of_one(together, whole, tmp_path):
    first, second = together()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "video: " in first.out and not second.out and "step/s" not in second.err
    assert take(tmp_path) == whole


def test_a_drawn_seed_is_that_of_the_first(together, tmp_path):
    ended = together("--seed", -1)
    assert [each.code for each in ended] == [0, 0], ended
    seed = Trace.load(tmp_path / "a.trace.json").settings["video"]["seed"]
    drawn, _ = take(tmp_path)
    assert [each.code for each in together("--seed", seed)] == [0, 0]
    assert take(tmp_path)[0] == drawn


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--seed",), "seed is 0 on rank 0 and 1 on rank 1"),
        (("--shift", "5", "--inference_steps"), "rank 0"),
        (("--cfg_size",), "cfg_size is 1 on rank 0 and 2 on rank 1"),
    ],
)
def test_what_differs_between_processes_is_refused_once(together, tmp_path, words, named):
    first, second = together(of_rank=lambda rank: (*words, rank + (words == ("--cfg_size",))))
    assert (first.code, second.code, second.err) == (2, 2, "")
    (line,) = first.err.splitlines()
    assert named in line or "inference_steps" in line
    assert not list(tmp_path.glob("a.*"))


def test_what_one_process_refuses_the_first_reports(together):
    first, second = together(of_rank=lambda rank: ("--nonsense",) * rank)
    assert (first.code, second.code, second.err) == (2, 2, "")
    assert re.fullmatch("error: rank 1: .*--nonsense.*\n", first.err)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_out_of_memory_ends_all_with_its_sentence(together, tmp_path, failing):
    ended = together(around=partial(run_out_of_memory, failing))
    assert [each.code for each in ended] == [1, 1]
    assert not ended[1].err
    line = ended[0].err.splitlines()[-1]
    assert re.match(f"error: {'rank 1: ' * failing}CUDA out of memory", line), line
    assert not set(tmp_path.glob(".*"))


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_with_a_sentence(together, killed):
    moments = [3 if rank == killed else -1 for rank in range(2)]
    ended = together(around=partial(run_until_killed, moments))
    assert ended[killed].code == -signal.SIGKILL
    assert ended[1 - killed].code == 1
    assert "another process of the run" in ended[1 - killed].err.splitlines()[-1]


def test_killed_at_random_moments_it_resumes_to_the_same_bytes(together, whole, tmp_path):
    chosen, kills = Random(0), 0
    for turn in range(3):
        moments = [chosen.randrange(40), chosen.randrange(40)] if turn % 2 else [chosen.randrange(40), -1]
        chosen.shuffle(moments)
        ended = together("--resume", around=partial(run_until_killed, moments))
        assert {each.code for each in ended} <= {0, 1, -signal.SIGKILL}, ended
        kills += any(each.code for each in ended)
        if not any(each.code for each in ended):
            assert take(tmp_path) == whole
    assert kills > 1
    assert [each.code for each in together("--resume")] == [0, 0]
    assert take(tmp_path) == whole


@pytest.mark.parametrize("found", [["--offload"], []])
def test_offload_of_a_small_gpu_holds_for_all(together, found):
    """The GPUs may differ; with ``--resume``, the lock of the video is taken already."""
    first, second = together("--resume", around=partial(read_offload, found))
    assert first.code == second.code == 10 + bool(found), first.err


def test_the_snippet_of_the_page_makes_one_video_in_two_processes(tmp_path):
    _, _, rest = (ROOT / "docs/parallel.md").read_text().partition("```python\n")
    snippet = rest.partition("```")[0]
    assert "num_frames=97" in snippet
    snippet = snippet.replace("num_frames=97", "num_frames=17, num_inference_steps=4, height=64, width=64, seed=1")
    ended = launch(tmp_path / "said", partial(run_snippet, snippet, tmp_path))
    assert [each.code for each in ended] == [0, 0], ended
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    single = FlowCacheSkyReelsV2Pipeline.from_pretrained("small")
    alone = single(
        "a red circle moves right over a dark background",
        num_frames=17,
        num_inference_steps=4,
        height=64,
        width=64,
        seed=1,
    )
    assert torch.equal(first, second) and torch.equal(first, alone.latents)


@pytest.mark.parametrize("model", TOGETHER)
def test_the_first_process_alone_loads_the_text_encoder(program, model):
    adapter = program(model).prepare("--output_path", "x.mp4").sampler.model
    first, second = (adapter.load("cpu", Group(index, 2)) for index in range(2))
    assert first.text_encoder is not None and second.text_encoder is None
    assert second.process_group.size == 2


def test_torchrun_starts_the_script_of_magi(tmp_path):
    """The whole way once, weights and script included."""
    script = FOLDERS["magi1"] / "scripts/single_run/flowcache_t2v.sh"
    words = "--model small --num_frames 24 --num_steps 8 --window_size 2 --output_path a.mp4"
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "FLOWCACHE_NO_INSTALL": "1", "OMP_NUM_THREADS": "1"}
    environment["GPUS_PER_NODE"] = "2"
    command = ["bash", script, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == KEPT | {"a.4x.mp4"}


@pytest.mark.parametrize(
    ("model", "script"), [("skyreels_v2", "run_flowcache_fast.sh"), ("self_forcing", "run_vanilla.sh")]
)
def test_scripts_start_torchrun(tmp_path, monkeypatch, model, script):
    monkeypatch.setenv("NPROC", "8")
    words = script_words(FOLDERS[model] / script, "--seed", 1, cwd=tmp_path)
    assert words[:4] == ["torch.distributed.run", "--standalone", "--nproc_per_node", "8"]
    assert "--use_usp" in words[words.index("--defaults") :]
