"""Motion, the four measures of Physics-IQ and its score, on scenes whose answers are known."""

import math

import numpy as np
import pytest

from flowcache.metrics.physics_iq import Clip, Measures, compare_clips, make_clip, motion_masks, physics_iq

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


def test_nothing_moves_in_the_first_frame_or_in_a_still_video():
    still = video([(40, 40)] * 4)
    assert not np.any(list(motion_masks(still)))
    assert not next(iter(motion_masks(video([(40, 40), (60, 40)])))).any()


def test_disc_that_appears_moves_where_it_is():
    mask = list(motion_masks(video([None, (48, 48)])))[1]
    assert set(np.unique(mask)) == {0, 255}
    wrong = (mask > 0) ^ disc(48, 48)
    # the blur and the squares of opening and closing act on the rim alone
    assert not (wrong & (disc(48, 48, 9) | ~disc(48, 48, 16))).any()


def test_disc_that_moves_shows_where_it_was_and_where_it_is():
    mask = list(motion_masks(video([(24, 48), (72, 48)])))[1] > 0
    assert mask[48, 24] and mask[48, 72] and not mask[48, 48] and not mask[10, 10]


def test_average_forgets_a_disc_that_came_to_rest():
    masks = list(motion_masks(video([None] + [(48, 48)] * 15)))
    # what is left of 255 after nine frames, times 0.7 in each, is ten whole grey levels
    assert [bool(mask[48, 48]) for mask in masks] == [False] + [True] * 8 + [False] * 7


@pytest.mark.parametrize(("light", "moves"), [(14, False), (15, True)])
def test_faint_change_is_no_motion(light, moves):
    # 0.7 of a change is left beyond the average that took it in: 9.8 is 10 in whole grey levels, 10.5 is 11
    mask = list(motion_masks(video([None, (48, 48)], light=light)))[1]
    assert mask.any() == moves


def test_specks_are_removed():
    frames = video([None, None])
    frames[1, 50, 50] = 255
    assert not list(motion_masks(frames))[1].any()


# The measures


def test_identical_clips_agree_in_everything():
    clip = make_clip(video([(20 + 4 * i, 48) for i in range(12)]), (SIDE // 4, SIDE // 4))
    assert clip.frames.shape == (12, 24, 24, 3) and clip.masks.any()
    assert compare_clips(clip, clip) == Measures(1, 1, 1, 0)


def test_shifted_disc_overlaps_as_the_lens_of_two_discs():
    radius, distance = 30, 20
    one, other = disc(40, 48, radius), disc(40 + distance, 48, radius)
    measures = compare_clips(clip_of([one, one]), clip_of([other, other]))
    expected = overlap_of_discs(distance, radius)
    assert measures.spatial_iou == pytest.approx(expected, abs=0.01)
    assert measures.spatiotemporal_iou == pytest.approx(expected, abs=0.01)
    assert measures.weighted_spatial_iou == pytest.approx(expected, abs=0.01)


def test_right_place_at_the_wrong_time_counts_in_space_alone():
    here, nothing = disc(48, 48), np.zeros((SIDE, SIDE), bool)
    measures = compare_clips(clip_of([here, nothing]), clip_of([nothing, here]))
    assert measures == Measures(spatial_iou=1, spatiotemporal_iou=0, weighted_spatial_iou=1, mse=0)


def test_too_little_motion_in_the_right_place_counts_in_weight():
    here, nothing = disc(48, 48), np.zeros((SIDE, SIDE), bool)
    measures = compare_clips(clip_of([here, nothing, nothing, nothing]), clip_of([here] * 4))
    assert measures.spatial_iou == 1
    assert measures.spatiotemporal_iou == 0.25
    assert measures.weighted_spatial_iou == pytest.approx(0.25)


def test_motion_elsewhere_has_nothing_in_common():
    measures = compare_clips(clip_of([disc(20, 20)]), clip_of([disc(70, 70)]))
    assert (measures.spatial_iou, measures.spatiotemporal_iou, measures.weighted_spatial_iou) == (0, 0, 0)


def test_two_still_clips_agree():
    still = clip_of([np.zeros((SIDE, SIDE), bool)] * 3)
    assert compare_clips(still, still) == Measures(1, 1, 1, 0)


def test_error_is_that_of_colours_between_0_and_1():
    still = np.zeros((2, 8, 8), bool)
    black, grey = (Clip(np.full((2, 8, 8, 3), value, np.uint8), still) for value in (0, 51))
    assert compare_clips(grey, black).mse == pytest.approx(0.04)
    assert compare_clips(black, grey).mse == pytest.approx(0.04), "bytes do not wrap"


def test_clips_of_other_shapes_are_refused():
    short = clip_of([disc(20, 20)])
    with pytest.raises(ValueError, match="one shape"):
        compare_clips(short, clip_of([disc(20, 20)] * 2))


def test_last_frames_of_a_clip():
    clip = make_clip(video([None, (20, 20), (40, 40)]), (24, 24)).last(1)
    assert clip.frames.shape == (1, 24, 24, 3) and clip.masks.any()


# The score


def test_video_as_close_as_the_second_take_scores_100():
    takes = Measures(0.6, 0.4, 0.5, 0.02)
    assert physics_iq([takes], [takes]).score == pytest.approx(100)


def test_score_is_the_mean_share_less_the_excess_of_error():
    ours, takes = Measures(0.3, 0.1, 0.2, 0.05), Measures(0.6, 0.5, 0.4, 0.02)
    expected = 100 * ((0.5 + 0.2 + 0.5) / 3 - 0.03)
    assert physics_iq([ours], [takes]).score == pytest.approx(expected)


def test_means_are_taken_before_the_shares():
    ours = [Measures(0.2, 0.2, 0.2, 0), Measures(0.4, 0.4, 0.4, 0)]
    takes = [Measures(0.5, 0.5, 0.5, 0), Measures(1, 1, 1, 0)]
    result = physics_iq(ours, takes)
    assert result.score == pytest.approx(100 * 0.3 / 0.75)
    assert result.physical.spatial_iou == 0.75


def test_score_ends_at_0_and_100():
    takes = Measures(0.5, 0.5, 0.5, 0)
    assert physics_iq([Measures(1, 1, 1, 0)], [takes]).score == 100
    assert physics_iq([Measures(0, 0, 0, 0.3)], [takes]).score == 0


def test_video_without_motion_scores_nothing():
    moving = [(20 + 4 * i, 48) for i in range(12)]
    size = (SIDE, SIDE)
    first, second = make_clip(video(moving), size), make_clip(video([(x + 2, y) for x, y in moving]), size)
    still = make_clip(video(moving[:1] * 12), size)
    physical, ours = compare_clips(second, first), compare_clips(still, first)
    assert ours.spatial_iou == ours.weighted_spatial_iou == 0
    assert ours.spatiotemporal_iou == pytest.approx(1 / 12), "only the first frame agrees"
    assert physics_iq([ours], [physical]).score < 5
    assert physics_iq([physical], [physical]).score == 100


def test_takes_without_overlap_cannot_be_measured_by():
    with pytest.raises(ValueError, match="spatiotemporal_iou of 0"):
        physics_iq([Measures(1, 1, 1, 0)], [Measures(0.5, 0, 0.5, 0)])
    with pytest.raises(ValueError, match="at least one video"):
        physics_iq([], [])
