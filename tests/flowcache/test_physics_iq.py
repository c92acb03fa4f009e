"""Physics-IQ: motion, the four measures and the score on scenes whose answers are known; folders of videos."""

import csv
import json
import math

import numpy as np
import pytest
from programs import assert_refused

from flowcache.benchmark import __main__ as program
from flowcache.metrics.physics_iq import Clip, Measures, compare_clips, make_clip, physics_iq
from flowcache.video import VideoWriter

pytest.importorskip("cv2", reason="OpenCV, of the extra metrics, is not installed")

SIDE = 96


def disc(x, y, radius=12):
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def video(centres, light=255):
    """A disc at one place after the other; None: nowhere. ``[frames, side, side, 3]``."""
    frames = np.zeros((len(centres), SIDE, SIDE, 3), np.uint8)
    for frame, centre in zip(frames, centres, strict=True):
        if centre is not None:
            frame[disc(*centre)] = light
    return frames


def moving(*centres, light=255):
    return make_clip(video(centres, light), (SIDE, SIDE)).masks


def test_a_disc_moves_where_it_appears_where_it_was_and_where_it_is():
    assert not moving(*[(40, 40)] * 4).any() and not moving((40, 40), (60, 40))[0].any(), "only change is motion"
    speck = video([None, None])
    speck[1, 50, 50] = 255
    assert not make_clip(speck, (SIDE, SIDE)).masks.any()
    wrong = moving(None, (48, 48))[1] ^ disc(48, 48)
    # the blur and the squares of opening and closing act on the rim alone
    assert not (wrong & (disc(48, 48, 9) | ~disc(48, 48, 16))).any()
    mask = moving((24, 48), (72, 48))[1]
    assert mask[48, 24] and mask[48, 72] and not mask[48, 48] and not mask[10, 10]


def test_the_average_forgets_a_disc_that_came_to_rest_and_a_faint_change_is_no_motion():
    # what is left of 255 after nine frames, times 0.7 in each, is ten whole grey levels
    assert moving(None, *[(48, 48)] * 15)[:, 48, 48].tolist() == [False] + [True] * 8 + [False] * 7
    # 0.7 of a change is left beyond the average that took it in: 9.8 is 10 in whole grey levels, 10.5 is 11
    assert [moving(None, (48, 48), light=light)[1].any() for light in (14, 15)] == [False, True]


NOTHING, HERE = np.zeros((SIDE, SIDE), bool), disc(48, 48)
#: Intersection of two discs of radius 30, 20 pixels apart, by the area of their lens, and over their union.
LENS = 2 * 30**2 * math.acos(10 / 30) - 20 * math.sqrt(30**2 - 10**2)
SHIFTED = LENS / (2 * math.pi * 30**2 - LENS)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([HERE, NOTHING], [NOTHING, HERE], (1, 0, 1)),
        ([HERE, NOTHING, NOTHING, NOTHING], [HERE] * 4, (1, 0.25, 0.25)),
        ([disc(20, 20)], [disc(70, 70)], (0, 0, 0)),
        ([NOTHING] * 3, [NOTHING] * 3, (1, 1, 1)),
        ([disc(40, 48, 30)] * 2, [disc(60, 48, 30)] * 2, (SHIFTED,) * 3),
    ],
    ids=["wrong time", "too little", "elsewhere", "still", "shifted"],
)
def test_overlaps_in_space_in_time_and_by_weight(ours, theirs, expected):
    black = np.zeros((len(ours), SIDE, SIDE, 3), np.uint8)
    measures = compare_clips(Clip(black, np.stack(ours)), Clip(black, np.stack(theirs)))
    found = (measures.spatial_iou, measures.spatiotemporal_iou, measures.weighted_spatial_iou)
    assert found == pytest.approx(expected, abs=0.01) and measures.mse == 0


