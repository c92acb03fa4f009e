"""Sampling of benchmarks with MAGI-1, on a tiny checkpoint with random weights."""

import csv
import json

import numpy as np
import pytest
from manifests import FINISHED, fail_first, read_manifest
from programs import Program, assert_refused
from reference import ROOT

from flowcache.benchmark import __main__ as scoring
from flowcache.video import VideoWriter, read_video
from magi1 import adapter, model_source

FOLDER = ROOT / "FlowCache4MAGI-1"
FILES = FOLDER / "yaml_config" / "sample"
FPS = 8


@pytest.fixture
def front(monkeypatch, tmp_path, weights):
    """The program, run in an empty folder on the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_source, "SMALL", tmp_path / "nowhere")
    first = ("--config_file", weights, "--model", "official", "--gpus", "cpu")
    return Program(FOLDER / "sample_video.py", monkeypatch, first)


@pytest.fixture
def vbench(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "scene.txt").write_text("a red circle\na circle\n")
    return ["--vbench_prompt_dir", "prompts", "--base_save_path", "out"]


@pytest.fixture
def physics(tmp_path):
    """Physics-IQ's folder with one scene: both takes, and the first seconds of one; flags that name it."""
    names = {
        "conditioning": ["0001_conditioning-videos_8FPS_perspective-left_take-1_roll.mp4"],
        "testing": [
            "0001_testing-videos_8FPS_perspective-left_take-1_roll.mp4",
            "0199_testing-videos_8FPS_perspective-left_take-2_roll.mp4",
        ],
    }
    for kind, files in names.items():
        folder = tmp_path / "physics" / "split-videos" / kind / "8FPS"
        folder.mkdir(parents=True)
        video = np.full((24 if kind == "conditioning" else 40, 32, 64, 3), 30, np.uint8)
        for index, frame in enumerate(video):
            frame[8:20, index % 40 : index % 40 + 12] = 220
        for file in files:
            with VideoWriter(folder / file, FPS) as writer:
                writer.write(video)
    with (tmp_path / "physics" / "descriptions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scenario", "description", "category", "generated_video_name"])
        scenario = "0001_perspective-left_take-1_roll.mp4"
        table.writerow([scenario, "a red circle", "Solid Mechanics", "0001_perspective-left_roll.mp4"])
    flags = ["--physicsiq_data_dir", "physics", "--fps", FPS, "--base_save_path", "out"]
    return ["--yaml_config", FILES / "teacache_physicsiq.yaml", *flags]


def policies(work):
    return {name: sampler.config.as_dict()["policy"] for name, sampler in work.samplers.items()}


def test_a_threshold_beside_vanilla_is_ignored_in_a_file_only(front, vbench, tmp_path):
    (tmp_path / "mine.yaml").write_text("rel_l1_thresh: 0.1\n")
    for flags in (["--method", "vanilla"], ["--ways", "vanilla"]):
        _, work = front.prepare(*vbench, "--yaml_config", tmp_path / "mine.yaml", *flags)
        assert policies(work) == {"vanilla": "none"}
    with pytest.raises(ValueError, match="rel_l1_thresh has no effect"):
        front.prepare(*vbench, "--method", "vanilla", "--rel_l1_thresh", 0.1)


def test_vbench_is_sampled_under_its_names(front, vbench, tmp_path, monkeypatch, capsys):
    arguments = [*vbench, "--samples", 2, "--end", 1]
    assert front(*arguments, "--base_save_path", "whole") == 0, capsys.readouterr().err
    with monkeypatch.context() as patch:
        fail_first(patch)
        assert front(*arguments) == 1
    assert "a red circle-0.mp4: not finite" in capsys.readouterr().err.splitlines()[-1]
    assert front(*arguments) == 0
    videos = sorted((tmp_path / "out" / "videos").iterdir())
    assert [video.name for video in videos] == ["a red circle-0.mp4", "a red circle-1.mp4"]
    for video in videos:
        same = (tmp_path / "whole" / "videos" / video.name).read_bytes()
        assert video.read_bytes() == same, "a video after one that failed is the same"
    first, second = (read_video(video)[0] for video in videos)
    assert first.shape == (32, 32, 32, 3) and not np.array_equal(first, second)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED
    records = {record["name"]: record for record in read_manifest(tmp_path / "out")}
    assert [records[video.stem]["seed"] for video in videos] == [1234, 1235]
    settings = records["a red circle-0"]["settings"]
    assert (settings["method"], settings["reuse"]["compression"]["total"]) == ("flowcache", 6)
    assert front(*arguments, "--yaml_config", FILES / "teacache_vbench.yaml") == 2
    assert "base_save_path" in capsys.readouterr().err


