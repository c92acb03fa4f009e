"""Sampling of benchmarks with MAGI-1, on a tiny checkpoint with random weights."""

import numpy as np
import pytest
from programs import Program, assert_refused, cases
from reference import ROOT

from flowcache.video import VideoWriter, read_video
from magi1 import adapter

FOLDER = ROOT / "FlowCache4MAGI-1"
FILES = FOLDER / "yaml_config" / "sample"


@pytest.fixture
def front(monkeypatch, tmp_path, weights):
    """The program on the tiny checkpoint, in a folder with a list of VBench and a scene of Physics-IQ."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "scene.txt").write_text("a red circle\na circle\n")
    clips = tmp_path / "physics" / "split-videos" / "conditioning" / "8FPS"
    clips.mkdir(parents=True)
    clip = clips / "0001_conditioning-videos_8FPS_perspective-left_take-1_roll.mp4"
    with VideoWriter(clip, 8) as writer:
        writer.write(np.full((24, 32, 64, 3), 30, np.uint8))
    named = "0001_perspective-left_take-1_roll.mp4,a red circle,0001_perspective-left_roll.mp4"
    table = f"scenario,description,generated_video_name\n{named}\n"
    (tmp_path / "physics" / "descriptions.csv").write_text(table)
    first = ("--config_file", weights, "--model", "official", "--gpus", "cpu")
    return Program(FOLDER / "sample_video.py", monkeypatch, first)


def test_a_threshold_beside_vanilla_is_ignored_in_a_file_only(front, tmp_path):
    vbench = ["--vbench_prompt_dir", "prompts", "--base_save_path", "out"]
    (tmp_path / "mine.yaml").write_text("rel_l1_thresh: 0.1\n")
    for flags in (["--method", "vanilla"], ["--ways", "vanilla"]):
        _, work = front.prepare(*vbench, "--yaml_config", tmp_path / "mine.yaml", *flags)
        (sampler,) = work.samplers.values()
        assert sampler.config.as_dict()["policy"] == "none"
    with pytest.raises(ValueError, match="rel_l1_thresh"):
        front.prepare(*vbench, "--method", "vanilla", "--rel_l1_thresh", 0.1)


def test_physics_iq_is_continued(front, tmp_path, capsys):
    flags = ["--physicsiq_data_dir", "physics", "--fps", 8, "--base_save_path", "out"]
    assert front("--yaml_config", FILES / "teacache_physicsiq.yaml", *flags) == 0, capsys.readouterr().err
    frames, fps = read_video(tmp_path / "out" / "videos" / "0001_perspective-left_roll.mp4")
    assert (len(frames), fps) == (40, 8), "five seconds, without those that were given"


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


BAD = """
dimenson dimension?: "dimenson: scene"
dimensions dimension?: "" --dimensions scene
reuse_strategy chunkwise: "reuse_strategy: some"
base_save_path path: "base_save_path: ~nosuch_user/out"
nothing.json: "" --config_file nothing.json
vbench_prompt_dir nowhere: "vbench_prompt_dir: nowhere"
gpus a,b: "" --gpus a,b
num_frames 120: "benchmark: physicsiq\\nphysicsiq_data_dir: physics" --num_frames 8
total_cache_chunk_nums window_size: "compress_kv_cache: true\\ntotal_cache_chunk_nums: 2"
"""


@pytest.mark.parametrize(("named", "arguments"), cases(BAD))
def test_bad_input_is_refused_in_one_line(front, monkeypatch, capsys, tmp_path, named, arguments):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    content, *words = arguments
    (tmp_path / "mine.yaml").write_text(content.replace("\\n", "\n"))
    assert_refused(front("--yaml_config", tmp_path / "mine.yaml", *words), named, capsys)
