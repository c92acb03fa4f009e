"""Sampling of benchmarks with MAGI-1, on a tiny checkpoint with random weights."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from manifests import FINISHED, fail_first, read_manifest
from programs import Program
from reference import ROOT

from flowcache.benchmark import __main__ as scoring
from flowcache.video import VideoWriter, read_video
from magi1 import model_source, sampler

FOLDER = ROOT / "FlowCache4MAGI-1"
FILES = sorted((FOLDER / "yaml_config" / "sample").glob("*.yaml"))
FPS = 8


class SampleProgram(Program):
    """Takes the name of a YAML file before the other arguments."""

    def __call__(self, file, *arguments):
        return super().__call__("--yaml_config", FOLDER / "yaml_config" / "sample" / file, *arguments)


@pytest.fixture
def front(monkeypatch, tmp_path, weights):
    """The program, run in an empty folder on the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    first = ("--config_file", weights, "--model", "official", "--gpus", "cpu")
    return SampleProgram(FOLDER / "sample_video.py", monkeypatch, first)


@pytest.fixture
def vbench(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "scene.txt").write_text("a red circle\na circle\n")
    return folder


@pytest.fixture
def physics(tmp_path):
    """Physics-IQ's folder with one scene: both takes, the first seconds of one, and what they show."""
    root = tmp_path / "physics"
    names = {
        "conditioning": ["0001_conditioning-videos_8FPS_perspective-left_take-1_roll.mp4"],
        "testing": [
            "0001_testing-videos_8FPS_perspective-left_take-1_roll.mp4",
            "0199_testing-videos_8FPS_perspective-left_take-2_roll.mp4",
        ],
    }
    for kind, files in names.items():
        folder = root / "split-videos" / kind / "8FPS"
        folder.mkdir(parents=True)
        for file in files:
            save_slide(folder / file, frames=24 if kind == "conditioning" else 40)
    with (root / "descriptions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scenario", "description", "category", "generated_video_name"])
        scenario = "0001_perspective-left_take-1_roll.mp4"
        table.writerow([scenario, "a red circle", "Solid Mechanics", "0001_perspective-left_roll.mp4"])
    return root


def save_slide(path, frames):
    """A square that slides to the right."""
    video = np.full((frames, 32, 64, 3), 30, np.uint8)
    for index, frame in enumerate(video):
        frame[8:20, index % 40 : index % 40 + 12] = 220
    with VideoWriter(path, FPS) as writer:
        writer.write(video)


@pytest.fixture
def prepared(front, weights, vbench):
    """Checks a run of the tiny checkpoint with more arguments; returns the work."""
    common = ["--config_file", weights, "--model", "official", "--gpus", "cpu"]
    common += ["--vbench_prompt_dir", vbench, "--base_save_path", "out"]

    def prepare(*arguments):
        words = [str(word) for word in (*common, *arguments)]
        return front.module.prepare(*front.module.build_parser().parse_known_args(words))[1]

    return prepare


def policies(work):
    return {method: sampler.cache.policy for method, sampler in work.samplers.items()}


def test_a_knob_is_for_those_of_several_ways_that_have_it(prepared):
    work = prepared("--interval", 2, "--ways", "vanilla", "teacache", "flowcache:paper-fast")
    expected = {"vanilla": "none", "teacache": "teacache", "flowcache:paper-fast": "fixed_interval"}
    assert policies(work) == expected
    with pytest.raises(ValueError, match="vanilla computes every step, teacache"):
        prepared("--interval", 2, "--ways", "vanilla", "teacache")


def test_a_threshold_beside_vanilla_is_passed_over_in_a_file_only(prepared, tmp_path):
    (tmp_path / "mine.yaml").write_text("rel_l1_thresh: 0.1\nconfig_file: named on the command line")
    file = ["--yaml_config", tmp_path / "mine.yaml"]
    assert policies(prepared(*file, "--method", "vanilla")) == {"vanilla": "none"}
    assert policies(prepared(*file, "--ways", "vanilla")) == {"vanilla": "none"}
    with pytest.raises(ValueError, match="rel_l1_thresh has no effect"):
        prepared("--method", "vanilla", "--rel_l1_thresh", 0.1)


def test_vbench_is_sampled_under_its_names(front, vbench, tmp_path, capsys):
    arguments = ["--vbench_prompt_dir", vbench, "--samples", 2, "--end", 1, "--base_save_path", "out"]
    assert front("flowcache_vbench.yaml", *arguments) == 0, capsys.readouterr().err
    videos = sorted((tmp_path / "out" / "videos").iterdir())
    assert [video.name for video in videos] == ["a red circle-0.mp4", "a red circle-1.mp4"]
    first, second = (read_video(video)[0] for video in videos)
    assert first.shape == (32, 32, 32, 3) and not np.array_equal(first, second)
    records = read_manifest(tmp_path / "out")
    assert [record["seed"] for record in records] == [1234, 1235]
    assert records[0]["settings"]["method"] == "flowcache"
    assert records[0]["settings"]["reuse"]["compression"]["total"] == 6
    assert front("teacache_vbench.yaml", *arguments) == 2
    error = capsys.readouterr().err
    assert "base_save_path: out holds videos of another method ('flowcache' there" in error


def test_a_video_after_one_that_failed_is_the_same(front, vbench, tmp_path, monkeypatch, capsys):
    arguments = ["--vbench_prompt_dir", vbench, "--samples", 2, "--end", 1]
    assert front("flowcache_vbench.yaml", *arguments, "--base_save_path", "whole") == 0
    with monkeypatch.context() as patch:
        fail_first(patch, sampler)
        assert front("flowcache_vbench.yaml", *arguments, "--base_save_path", "out") == 1
    assert "a red circle-0.mp4: not finite" in capsys.readouterr().err.splitlines()[-1]
    assert front("flowcache_vbench.yaml", *arguments, "--base_save_path", "out") == 0
    for index in (0, 1):
        name = f"videos/a red circle-{index}.mp4"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FINISHED


