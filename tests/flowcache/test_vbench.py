"""VBench's scores, from a stand-in for its package in an environment of its own."""

import json
import venv

import numpy as np
import pytest
from programs import assert_refused

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.prompts import DIMENSIONS
from flowcache.benchmark.vbench import QUALITY, SEMANTIC, VBenchReport
from flowcache.video import VideoWriter

PACKAGE = """
import json, os

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info, self.output = device, full_info_dir, output_path

    def evaluate(self, videos_path, name, dimension_list, mode):
        (dimension,) = dimension_list
        if dimension == "scene":
            raise RuntimeError("there is no detectron2")
        names = sorted(os.listdir(videos_path))
        results = [{"video_path": f"{videos_path}/{n}", "video_results": i / 10} for i, n in enumerate(names)]
        path = f"{self.output}/{name}_eval_results.json"
        json.dump({dimension: [0.5, results]}, open(path, "w"))
"""
PROMPTS = {"a dog": "subject_consistency", "a beach": "scene", "a red car": "color"}


@pytest.fixture
def environment(tmp_path):
    """A virtual environment with a package named vbench, and one named torch, which would only take time."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "torch.py").write_text("device = str\n")
    package = site / "vbench"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    entries = [{"prompt_en": prompt, "dimension": [name]} for prompt, name in PROMPTS.items()]
    (package / "VBench_full_info.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "out" / "videos"
    folder.mkdir(parents=True)
    for name in [*(f"a dog-{index}" for index in range(5)), "a beach-0"]:
        with VideoWriter(folder / f"{name}.mp4", 8) as writer:
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
    return folder


@pytest.fixture
def front(environment, videos):
    """The exit code, and the content of the file."""

    def run(*arguments):
        words = ["--generated_videos", str(videos), "--environment", str(environment), "--device", "cpu"]
        code, output = program.main(["vbench", *words, *arguments]), videos.parent / "vbench.json"
        return code, json.loads(output.read_text()) if output.exists() else None

    return run


def test_scores_are_read_back_into_a_table(front, videos, capsys):
    code, content = front("--dimension", "subject_consistency,scene,color")
    out = capsys.readouterr().out
    assert code == 0 and "subject_consistency: 50.00\n" in out
    assert "scene: none: RuntimeError: there is no detectron2" in out
    assert "color: none: no video of its prompts." in out
    assert content["mean"] == {"subject_consistency": 0.5, "scene": None, "color": None}
    assert content["videos"]["a dog-3.mp4"] == {"subject_consistency": 0.4}
    assert (videos.parent / "vbench.csv").read_text().splitlines()[-1] == "all,0.5,,"
    assert not list(videos.glob("vbench*")), "what VBench takes for a list of videos stays one"


def test_a_broken_video_is_named_and_the_others_are_scored(front, videos, capsys):
    (videos / "a dog-2.mp4").write_bytes(b"no video")
    code, content = front("--dimension", "subject_consistency")
    error = capsys.readouterr().err
    assert "a dog-2.mp4: " in error and "subject_consistency: 50.00" in error
    assert code == 1 and list(content["broken"]) == ["a dog-2.mp4"]
    assert sorted(content["videos"]) == ["a beach-0.mp4", *(f"a dog-{index}.mp4" for index in (0, 1, 3, 4))]
    assert content["absent_videos"] == {"subject_consistency": 1} and "1 videos are absent" in error


def test_totals_are_those_of_the_leaderboard(tmp_path):
    best = VBenchReport(tmp_path, list(DIMENSIONS), {name: d.high for name, d in DIMENSIONS.items()})
    assert best.totals() == pytest.approx({"quality": 100, "semantic": 100, "total": 100})
    assert (len(QUALITY), len(SEMANTIC)) == (7, 9)
    worse = VBenchReport(tmp_path, list(DIMENSIONS), {**best.scores, "dynamic_degree": 0.0, "scene": 0.0})
    # the dynamic degree has half a weight among 6.5, the scene one among nine
    quality, semantic = 100 * 6 / 6.5, 100 * 8 / 9
    expected = {"quality": quality, "semantic": semantic, "total": (4 * quality + semantic) / 5}
    assert worse.totals() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dimension", "colour"], "did you mean color?"),
        (["--environment", "."], "environment: ."),
        (["--environment", "new", "--python", "python9"], "python: "),
        (["--generated_videos", "nowhere"], "generated_videos: nowhere"),
        (["--full_info", "list.json"], "list.json cannot be read"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(front, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text('["a dog"]')
    assert_refused(front(*arguments)[0], message, capsys)
