"""Motion, the four measures of Physics-IQ and its score, on scenes whose answers are known."""

import math

import numpy as np
import pytest

from flowcache.metrics.physics_iq import Clip, Measures, compare_clips, make_clip, physics_iq


def motion_masks(frames):
    return 255 * make_clip(frames, frames.shape[1:3]).masks.astype(np.uint8)


pytest.importorskip("cv2", reason="OpenCV, of the extra metrics, is not installed")

SIDE = 96


def disc(x, y, radius=12, side=SIDE):
    rows, columns = np.ogrid[:side, :side]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def video(centres, light=255, dark=0):
    """A disc at one place after the other; None: nowhere. ``[frames, side, side, 3]``."""
    frames = np.full((len(centres), SIDE, SIDE, 3), dark, np.uint8)
    for frame, centre in zip(frames, centres, strict=True):
        if centre is not None:
            frame[disc(*centre)] = light
    return frames


def clip_of(masks):
    """A clip in which just this moves, on a black ground."""
    masks = np.stack(masks)
    return Clip(np.zeros((*masks.shape, 3), np.uint8), masks)


def overlap_of_discs(distance, radius):
    """Intersection over union of two equal discs, by the area of their lens."""
    half = distance / 2
    lens = 2 * radius**2 * math.acos(half / radius) - distance * math.sqrt(radius**2 - half**2)
    return lens / (2 * math.pi * radius**2 - lens)


# Motion


def test_only_change_is_motion():
    still, first = video([(40, 40)] * 4), next(iter(motion_masks(video([(40, 40), (60, 40)]))))
    assert not np.any(list(motion_masks(still))) and not first.any()
    speck = video([None, None])
    speck[1, 50, 50] = 255
    assert not list(motion_masks(speck))[1].any()


def test_a_disc_moves_where_it_appears_where_it_was_and_where_it_is():
    mask = list(motion_masks(video([None, (48, 48)])))[1]
    wrong = (mask > 0) ^ disc(48, 48)
    # the blur and the squares of opening and closing act on the rim alone
    assert set(np.unique(mask)) == {0, 255} and not (wrong & (disc(48, 48, 9) | ~disc(48, 48, 16))).any()
    mask = list(motion_masks(video([(24, 48), (72, 48)])))[1] > 0
    assert mask[48, 24] and mask[48, 72] and not mask[48, 48] and not mask[10, 10]


def test_the_average_forgets_a_disc_that_came_to_rest():
    masks = list(motion_masks(video([None] + [(48, 48)] * 15)))
    # what is left of 255 after nine frames, times 0.7 in each, is ten whole grey levels
    assert [bool(mask[48, 48]) for mask in masks] == [False] + [True] * 8 + [False] * 7


@pytest.mark.parametrize(("light", "moves"), [(14, False), (15, True)])
def test_a_faint_change_is_no_motion(light, moves):
    # 0.7 of a change is left beyond the average that took it in: 9.8 is 10 in whole grey levels, 10.5 is 11
    assert list(motion_masks(video([None, (48, 48)], light=light)))[1].any() == moves


# The measures

NOTHING, HERE = np.zeros((SIDE, SIDE), bool), disc(48, 48)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([HERE, NOTHING], [NOTHING, HERE], (1, 0, 1)),
        ([HERE, NOTHING, NOTHING, NOTHING], [HERE] * 4, (1, 0.25, 0.25)),
        ([disc(20, 20)], [disc(70, 70)], (0, 0, 0)),
        ([NOTHING] * 3, [NOTHING] * 3, (1, 1, 1)),
        ([disc(40, 48, 30)] * 2, [disc(60, 48, 30)] * 2, (overlap_of_discs(20, 30),) * 3),
    ],
    ids=["wrong time", "too little", "elsewhere", "still", "shifted"],
)
def test_overlaps_in_space_in_time_and_by_weight(ours, theirs, expected):
    measures = compare_clips(clip_of(ours), clip_of(theirs))
    found = (measures.spatial_iou, measures.spatiotemporal_iou, measures.weighted_spatial_iou)
    assert found == pytest.approx(expected, abs=0.01) and measures.mse == 0


def test_clips_are_scaled_and_compared_with_themselves():
    clip = make_clip(video([(20 + 4 * i, 48) for i in range(12)]), (SIDE // 4, SIDE // 4))
    assert clip.frames.shape == (12, 24, 24, 3) and clip.masks.any()
    assert compare_clips(clip, clip) == Measures(1, 1, 1, 0)
    last = make_clip(video([None, (20, 20), (40, 40)]), (24, 24)).last(1)
    assert last.frames.shape == (1, 24, 24, 3) and last.masks.any()
    with pytest.raises(ValueError, match="shape"):
        compare_clips(clip, last)


def test_error_is_that_of_colours_between_0_and_1():
    still = np.zeros((2, 8, 8), bool)
    black, grey = (Clip(np.full((2, 8, 8, 3), value, np.uint8), still) for value in (0, 51))
    assert compare_clips(grey, black).mse == pytest.approx(0.04)
    assert compare_clips(black, grey).mse == pytest.approx(0.04), "bytes do not wrap"


# The score


@pytest.mark.parametrize(
    ("ours", "takes", "expected"),
    [
        ([(0.6, 0.4, 0.5, 0.02)], [(0.6, 0.4, 0.5, 0.02)], 100),
        ([(0.3, 0.1, 0.2, 0.05)], [(0.6, 0.5, 0.4, 0.02)], 100 * ((0.5 + 0.2 + 0.5) / 3 - 0.03)),
        ([(0.2,) * 3 + (0,), (0.4,) * 3 + (0,)], [(0.5,) * 3 + (0,), (1, 1, 1, 0)], 100 * 0.3 / 0.75),
        ([(1, 1, 1, 0)], [(0.5, 0.5, 0.5, 0)], 100),
        ([(0, 0, 0, 0.3)], [(0.5, 0.5, 0.5, 0)], 0),
    ],
    ids=["second take", "shares less excess of error", "means before shares", "at most 100", "at least 0"],
)
def test_score(ours, takes, expected):
    score = physics_iq([Measures(*m) for m in ours], [Measures(*m) for m in takes]).score
    assert score == pytest.approx(expected)


def test_a_video_without_motion_scores_nothing():
    moving, size = [(20 + 4 * i, 48) for i in range(12)], (SIDE, SIDE)
    first, second = make_clip(video(moving), size), make_clip(video([(x + 2, y) for x, y in moving]), size)
    physical = compare_clips(second, first)
    ours = compare_clips(make_clip(video(moving[:1] * 12), size), first)
    assert ours.spatial_iou == ours.weighted_spatial_iou == 0
    assert ours.spatiotemporal_iou == pytest.approx(1 / 12), "only the first frame agrees"
    assert physics_iq([ours], [physical]).score < 5


def test_takes_without_overlap_cannot_be_measured_by():
    with pytest.raises(ValueError, match="spatiotemporal_iou"):
        physics_iq([Measures(1, 1, 1, 0)], [Measures(0.5, 0, 0.5, 0)])
    with pytest.raises(ValueError, match="at least one video"):
        physics_iq([], [])