def test_clips_that_cannot_be_read_are_named_at_the_start(front, physics, tmp_path, monkeypatch, capsys):
    (clip,) = physics.rglob("0001_conditioning*.mp4")
    clip.write_bytes(b"no video")
    arguments = ["--physicsiq_data_dir", physics, "--fps", FPS, "--base_save_path", "out"]
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
        assert front("teacache_physicsiq.yaml", *arguments) == 2
    assert "0001_perspective-left_roll: " in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "mine.yaml").write_text(
        (FOLDER / "yaml_config" / "sample" / "teacache_physicsiq.yaml").read_text() + "\nkeep_going: true\n"
    )
    assert front(tmp_path / "mine.yaml", *arguments) == 1
    assert "0 of 1" in capsys.readouterr().err


def test_physics_iq_is_continued_and_scored(front, physics, tmp_path, capsys):
    pytest.importorskip("cv2", reason="OpenCV, of the extra metrics, is not installed")
    arguments = ["--physicsiq_data_dir", physics, "--fps", FPS, "--base_save_path", "out"]
    assert front("teacache_physicsiq.yaml", *arguments) == 0, capsys.readouterr().err
    (video,) = (tmp_path / "out" / "videos").iterdir()
    assert video.name == "0001_perspective-left_roll.mp4"
    frames, fps = read_video(video)
    assert (len(frames), fps) == (40, FPS), "five seconds, without those that were given"
    reference = physics / "split-videos" / "testing" / "8FPS"
    given = ["--generated_videos", video.parent, "--reference_videos", reference, "--output", tmp_path / "iq"]
    assert scoring.main(["physics_iq", *map(str, given)]) == 0
    assert json.loads((tmp_path / "iq.json").read_text())["videos"] == 1


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_shipped_files_are_valid(front, file):
    args, rest = front.module.build_parser().parse_known_args(["--yaml_config", str(file)])
    settings = front.module.read_settings(args, rest)
    assert settings.benchmark.benchmark in file.name
    assert args.method in file.name
    assert settings.config_file.is_file()
    assert settings.reuse.rel_l1_thresh is None, "the preset's"


def test_keys_of_the_original_mean_what_they_say(front, tmp_path):
    path = tmp_path / "mine.yaml"
    told = "config_file: config/sample/vbench.json\ngpus: 0\ndimension: scene\nreuse_strategy: all\nend: 4\n"
    path.write_text(told + "rel_l1_thresh: 0.02\nbudget_cache_chunk_nums: 1\n")
    words = ["--yaml_config", str(path), "--end", "9", "--warmup_steps", "3", "--num_steps", "8"]
    args, rest = front.module.build_parser().parse_known_args(words)
    settings = front.module.read_settings(args, rest)
    assert (args.method, args.preset) == ("teacache", "fast")
    assert (settings.benchmark.gpus, settings.benchmark.dimension, settings.benchmark.end) == (
        "0",
        "scene",
        9,
    )
    assert (settings.reuse.rel_l1_thresh, settings.reuse.warmup_steps) == (0.02, 3)
    assert settings.overrides == {"num_steps": 8}
    path.write_text("config_file: ''")
    with pytest.raises(ValueError, match="config_file must name a file"):
        front.module.read_settings(*front.module.build_parser().parse_known_args(words))


BAD = {
    "there is no dimenson; did you mean dimension": ("dimenson: scene", []),
    "there is no dimensions; did you mean dimension": ("", ["--dimensions", "scene"]),
    "reuse_strategy must be one of chunkwise, all, none, original, got 'some'": ("reuse_strategy: some", []),
    "preset must be text": ("preset: [fast]", []),
    "reuse_strategy must be text": ("reuse_strategy: {all: 1}", []),
    "mine.yaml cannot be read as YAML": ("samples: !!timestamp x", []),
    "samples: expected": ("", ["--samples", 10**9]),
    "base_save_path: expected a path": ("base_save_path: ~nosuch_user/out", []),
    "vbench_prompt_dir: expected a path": ("", ["--vbench_prompt_dir", "x" * 300]),
    "nothing.json cannot be read": ("", ["--config_file", "nothing.json"]),
    "benchmark: expected one of vbench": ("benchmark: vbnech", []),
    "samples must be a whole number": ("samples: many", []),
    "vbench_prompt_dir: nowhere is not": ("vbench_prompt_dir: nowhere", []),
    "vbench_prompt_dir: expected VBench": ("", []),
    "did you mean scene?": ("vbench_prompt_dir: prompts\ndimension: scen", []),
    "gpus: expected cpu or numbers": ("", ["--gpus", "a,b"]),
    "physicsiq_data_dir: expected": ("benchmark: physicsiq", []),
    "num_frames must be at least 120 for physicsiq, 5 s, got 8": (
        "benchmark: physicsiq\nphysicsiq_data_dir: physics",
        ["--num_frames", 8],
    ),
    "base_save_path": ("vbench_prompt_dir: prompts\nbase_save_path: /proc/nowhere", []),
    "total_cache_chunk_nums must be above window_size": (
        "compress_kv_cache: true\ntotal_cache_chunk_nums: 2",
        [],
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(front, vbench, physics, monkeypatch, capsys, tmp_path, message):
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(model_source, "SMALL", tmp_path / "nowhere")
    content, arguments = BAD[message]
    (tmp_path / "mine.yaml").write_text(content)
    code = front(tmp_path / "mine.yaml", *arguments)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert message in line
