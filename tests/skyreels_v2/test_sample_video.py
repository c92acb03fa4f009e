"""Sampling of benchmarks with SkyReels-V2, on a tiny checkpoint with random weights."""

import json

import numpy as np
import pytest
from programs import Program, assert_refused
from reference import FAULTS, ROOT
from synthetic_run import FINISHED, read_manifest

from flowcache.benchmark import __main__ as scoring
from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from skyreels_v2 import adapter

QUICK = ["--height", 32, "--width", 32, "--num_frames", 9, "--fps", 4]
QUICK += ["--inference_steps", 4, "--ar_step", 1, "--causal_block_size", 2]
VBENCH = ["--vbench_prompt_dir", "prompts", "--base_save_path", "out"]
PHYSICS = ["--benchmark", "physicsiq", "--physicsiq_data_dir", "physics", "--overlap_history", 5]
PHYSICS += ["--num_frames", 25, "--method", "causal", "--base_save_path", "out"]


@pytest.fixture
def front(monkeypatch, tmp_path, checkpoint):
    """The program in a folder with a list of VBench and two scenes of Physics-IQ."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "scene.txt").write_text("a red circle\n")
    videos = tmp_path / "physics" / "split-videos" / "conditioning" / "8FPS"
    videos.mkdir(parents=True)
    lines = ["scenario,description,generated_video_name"]
    for number, name, length in (("0000", "fall", 5), ("0001", "roll", 24)):
        start = f"{number}_conditioning-videos_8FPS_perspective-left"
        with VideoWriter(videos / f"{start}_take-1_{name}.mp4", 8) as writer:
            writer.write(np.full((length, 32, 32, 3), 200, np.uint8))
        lines.append(f"{number}_perspective-left_take-1_{name}.mp4,a {name},{number}_perspective-left_{name}.mp4")
    (tmp_path / "physics" / "descriptions.csv").write_text("\n".join(lines))
    first = ("--model_id", checkpoint, "--gpus", "cpu", *QUICK)
    return Program(ROOT / "FlowCache4SkyReels-V2" / "sample_video.py", monkeypatch, first)


def test_vbench_is_sampled_with_augmented_prompts(front, tmp_path, capsys):
    (tmp_path / "scene_longer.txt").write_text("a red circle over a blue background\n")
    flags = [*VBENCH[:2], "--samples", 2, "--augmented_prompts", "."]
    assert front(*flags) == 0, capsys.readouterr().err
    folder = tmp_path / "outputs" / "skyreels_v2" / "vbench_flowcache_fast"
    records = read_manifest(folder)
    assert [(r["name"], r["seed"]) for r in records] == [("a red circle-0", 0), ("a red circle-1", 1)]
    prompt = Trace.load(folder / records[0]["trace"]).settings["prompt"]
    assert (records[0]["original"], prompt) == ("a red circle", "a red circle over a blue background")


@pytest.mark.parametrize(
    ("folder", "dimension", "named"), [("vb_bom", "color", 2), ("vb_slash", "scene", 2), ("vb_long", "scene", 1)]
)
def test_no_prompt_of_a_list_keeps_the_others_from_being_made(front, tmp_path, folder, dimension, named):
    flags = ["--vbench_prompt_dir", FAULTS / folder, "--dimension", dimension, "--samples", 1]
    assert front(*flags, "--base_save_path", "out") == 0
    records = read_manifest(tmp_path / "out")
    content = (FAULTS / folder / f"{dimension}.txt").read_text(encoding="utf-8-sig")
    assert [record["prompt"] for record in records] == content.splitlines()
    assert [record["name"] == f"{record['prompt']}-0" for record in records].count(True) == named
    assert len(list((tmp_path / "out" / "videos").iterdir())) == len(records)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED


def test_physics_iq_is_continued_and_short_clips_are_named(front, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
        assert front(*PHYSICS) == 2
    first, line = capsys.readouterr().err.strip().splitlines()
    assert "1 of 2" in first and "--keep_going" in first
    assert "0000_perspective-left_fall" in line and "3 frames" in line
    assert front(*PHYSICS, "--keep_going") == 1
    assert "videos/0000_perspective-left_fall.mp4: " in capsys.readouterr().err.splitlines()[-1]
    assert [record["name"] for record in read_manifest(tmp_path / "out")] == ["0001_perspective-left_roll"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED
    frames, fps = read_video(tmp_path / "out" / "videos" / "0001_perspective-left_roll.mp4")
    assert (len(frames), fps) == (20, 4), "five seconds, without the overlap"


def test_methods_are_compared_in_a_table(front, tmp_path, capsys):
    methods = ["vanilla", "causal", "flowcache:paper-fast"]
    arguments = [*VBENCH, "--samples", 1, "--base_save_path", "out/skyreels_v2"]
    assert front(*arguments, "--teacache_thresh", 0.15, "--ways", *methods) == 0, capsys.readouterr().err
    assert scoring.main(["tables", "out"]) == 0, capsys.readouterr().err
    (table,) = json.loads((tmp_path / "out" / "tables.json").read_text())["tables"]
    vanilla, causal, flow = (row["measured"] for row in table["rows"])
    assert vanilla["pflops"] > causal["pflops"] >= flow["pflops"] > 0
    assert causal["psnr"] > 10 and flow["psnr_to_causal"] > 10
    assert table["rows"][1]["split"]["live_only"] > 1, "vanilla also runs blocks that have not begun"
    assert "blocks of 2" in (tmp_path / "out" / "tables.md").read_text()


BAD = {
    "RANK WORLD_SIZE": [],
    "vbench_prompt_dir": [],
    "dimension scenes": ["--vbench_prompt_dir", "prompts", "--dimension", "scenes"],
    "DEVICES": [],
    "overlap_history 17": ["--benchmark", "physicsiq", "--physicsiq_data_dir", "physics"],
    "num_frames 25": ["--benchmark", "physicsiq", "--overlap_history", 5],
    "unrecognized --prompt": ["--prompt", "a"],
}


@pytest.mark.parametrize("named", BAD)
def test_bad_input_is_refused_in_one_line(front, monkeypatch, capsys, named):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    if named.startswith(("RANK", "DEVICES")):
        monkeypatch.setenv(named.partition(" ")[0], "first" if named == "DEVICES" else "3")
    assert_refused(front(*BAD[named]), named, capsys)


def test_an_option_is_for_those_of_several_methods_that_have_it(front):
    def prepare(*words):
        _, work = front.prepare(*VBENCH, "--methods", "vanilla", "causal", *words)
        return [sampler.config for sampler in work.samplers.values()]

    configs = prepare("teacache", "flowcache:fast", "--interval", 2)
    assert [config.as_dict()["policy"] for config in configs] == ["none", "none", "teacache", "interval"]
    configs = prepare("teacache", "--use_compress", "--forecast", "hold_velocity")
    assert [config.compression is None for config in configs] == [True, False, True]
    for words, named in (
        (("teacache:paper-fast", "--interval", 2), "vanilla computes every step, .*teacache takes"),
        (("--forecast", "hold_velocity"), "forecast"),
        (("--method", "causal"), "methods and method"),
    ):
        with pytest.raises(ValueError, match=named):
            prepare(*words)
