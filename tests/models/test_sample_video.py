"""Sampling of benchmarks with both models."""

import json

import numpy as np
import pytest
from programs import FOLDERS
from reference import FAULTS
from synthetic_run import FINISHED, read_manifest

from flowcache.benchmark import __main__ as scoring
from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video

VBENCH = ["--vbench_prompt_dir", "prompts", "--base_save_path", "out"]


@pytest.fixture
def skyreels(program):
    return program("skyreels_v2", "sample")


@pytest.fixture(autouse=True)
def vbench(tmp_path):
    """A list of VBench."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "scene.txt").write_text("a red circle\n")


@pytest.fixture
def physics(tmp_path):
    """Write scenes of Physics-IQ with clips of some lengths; the flags that name them."""

    def write(*lengths):
        videos = tmp_path / "physics" / "split-videos" / "conditioning" / "8FPS"
        videos.mkdir(parents=True)
        lines = ["scenario,description,generated_video_name"]
        for number, length in enumerate(lengths, 1):
            path = videos / f"{number:04}_conditioning-videos_8FPS_perspective-left_take-1_roll.mp4"
            with VideoWriter(path, 8) as writer:
                writer.write(np.full((length, 32, 64, 3), 200, np.uint8))
            lines.append(f"{number:04}_perspective-left_take-1_roll.mp4,a roll,{number:04}_perspective-left_roll.mp4")
        (tmp_path / "physics" / "descriptions.csv").write_text("\n".join(lines))
        return ["--benchmark", "physicsiq", "--physicsiq_data_dir", "physics", "--base_save_path", "out"]

    return write


def test_vbench_is_sampled_with_augmented_prompts(skyreels, tmp_path, capsys):
    (tmp_path / "scene_longer.txt").write_text("a red circle over a blue background\n")
    assert skyreels(*VBENCH[:2], "--samples", 2, "--augmented_prompts", ".") == 0, capsys.readouterr().err
    folder = tmp_path / "outputs" / "skyreels_v2" / "vbench_flowcache_fast"
    records = read_manifest(folder)
    assert [(r["name"], r["seed"]) for r in records] == [("a red circle-0", 0), ("a red circle-1", 1)]
    prompt = Trace.load(folder / records[0]["trace"]).settings["prompt"]
    assert (records[0]["original"], prompt) == ("a red circle", "a red circle over a blue background")


@pytest.mark.parametrize(
    ("folder", "dimension", "named"), [("vb_bom", "color", 2), ("vb_slash", "scene", 2), ("vb_long", "scene", 1)]
)
def test_no_prompt_of_a_list_keeps_the_others_from_being_made(skyreels, tmp_path, folder, dimension, named):
    flags = ["--vbench_prompt_dir", FAULTS / folder, "--dimension", dimension, "--samples", 1]
    assert skyreels(*flags, "--base_save_path", "out") == 0
    records = read_manifest(tmp_path / "out")
    content = (FAULTS / folder / f"{dimension}.txt").read_text(encoding="utf-8-sig")
    assert [record["prompt"] for record in records] == content.splitlines()
    assert [record["name"] == f"{record['prompt']}-0" for record in records].count(True) == named
    assert len(list((tmp_path / "out" / "videos").iterdir())) == len(records)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED


CONTINUE = {"skyreels_v2": ["--overlap_history", 5, "--num_frames", 25, "--method", "causal", "--fps", 4]}
CONTINUE["magi1"] = ["--yaml_config", FOLDERS["magi1"] / "yaml_config/sample/teacache_physicsiq.yaml", "--fps", 8]


@pytest.mark.parametrize("model", CONTINUE)
def test_physics_iq_is_continued(program, physics, model, capsys):
    assert program(model, "sample")(*CONTINUE[model], *physics(24)) == 0, capsys.readouterr().err
    frames, fps = read_video("out/videos/0001_perspective-left_roll.mp4")
    assert (len(frames), fps) == (5 * CONTINUE[model][-1], CONTINUE[model][-1]), "five seconds without the given part"


def test_short_clips_are_named(skyreels, physics, tmp_path, request, capsys):
    flags = [*CONTINUE["skyreels_v2"], *physics(5, 24)]
    assert skyreels(*flags, "--keep_going") == 1
    assert "videos/0001_perspective-left_roll.mp4: " in capsys.readouterr().err.splitlines()[-1]
    assert [record["name"] for record in read_manifest(tmp_path / "out")] == ["0002_perspective-left_roll"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED
    request.getfixturevalue("unread")
    assert skyreels(*flags, "--base_save_path", "other") == 2
    first, line = capsys.readouterr().err.strip().splitlines()
    assert "1 of 2" in first and "--keep_going" in first
    assert "0001_perspective-left_roll" in line and "3 frames" in line


def test_methods_are_compared_in_a_table(skyreels, tmp_path, capsys):
    methods = ["vanilla", "causal", "flowcache:paper-fast"]
    arguments = [*VBENCH, "--samples", 1, "--base_save_path", "out/skyreels_v2"]
    assert skyreels(*arguments, "--teacache_thresh", 0.15, "--ways", *methods) == 0, capsys.readouterr().err
    assert scoring.main(["tables", "out"]) == 0, capsys.readouterr().err
    (table,) = json.loads((tmp_path / "out" / "tables.json").read_text())["tables"]
    vanilla, causal, flow = (row["measured"] for row in table["rows"])
    assert vanilla["pflops"] > causal["pflops"] >= flow["pflops"] > 0
    assert causal["psnr"] > 10 and flow["psnr_to_causal"] > 10
    assert table["rows"][1]["split"]["live_only"] > 1, "vanilla also runs blocks that have not begun"
    assert "blocks of 2" in (tmp_path / "out" / "tables.md").read_text()


def test_a_benchmark_warns_once_of_a_kind(program, tmp_path, caplog):
    (tmp_path / "prompts" / "scene.txt").write_text("a zebra\na lion\n")
    yaml = FOLDERS["magi1"] / "yaml_config" / "sample" / "flowcache_vbench.yaml"
    flags = [*VBENCH, "--yaml_config", yaml, "--dimension", "scene", "--samples", 1, "--num_frames", 4]
    assert program("magi1", "sample")(*flags, "--method", "vanilla") == 0
    (record,) = [record for record in caplog.records if record.name == "flowcache.prompts"]
    assert "zebra" in record.message
    traces = [Trace.load(path).settings["prompt_losses"] for path in sorted(tmp_path.glob("out/traces/*"))]
    assert traces == [{"prompt": {"unknown": ["lion"]}}, {"prompt": {"unknown": ["zebra"]}}]
