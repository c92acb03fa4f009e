"""Physics-IQ of folders in the benchmark's naming."""

import csv
import json
import re
import sys

import numpy as np
import pytest

from flowcache.benchmark import __main__ as program
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
    """Nothing generated yet, and two scenes, filmed twice."""
    generated, reference = tmp_path / "generated", tmp_path / "reference"
    generated.mkdir()
    for first, second, view in (("0001", "0199", "left"), ("0002", "0200", "center")):
        save(reference, reference_name(first, 1, view))
        save(reference, reference_name(second, 2, view), shift=3)
    return generated, reference


@pytest.fixture
def score(folders):
    """The exit code, and the content of the file."""

    def run(*arguments):
        generated, reference = folders
        given = ["--generated_videos", generated, "--reference_videos", reference, *arguments]
        code, output = program.main(["physics_iq", *map(str, given)]), generated / "physics_iq.json"
        return code, json.loads(output.read_text()) if output.exists() else None

    return run


def test_first_takes_themselves_score_100_and_others_less_the_farther(score, folders, capsys):
    scores = []
    for shift in (0, 3, 8, 20):
        save(folders[0], "0001_perspective-left_trimmed-roll.mp4", shift=shift)
        save(folders[0], "0002_anything.mp4", shift=shift)
        code, content = score()
        scores.append(content["score"])
        if shift == 0:
            first, table = content, list(csv.DictReader((folders[0] / "physics_iq.csv").open()))
    assert code == 0 and first["videos"] == 2 and first["absent"] == []
    ious = dict.fromkeys(("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou"), 1)
    assert first["generated"] == {**ious, "mse": 0} and 0.5 < first["physical"]["spatial_iou"] < 1
    assert [row["perspective"] for row in table] == ["perspective-left", "perspective-center"]
    assert table[0]["scenario"] == "trimmed-roll" and float(table[0]["spatial_iou"]) == 1
    assert "100.0 of 100, 2 videos\nspatial_iou: 1.0000 (two takes: 0." in capsys.readouterr().out
    assert scores[:2] == pytest.approx([100, 100]), "as far as the second take is as good as the first"
    assert scores[1] > scores[2] > scores[3]


def test_absent_and_broken_videos_are_named_and_the_others_are_scored(score, folders, capsys):
    generated, _ = folders
    save(generated, "0002_a.mp4")
    code, content = score()
    assert code == 0 and content["absent"] == [reference_name("0001", 1)]
    assert "not comparable with published scores: 1 first takes" in capsys.readouterr().out
    (generated / "0001_a.mp4").write_bytes(b"no video")
    code, content = score()
    error = capsys.readouterr().err
    assert code == 1 and list(content["broken"]) == ["0001_a.mp4"]
    assert "0001_a.mp4: " in error and "100.0 of 100, 1 videos" in error


def test_given_frames_at_the_start_can_be_skipped(score, folders):
    for identity in ("0001", "0002"):
        save(folders[0], f"{identity}_a.mp4", frames=7 * FPS, still=2 * FPS)
    first, last = (score("--part", part)[1]["score"] for part in ("first", "last"))
    assert last > 99 > first


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
        (None, [], "needs cv2: pip install -e '.\\[metrics\\]'"),
    ],
)
def test_bad_folders_are_refused(score, folders, capsys, monkeypatch, generated, reference, message):
    if generated is None:
        monkeypatch.setitem(sys.modules, "cv2", None)
    for folder, names in zip(folders, (generated or [], reference), strict=True):
        for name in names:
            save(folder, name, **(names[name] if isinstance(names, dict) else {}))
    assert score()[0] == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and re.search(message, error)