def test_clips_that_cannot_be_read_are_named_at_the_start(front, physics, tmp_path, monkeypatch, capsys):
    (clip,) = tmp_path.rglob("0001_conditioning*.mp4")
    clip.write_bytes(b"no video")
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
        assert front(*physics) == 2
    assert "0001_perspective-left_roll: " in capsys.readouterr().err.splitlines()[-1]
    content = (FILES / "teacache_physicsiq.yaml").read_text() + "\nkeep_going: true\n"
    (tmp_path / "mine.yaml").write_text(content)
    assert front(*physics, "--yaml_config", "mine.yaml") == 1
    assert "0 of 1" in capsys.readouterr().err


def test_physics_iq_is_continued_and_scored(front, physics, tmp_path, capsys):
    pytest.importorskip("cv2", reason="OpenCV, of the extra metrics, is not installed")
    assert front(*physics) == 0, capsys.readouterr().err
    (video,) = (tmp_path / "out" / "videos").iterdir()
    assert video.name == "0001_perspective-left_roll.mp4"
    frames, fps = read_video(video)
    assert (len(frames), fps) == (40, FPS), "five seconds, without those that were given"
    reference = tmp_path / "physics" / "split-videos" / "testing" / "8FPS"
    given = ["--generated_videos", video.parent, "--reference_videos", reference, "--output", tmp_path / "iq"]
    assert scoring.main(["physics_iq", *map(str, given)]) == 0
    assert json.loads((tmp_path / "iq.json").read_text())["videos"] == 1


@pytest.mark.parametrize("file", sorted(FILES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_files_are_valid(front, file, monkeypatch):
    given = Program(FOLDER / "sample_video.py", monkeypatch).read("--yaml_config", file)
    assert given.get("benchmark") in file.name and given.get("method", "flowcache") in file.name
    assert (FOLDER / given.get("config_file")).is_file()
    assert given.get("threshold") is None, "the preset's"


def test_keys_of_the_original_mean_what_they_say(front, tmp_path, caplog):
    content = "gpus: 0\ndimension: scene\nreuse_strategy: all\nend: 4\n"
    (tmp_path / "mine.yaml").write_text(content + "rel_l1_thresh: 0.02\nbudget_cache_chunk_nums: 1\n")
    program = Program(front._path, front._monkeypatch)
    given = program.read(tmp_path / "mine.yaml", "--end", 9, "--warmup_steps", 3, "--num_steps", 8)
    expected = {"method": "teacache", "gpus": "0", "dimension": "scene", "end": 9, "threshold": 0.02}
    assert given.pick(expected) == expected
    assert given.pick(("warmup_steps", "num_steps")) == {"warmup_steps": 3, "num_steps": 8}
    assert "budget_cache_chunk_nums is ignored" in caplog.text


BAD = {
    "dimenson dimension?": ("dimenson: scene", []),
    "dimensions dimension?": ("", ["--dimensions", "scene"]),
    "reuse_strategy chunkwise": ("reuse_strategy: some", []),
    "preset text": ("preset: [fast]", []),
    "mine.yaml YAML": ("samples: !!timestamp x", []),
    "samples": ("", ["--samples", 10**9]),
    "base_save_path: path": ("base_save_path: ~nosuch_user/out", []),
    "nothing.json": ("", ["--config_file", "nothing.json"]),
    "benchmark vbench": ("benchmark: vbnech", []),
    "samples whole": ("samples: many", []),
    "vbench_prompt_dir nowhere": ("vbench_prompt_dir: nowhere", []),
    "vbench_prompt_dir": ("", []),
    "scen scene?": ("vbench_prompt_dir: prompts\ndimension: scen", []),
    "gpus a,b": ("", ["--gpus", "a,b"]),
    "physicsiq_data_dir": ("benchmark: physicsiq", []),
    "num_frames 120": ("benchmark: physicsiq\nphysicsiq_data_dir: physics", ["--num_frames", 8]),
    "base_save_path": ("vbench_prompt_dir: prompts\nbase_save_path: /proc/nowhere", []),
    "total_cache_chunk_nums window_size": ("compress_kv_cache: true\ntotal_cache_chunk_nums: 2", []),
}


@pytest.mark.parametrize("named", BAD)
def test_bad_input_is_refused_in_one_line(front, vbench, physics, monkeypatch, capsys, tmp_path, named):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    content, arguments = BAD[named]
    (tmp_path / "mine.yaml").write_text(content)
    assert_refused(front("--yaml_config", tmp_path / "mine.yaml", *arguments), named, capsys)