def test_clips_are_scaled_and_compared_by_colours_between_0_and_1():
    small = make_clip(video([(20 + 4 * i, 48) for i in range(12)]), (SIDE // 4, SIDE // 4))
    assert small.frames.shape == (12, 24, 24, 3) and small.masks.any()
    assert compare_clips(small, small) == Measures(1, 1, 1, 0)
    last = small.last(1)
    assert last.frames.shape == (1, 24, 24, 3) and last.masks.any()
    with pytest.raises(ValueError, match="shape"):
        compare_clips(small, last)
    still = np.zeros((2, 8, 8), bool)
    black, grey = (Clip(np.full((2, 8, 8, 3), value, np.uint8), still) for value in (0, 51))
    assert compare_clips(grey, black).mse == compare_clips(black, grey).mse == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("ours", "takes", "expected"),
    [
        ([(0.6, 0.4, 0.5, 0.02)], [(0.6, 0.4, 0.5, 0.02)], 100),
        ([(0.3, 0.1, 0.2, 0.05)], [(0.6, 0.5, 0.4, 0.02)], 100 * ((0.5 + 0.2 + 0.5) / 3 - 0.03)),
        ([(0.2,) * 3 + (0,), (0.4,) * 3 + (0,)], [(0.5,) * 3 + (0,), (1, 1, 1, 0)], 100 * 0.3 / 0.75),
        ([(1, 1, 1, 0)], [(0.5, 0.5, 0.5, 0)], 100),
        ([(0, 0, 0, 0.3)], [(0.5, 0.5, 0.5, 0)], 0),
        ([(1, 1, 1, 0)], [(0.5, 0, 0.5, 0)], None),
        ([], [], None),
    ],
    ids=["second take", "less the error", "means before shares", "most", "least", "no overlap", "no video"],
)
def test_score(ours, takes, expected):
    given = [Measures(*m) for m in ours], [Measures(*m) for m in takes]
    if expected is None:
        with pytest.raises(ValueError, match=r"spatiotemporal_iou|one video"):
            physics_iq(*given)
    else:
        assert physics_iq(*given).score == pytest.approx(expected)


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
def generated(tmp_path):
    """An empty folder, beside two scenes, filmed twice."""
    for first, second, view in (("0001", "0199", "left"), ("0002", "0200", "center")):
        save(tmp_path / "reference", reference_name(first, 1, view))
        save(tmp_path / "reference", reference_name(second, 2, view), shift=3)
    (tmp_path / "generated").mkdir()
    return tmp_path / "generated"


def score(generated, *arguments):
    """The exit code, and the content of the file."""
    given = ["--generated_videos", generated, "--reference_videos", generated.parent / "reference", *arguments]
    code, output = program.main(["physics_iq", *map(str, given)]), generated / "physics_iq.json"
    return code, json.loads(output.read_text()) if output.exists() else None


def test_first_takes_themselves_score_100_and_others_less_the_farther(generated, capsys):
    scores = []
    for shift in (20, 8, 3, 0):
        save(generated, "0001_perspective-left_trimmed-roll.mp4", shift=shift)
        save(generated, "0002_anything.mp4", shift=shift)
        code, first = score(generated)
        scores.append(first["score"])
    table = list(csv.DictReader((generated / "physics_iq.csv").open()))
    assert code == 0 and first["videos"] == 2 and first["absent"] == []
    ious = dict.fromkeys(("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou"), 1)
    assert first["generated"] == {**ious, "mse": 0} and 0.5 < first["physical"]["spatial_iou"] < 1
    assert [row["perspective"] for row in table] == ["perspective-left", "perspective-center"]
    assert table[0]["scenario"] == "trimmed-roll" and float(table[0]["spatial_iou"]) == 1
    assert "100.0 of 100, 2 videos\nspatial_iou: 1.0000 (two takes: 0." in capsys.readouterr().out
    assert scores[2:] == pytest.approx([100, 100]), "as far as the second take is as good as the first"
    assert scores[0] < scores[1] < scores[2]


def test_absent_and_broken_videos_are_named_and_the_others_are_scored(generated, capsys):
    save(generated, "0002_a.mp4")
    code, content = score(generated)
    assert code == 0 and content["absent"] == [reference_name("0001", 1)]
    assert "not comparable with published scores: 1 first takes" in capsys.readouterr().out
    (generated / "0001_a.mp4").write_bytes(b"no video")
    code, content = score(generated)
    error = capsys.readouterr().err
    assert code == 1 and list(content["broken"]) == ["0001_a.mp4"]
    assert "0001_a.mp4: " in error and "100.0 of 100, 1 videos" in error


def test_given_frames_at_the_start_can_be_skipped(generated):
    for identity in ("0001", "0002"):
        save(generated, f"{identity}_a.mp4", frames=7 * FPS, still=2 * FPS)
    first, last = (score(generated, "--part", part)[1]["score"] for part in ("first", "last"))
    assert last > 99 > first


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ([], {}, "generated_videos: "),
        (["0199_a.mp4"], {}, "generated_videos: 0199_a.mp4"),
        (["0001_a.mp4", "0001_b.mp4"], {}, "0001_a.mp4 and 0001_b.mp4"),
        (["0001_a.mp4", "../reference/roll.mp4"], {}, "reference_videos: roll.mp4"),
        (["0001_a.mp4", f"../reference/{reference_name('0003', 1, 'right')}"], {}, "no second take of 0003"),
        (["0001_a.mp4"], {"frames": 30}, "40 frames, 5 s, 0001_a.mp4 has 30"),
        (["0001_a.mp4"], {"fps": 16, "frames": 80}, "8 frames a second, 16 of 0001_a.mp4"),
    ],
)
def test_bad_folders_are_refused(generated, capsys, paths, options, message):
    for path in paths:
        save(generated, path, **options)
    assert_refused(score(generated)[0], message, capsys)
