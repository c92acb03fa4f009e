"""Physics-IQ of folders in the benchmark's naming."""

import csv
import json
import re
import sys

import numpy as np
import pytest

from flowcache.benchmark import __main__ as program
from flowcache.benchmark import physics_iq
from flowcache.video import VideoWriter

pytest.importorskip("cv2", reason="OpenCV, of the extra metrics, is not installed")

FPS = 8


def save(folder, name, shift=0, frames=5 * FPS, fps=FPS, still=0):
    """A square of 24 pixels that slides to the right, after ``still`` frames of rest."""
    folder.mkdir(exist_ok=True)
    video = np.full((frames, 64, 128, 3), 30, np.uint8)
    for index, frame in enumerate(video):
        left = 4 + shift + 2 * max(0, index - still)
        frame[20:44, left : left + 24] = 220
    with VideoWriter(folder / name, fps) as writer:
        writer.write(video)


def reference_name(identity, take, view="left"):
    return f"{identity}_testing-videos_{FPS}FPS_perspective-{view}_take-{take}_trimmed-roll.mp4"


@pytest.fixture
def folders(tmp_path):
    """Two scenes, filmed twice, and nothing generated yet."""
    generated, reference = tmp_path / "generated", tmp_path / "reference"
    generated.mkdir()
    for first, second, view in (("0001", "0199", "left"), ("0002", "0200", "center")):
        save(reference, reference_name(first, 1, view))
        save(reference, reference_name(second, 2, view), shift=3)
    return generated, reference


@pytest.fixture
def front(folders):
    def run(*arguments):
        generated, reference = folders
        given = ["--generated_videos", generated, "--reference_videos", reference, *arguments]
        return program.main(["physics_iq", *map(str, given)])

    return run


def result(folder):
    return json.loads((folder / "physics_iq.json").read_text())


def test_first_takes_themselves_score_100_and_others_less_the_farther(front, folders, capsys):
    generated, _ = folders
    save(generated, "0001_perspective-left_trimmed-roll.mp4")
    save(generated, "0002_anything.mp4")
    assert front() == 0
    content = result(generated)
    assert content["score"] == 100 and content["videos"] == 2 and content["absent"] == []
    ious = dict.fromkeys(("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou"), 1)
    assert content["generated"] == {**ious, "mse": 0} and 0.5 < content["physical"]["spatial_iou"] < 1
    with (generated / "physics_iq.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["perspective"] for row in table] == ["perspective-left", "perspective-center"]
    assert table[0]["scenario"] == "trimmed-roll" and float(table[0]["spatial_iou"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("Physics-IQ score: 100.0 of 100, 2 videos\nspatial_iou: 1.0000 (two takes: 0.")
    scores = []
    for shift in (3, 8, 20):
        save(generated, "0001_perspective-left_trimmed-roll.mp4", shift=shift)
        save(generated, "0002_anything.mp4", shift=shift)
        assert front() == 0
        scores.append(result(generated)["score"])
    assert scores[0] == pytest.approx(100, abs=1e-6), "just as far as the second take"
    assert scores[0] > scores[1] > scores[2]


def test_absent_and_broken_videos_are_named_and_the_others_are_scored(front, folders, capsys, monkeypatch):
    generated, _ = folders
    save(generated, "0002_a.mp4")
    assert front() == 0
    assert result(generated)["absent"] == [reference_name("0001", 1)]
    assert "not comparable with published scores: 1 first takes" in capsys.readouterr().out
    (generated / "0001_a.mp4").write_bytes(b"no video")
    assert front() == 1
    error = capsys.readouterr().err
    assert "0001_a.mp4: " in error and "Physics-IQ score: 100.0 of 100, 1 videos" in error
    assert list(result(generated)["broken"]) == ["0001_a.mp4"]

    save(generated, "0001_a.mp4")
    measure_view = physics_iq.measure_view

    def measure(view, part):
        if view.generated.name == "0001_a.mp4":
            raise ValueError("frame 7 cannot be decoded")
        return measure_view(view, part)

    monkeypatch.setattr(physics_iq, "measure_view", measure)
    assert front() == 1
    assert result(generated)["broken"] == {"0001_a.mp4": "frame 7 cannot be decoded"}
    assert result(generated)["videos"] == 1


def test_given_frames_at_the_start_can_be_skipped(front, folders):
    generated, _ = folders
    for identity in ("0001", "0002"):
        save(generated, f"{identity}_a.mp4", frames=7 * FPS, still=2 * FPS)
    assert front("--part", "first") == 0
    assert front("--part", "last", "--output", str(generated / "last")) == 0
    last = json.loads((generated / "last.json").read_text())
    assert last["score"] > 99 > result(generated)["score"]


@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (["0199_a.mp4"], [], "generated_videos: 0199_a.mp4"),
        (["0001_a.mp4", "0001_b.mp4"], [], "0001_a.mp4 and 0001_b.mp4"),
        (["0001_a.mp4"], ["roll.mp4"], "reference_videos: .*roll.mp4"),
        (["0001_a.mp4"], [reference_name("0003", 1, "right")], "no second take of 0003"),
        ([], [], "generated_videos: "),
        ({"0001_a.mp4": {"frames": 30}}, [], "40 frames, 5 s, 0001_a.mp4 has 30"),
        ({"0001_a.mp4": {"fps": 16, "frames": 80}}, [], "8 frames a second.* 16 of 0001_a.mp4"),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(front, folders, capsys, generated, reference, message):
    for folder, names in zip(folders, (generated, reference), strict=True):
        for name in names:
            save(folder, name, **(names[name] if isinstance(names, dict) else {}))
    assert front() == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and re.search(message, error)


def test_without_opencv_it_says_what_to_install(front, folders, capsys, monkeypatch):
    save(folders[0], "0001_a.mp4")
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert front() == 2
    assert capsys.readouterr().err.startswith("error: Physics-IQ needs cv2: pip install -e '.[metrics]'")
