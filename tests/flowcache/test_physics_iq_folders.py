"""Physics-IQ from folders in the benchmark's naming."""

import csv
import json
import sys

import numpy as np
import pytest

from flowcache.benchmark import __main__ as program
from flowcache.benchmark import physics_iq
from flowcache.benchmark.physics_iq import find_views
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


def reference_name(identity, take, view="left", scenario="trimmed-roll", fps=FPS):
    return f"{identity}_testing-videos_{fps}FPS_perspective-{view}_take-{take}_{scenario}.mp4"


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


def test_first_takes_themselves_score_100(front, folders, capsys):
    generated, _ = folders
    save(generated, "0001_perspective-left_trimmed-roll.mp4")
    save(generated, "0002_anything.mp4")
    assert front() == 0
    content = result(generated)
    assert content["score"] == 100 and content["videos"] == 2 and content["absent"] == []
    assert content["generated"] == {
        "spatial_iou": 1,
        "spatiotemporal_iou": 1,
        "weighted_spatial_iou": 1,
        "mse": 0,
    }
    assert 0.5 < content["physical"]["spatial_iou"] < 1
    with (generated / "physics_iq.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["perspective"] for row in table] == ["perspective-left", "perspective-center"]
    assert table[0]["scenario"] == "trimmed-roll" and float(table[0]["spatial_iou"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("Physics-IQ score: 100.0 of 100, 2 videos\nspatial_iou: 1.0000 (two takes: 0.")


def test_the_farther_the_lower(front, folders):
    generated, _ = folders
    scores = []
    for shift in (3, 8, 20):
        save(generated, "0001_a.mp4", shift=shift)
        save(generated, "0002_a.mp4", shift=shift)
        assert front() == 0
        scores.append(result(generated)["score"])
    assert scores[0] == pytest.approx(100, abs=1e-6), "just as far as the second take"
    assert scores[0] > scores[1] > scores[2]


def test_absent_videos_are_named(front, folders, capsys):
    save(folders[0], "0002_a.mp4")
    assert front() == 0
    assert result(folders[0])["absent"] == [reference_name("0001", 1)]
    assert "not comparable with published scores: 1 first takes" in capsys.readouterr().out


def test_broken_videos_are_named_and_the_others_are_scored(front, folders, capsys, monkeypatch):
    generated, _ = folders
    save(generated, "0002_a.mp4")
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


def test_given_frames_at_the_start_can_be_passed_over(front, folders):
    generated, _ = folders
    for identity in ("0001", "0002"):
        save(generated, f"{identity}_a.mp4", frames=7 * FPS, still=2 * FPS)
    assert front("--part", "first") == 0
    first = result(generated)["score"]
    assert front("--part", "last", "--output", str(generated / "last")) == 0
    last = json.loads((generated / "last.json").read_text())
    assert last["score"] > 99 > first


def test_views_are_matched_by_scenario_and_perspective(folders):
    generated, reference = folders
    save(generated, "0002_a.mp4")
    (view,) = find_views(generated, reference).views
    assert view.takes[0].name == reference_name("0002", 1, "center")
    assert view.takes[1].name == reference_name("0200", 2, "center")


BAD = {
    "generated_videos: 0199_a.mp4 does not begin with the id of a first take": [("generated", "0199_a.mp4")],
    "bear the same id": [("generated", "0001_a.mp4"), ("generated", "0001_b.mp4")],
    "is not named like 0001_testing-videos": [("generated", "0001_a.mp4"), ("reference", "roll.mp4")],
    "there is no second take of 0003": [
        ("generated", "0001_a.mp4"),
        ("reference", reference_name("0003", 1, "right")),
    ],
    "is no folder with mp4 files": [],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_names_are_refused_in_one_sentence(front, folders, capsys, message):
    for folder, name in BAD[message]:
        save(folders[folder == "reference"], name)
    assert front() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 30}, "generated_videos: 0001_a.mp4 has 30 frames, 5 s take 40"),
        ({"fps": 16, "frames": 80}, "must have one rate, but 0001_a.mp4 has 16 frames a second"),
    ],
)
def test_bad_videos_are_refused_before_any_is_decoded(front, folders, capsys, options, message):
    save(folders[0], "0001_a.mp4", **options)
    assert front() == 2
    assert message in capsys.readouterr().err


def test_without_opencv_it_says_what_to_install(front, folders, capsys, monkeypatch):
    save(folders[0], "0001_a.mp4")
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert front() == 2
    assert capsys.readouterr().err.startswith("error: Physics-IQ needs cv2: pip install -e '.[metrics]'")
