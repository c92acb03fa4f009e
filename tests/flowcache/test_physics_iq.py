"""Motion, the four measures of Physics-IQ and its score, on scenes whose answers are known."""

import math

import numpy as np
import pytest

from flowcache.metrics.physics_iq import Clip, Measures, compare_clips, make_clip, physics_iq

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


def clip(frames):
    return make_clip(frames, (SIDE, SIDE))


def moving(*centres, light=255):
    return clip(video(centres, light)).masks


# Motion


def test_only_change_is_motion():
    assert not moving(*[(40, 40)] * 4).any() and not moving((40, 40), (60, 40))[0].any()
    speck = video([None, None])
    speck[1, 50, 50] = 255
    assert not clip(speck).masks.any()


def test_a_disc_moves_where_it_appears_where_it_was_and_where_it_is():
    wrong = moving(None, (48, 48))[1] ^ disc(48, 48)
    # the blur and the squares of opening and closing act on the rim alone
    assert not (wrong & (disc(48, 48, 9) | ~disc(48, 48, 16))).any()
    mask = moving((24, 48), (72, 48))[1]
    assert mask[48, 24] and mask[48, 72] and not mask[48, 48] and not mask[10, 10]


def test_the_average_forgets_a_disc_that_came_to_rest():
    # what is left of 255 after nine frames, times 0.7 in each, is ten whole grey levels
    assert moving(None, *[(48, 48)] * 15)[:, 48, 48].tolist() == [False] + [True] * 8 + [False] * 7


@pytest.mark.parametrize(("light", "moves"), [(14, False), (15, True)])
def test_a_faint_change_is_no_motion(light, moves):
    # 0.7 of a change is left beyond the average that took it in: 9.8 is 10 in whole grey levels, 10.5 is 11
    assert moving(None, (48, 48), light=light)[1].any() == moves


# The measures

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


# The score


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
