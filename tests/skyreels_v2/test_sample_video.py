"""Sampling of benchmarks with SkyReels-V2, on a tiny checkpoint with random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from manifests import FINISHED, fail_first, read_manifest
from programs import Program
from reference import ROOT

from flowcache.benchmark import __main__ as scoring
from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from skyreels_v2 import sampler

FAULTS = ROOT / "tests" / "data" / "faults"
QUICK = ["--height", 32, "--width", 32, "--num_frames", 9, "--fps", 4]
QUICK += ["--inference_steps", 4, "--ar_step", 1, "--causal_block_size", 2]


@pytest.fixture
def front(monkeypatch, tmp_path, checkpoint):
    """The program, run in an empty folder on the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    first = ("--model_id", checkpoint, "--gpus", "cpu", *QUICK)
    return Program(ROOT / "FlowCache4SkyReels-V2" / "sample_video.py", monkeypatch, first)


@pytest.fixture
def benchmarks(tmp_path):
    """VBench's list of a dimension, and a scene of Physics-IQ."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "scene.txt").write_text("a red circle\n")
    physics = tmp_path / "physics"
    videos = physics / "split-videos" / "conditioning" / "8FPS"
    videos.mkdir(parents=True)
    with VideoWriter(videos / "0001_conditioning-videos_8FPS_perspective-left_take-1_roll.mp4", 8) as writer:
        writer.write(np.full((24, 32, 32, 3), 200, np.uint8))
    row = "0001_perspective-left_take-1_roll.mp4,a circle,0001_perspective-left_roll.mp4"
    (physics / "descriptions.csv").write_text(f"scenario,description,generated_video_name\n{row}\n")


def test_vbench_is_sampled_under_its_names(front, benchmarks, tmp_path, capsys):
    assert front("--vbench_prompt_dir", "prompts", "--samples", 2) == 0, capsys.readouterr().err
    folder = tmp_path / "outputs" / "skyreels_v2" / "vbench_flowcache_fast"
    names = sorted(path.name for path in (folder / "videos").iterdir())
    assert names == ["a red circle-0.mp4", "a red circle-1.mp4"]
    records = read_manifest(folder)
    assert [record["seed"] for record in records] == [0, 1]
    assert Trace.load(folder / records[0]["trace"]).settings["prompt"] == "a red circle"


@pytest.mark.parametrize(
    ("folder", "dimension", "named"),
    [("vb_bom", "color", 2), ("vb_slash", "scene", 2), ("vb_long", "scene", 1)],
)
def test_no_prompt_of_a_list_keeps_the_others_from_being_made(
    front, tmp_path, capsys, folder, dimension, named
):
    arguments = ["--vbench_prompt_dir", FAULTS / folder, "--dimension", dimension, "--samples", 1]
    assert front(*arguments, "--base_save_path", "out") == 0, capsys.readouterr().err
    records = read_manifest(tmp_path / "out")
    content = (FAULTS / folder / f"{dimension}.txt").read_text(encoding="utf-8-sig")
    assert [record["prompt"] for record in records] == content.splitlines()
    assert [record["name"] == f"{record['prompt']}-0" for record in records].count(True) == named
    assert len(list((tmp_path / "out" / "videos").iterdir())) == len(records)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED


def test_augmented_prompts_reach_the_model(front, benchmarks, tmp_path, capsys):
    (tmp_path / "scene_longer.txt").write_text("a red circle over a blue background\n")
    arguments = ["--vbench_prompt_dir", "prompts", "--samples", 1, "--augmented_prompts", "."]
    assert front(*arguments, "--base_save_path", "out") == 0, capsys.readouterr().err
    (record,) = read_manifest(tmp_path / "out")
    assert (record["name"], record["original"]) == ("a red circle-0", "a red circle")
    prompt = Trace.load(tmp_path / "out" / record["trace"]).settings["prompt"]
    assert prompt == "a red circle over a blue background"


def test_clips_that_are_too_short_are_named_at_the_start(front, tmp_path, monkeypatch, capsys):
    arguments = ["--benchmark", "physicsiq", "--physicsiq_data_dir", FAULTS / "piq", "--overlap_history", 17]
    arguments += ["--fps", 24, "--num_frames", 137, "--base_save_path", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
        assert front(*arguments) == 2
    first, line = capsys.readouterr().err.strip().splitlines()
    assert "1 of 3" in first and "--keep_going" in first
    assert "0002_perspective-left_trimmed-cup" in line and "5 frames" in line


def test_the_others_are_made_where_one_clip_is_too_short(front, benchmarks, tmp_path, capsys):
    videos = tmp_path / "physics" / "split-videos" / "conditioning" / "8FPS"
    with VideoWriter(videos / "0000_conditioning-videos_8FPS_perspective-left_take-1_fall.mp4", 8) as writer:
        writer.write(np.full((5, 32, 32, 3), 200, np.uint8))
    with (tmp_path / "physics" / "descriptions.csv").open("a") as table:
        table.write("0000_perspective-left_take-1_fall.mp4,a fall,0000_perspective-left_fall.mp4\n")
    arguments = ["--benchmark", "physicsiq", "--physicsiq_data_dir", "physics", "--overlap_history", 5]
    arguments += ["--num_frames", 25, "--method", "causal", "--base_save_path", "out"]
    assert front(*arguments, "--keep_going") == 1
    assert "videos/0000_perspective-left_fall.mp4: " in capsys.readouterr().err.splitlines()[-1]
    assert [record["name"] for record in read_manifest(tmp_path / "out")] == ["0001_perspective-left_roll"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED


def test_a_video_after_one_that_failed_is_the_same(front, benchmarks, tmp_path, monkeypatch, capsys):
    arguments = ["--vbench_prompt_dir", "prompts", "--samples", 2, "--use_compress", "--num_frames", 25]
    assert front(*arguments, "--base_save_path", "whole") == 0, capsys.readouterr().err
    with monkeypatch.context() as patch:
        fail_first(patch, sampler)
        assert front(*arguments, "--base_save_path", "out") == 1
    assert "a red circle-0.mp4: not finite" in capsys.readouterr().err.splitlines()[-1]
    assert [record["seed"] for record in read_manifest(tmp_path / "out")] == [1]
    assert front(*arguments, "--base_save_path", "out") == 0
    for index in (0, 1):
        name = f"videos/a red circle-{index}.mp4"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ways_take_turns_and_make_a_table(front, benchmarks, tmp_path, capsys):
    ways = ["vanilla", "causal", "flowcache:paper-fast"]
    arguments = ["--vbench_prompt_dir", "prompts", "--samples", 1, "--base_save_path", "out/skyreels_v2"]
    assert front(*arguments, "--teacache_thresh", 0.15, "--ways", *ways) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert scoring.main(["tables", "out"]) == 0, capsys.readouterr().err
    (table,) = json.loads((tmp_path / "out" / "tables.json").read_text())["tables"]
    assert [row["way"] for row in table["rows"]] == ways
    vanilla, causal, flow = (row["measured"] for row in table["rows"])
    assert vanilla["pflops"] > causal["pflops"] >= flow["pflops"] > 0
    assert causal["psnr"] > 10 and flow["psnr_to_causal"] > 10
    assert table["rows"][1]["split"]["live_only"] > 1, "vanilla also runs blocks that have not begun"
    assert "blocks of 2" in (tmp_path / "out" / "tables.md").read_text()


def test_a_knob_is_for_those_of_several_ways_that_have_it(front, benchmarks, checkpoint):
    def prepare(*ways, flags=("--interval", 2)):
        words = ["--model_id", checkpoint, "--gpus", "cpu", *QUICK, "--vbench_prompt_dir", "prompts"]
        words += [*flags, "--ways", *ways]
        return front.module.prepare(front.module.build_parser().parse_args([str(word) for word in words]))[1]

    work = prepare("vanilla", "causal", "teacache", "flowcache:fast")
    policies = [sampler.cache.policy for sampler in work.samplers.values()]
    assert policies == ["none", "none", "teacache", "fixed_interval"]
    with pytest.raises(ValueError, match="vanilla computes every step, teacache"):
        prepare("vanilla", "teacache:paper-fast")
    work = prepare("vanilla", "teacache", "causal", flags=("--use_compress", "--forecast", "hold_velocity"))
    compressed = {way: bool(sampler.cache.compression) for way, sampler in work.samplers.items()}
    assert compressed == {"vanilla": False, "teacache": False, "causal": True}
    with pytest.raises(ValueError, match="forecast has no effect"):
        prepare("vanilla", "causal", flags=("--forecast", "hold_velocity"))
    with pytest.raises(ValueError, match="methods and method"):
        prepare("vanilla", flags=("--method", "causal"))


def test_physics_iq_is_continued_for_five_seconds(front, benchmarks, tmp_path, capsys):
    arguments = ["--benchmark", "physicsiq", "--physicsiq_data_dir", "physics", "--overlap_history", 5]
    code = front(*arguments, "--num_frames", 25, "--method", "causal", "--base_save_path", "out")
    assert code == 0, capsys.readouterr().err
    frames, fps = read_video(tmp_path / "out" / "videos" / "0001_perspective-left_roll.mp4")
    assert (len(frames), fps) == (20, 4), "those that were taken over are not among them"


BAD = {
    "RANK: expected a number below WORLD_SIZE": [],
    "vbench_prompt_dir: expected VBench": [],
    "vbench_prompt_dir: nowhere is not": ["--vbench_prompt_dir", "nowhere"],
    "dimension: 'scenes' is unknown; did you mean": [
        "--vbench_prompt_dir",
        "prompts",
        "--dimension",
        "scenes",
    ],
    "DEVICES: expected cpu or numbers of GPUs": [],
    "overlap_history is needed": ["--benchmark", "physicsiq", "--physicsiq_data_dir", "physics"],
    "num_frames must be at least 25 for physicsiq": ["--benchmark", "physicsiq", "--overlap_history", 5],
    "samples: expected": ["--samples", 10**9],
    "base_save_path: expected a path": ["--base_save_path", "~nosuch_user/out"],
    "vbench_prompt_dir: expected a path": ["--vbench_prompt_dir", "x" * 300],
    "inference_steps must be at most": ["--inference_steps", 10**9],
    "argument --benchmark": ["--benchmark", "vbnech"],
    "unrecognized arguments: --prompt": ["--prompt", "a"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(front, benchmarks, monkeypatch, capsys, message):
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    if message.startswith("RANK"):
        monkeypatch.setenv("RANK", "3")
    if message.startswith("DEVICES"):
        monkeypatch.setenv("DEVICES", "first")
    assert front(*BAD[message]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
