"""Short gaps close on a straight line, long ones stay, nothing is invented outside, and all of it is told."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest

from stableanimator_cli.motion.repair import Gap, repair, smoothed
from stableanimator_cli.records import Motion
from tests.motion.moving import side_by_side, with_points
from tests.waving import waving


def walking(frames: int = 30) -> Motion:
    """Somebody who goes to the right, 3 pixels a frame."""
    motion = waving(frames)
    points = np.repeat(motion.keypoints[:1], frames, axis=0)
    points[..., 0] += 3.0 * np.arange(frames)[:, None, None]
    points[..., 2] = 0.9
    return with_points(motion, points)


def without(motion: Motion, *frames: slice, person: int = 0) -> Motion:
    present, points, boxes = motion.present.copy(), motion.keypoints.copy(), motion.face_boxes.copy()
    for cut in frames:
        present[cut, person], points[cut, person], boxes[cut, person] = False, 0, np.nan
    return dataclasses.replace(motion, present=present, keypoints=points, face_boxes=boxes)


def test_a_short_gap_is_closed_where_the_person_must_have_been():
    motion = walking()
    fixed, told = repair(without(motion, slice(10, 15)), gap=5)
    assert fixed.present.all()
    np.testing.assert_allclose(fixed.keypoints[..., :2], motion.keypoints[..., :2], atol=1e-3)
    np.testing.assert_allclose(fixed.face_boxes, motion.face_boxes, atol=1e-3)
    np.testing.assert_allclose(fixed.keypoints[10:15, ..., 2], 0.3 + 0.8 * 0.6, atol=1e-6)
    np.testing.assert_array_equal(
        fixed.keypoints[[*range(10), *range(15, 30)]], motion.keypoints[[*range(10), *range(15, 30)]]
    )
    assert (told.frames, told.points, told.emptied) == (5, 0, 0)
    assert told.gaps == (Gap(track=0, first=10, stop=15, filled=True),)


def test_a_longer_gap_stays_and_is_told():
    broken = without(walking(), slice(10, 16), slice(20, 22))
    fixed, told = repair(broken, gap=5)
    assert not fixed.present[10:16].any()
    assert not fixed.keypoints[10:16].any()
    assert fixed.present[20:22].all()
    assert told.gaps == (Gap(track=0, first=10, stop=16, filled=False), Gap(track=0, first=20, stop=22, filled=True))
    assert told.describe() == "2 frames filled in 1 gaps, 0 points filled, 1 gaps left, the longest of 6 frames"
    assert json.loads(json.dumps(told.to_json()))["gaps"][0] == {"track": 0, "first": 10, "stop": 16, "filled": False}


def test_nothing_before_the_first_and_after_the_last():
    broken = without(walking(), slice(0, 4), slice(27, 30))
    points = broken.keypoints.copy()
    points[4:6, 0, 4, 2] = 0.1
    points[25:27, 0, 7, 2] = 0.1
    fixed, told = repair(with_points(broken, points), gap=10, smooth=0)
    assert not fixed.present[[0, 1, 2, 3, 27, 28, 29]].any()
    np.testing.assert_array_equal(fixed.keypoints, points)
    assert (told.frames, told.points, told.gaps) == (0, 0, ())


def test_time_counts_not_frames():
    motion = walking(8)
    times = tuple(Fraction(n, 25) for n in (0, 1, 2, 5, 6, 7, 8, 9))  # a jump between 2 and 3
    points = motion.keypoints.copy()
    points[..., 0] = np.array([float(t) * 100 for t in times])[:, None, None]
    fixed, _ = repair(without(dataclasses.replace(with_points(motion, points), times=times), slice(3, 5)))
    np.testing.assert_allclose(fixed.keypoints[:, 0, 0, 0], points[:, 0, 0, 0], atol=1e-4)
    unclocked, _ = repair(without(dataclasses.replace(with_points(motion, points), times=None), slice(3, 5)))
    assert abs(unclocked.keypoints[3, 0, 0, 0] - points[3, 0, 0, 0]) > 1


def test_single_points_are_put_back_and_counted():
    motion = walking()
    points = motion.keypoints.copy()
    points[5:7, 0, 4] = [400, 10, 0.05]
    points[12:25, 0, 7] = [10, 10, 0.2]  # too long
    fixed, told = repair(with_points(motion, points), gap=4)
    np.testing.assert_allclose(fixed.keypoints[5:7, 0, 4, :2], motion.keypoints[5:7, 0, 4, :2], atol=1e-3)
    assert (fixed.keypoints[5:7, 0, 4, 2] > 0.3).all()
    np.testing.assert_array_equal(fixed.keypoints[12:25, 0, 7], points[12:25, 0, 7])
    assert (told.points, told.frames, told.gaps) == (2, 0, ())


def test_points_seen_on_one_side_only_are_not_made_up():
    broken = without(walking(), slice(10, 13))
    points = broken.keypoints.copy()
    points[13:, 0, 92:113, 2] = 0.1  # a hand that is not seen afterwards
    boxes = broken.face_boxes.copy()
    boxes[13] = np.nan
    fixed, _ = repair(dataclasses.replace(broken, keypoints=points, face_boxes=boxes))
    assert fixed.present[10:13].all()
    assert not fixed.keypoints[10:13, 0, 92:113].any()
    assert np.isnan(fixed.face_boxes[10:13]).all()
    assert (fixed.keypoints[10:13, 0, :18, 2] > 0.3).all()


def test_a_frame_without_a_body_point_is_a_gap():
    motion = walking()
    points = motion.keypoints.copy()
    points[8, 0, :18, 2] = 0.1
    fixed, told = repair(with_points(motion, points))
    assert (told.emptied, told.frames) == (1, 1)
    np.testing.assert_allclose(fixed.keypoints[8, 0, :, :2], motion.keypoints[8, 0, :, :2], atol=1e-3)
    assert "1 frames without a body point" in told.describe()


def test_people_are_repaired_apart():
    pair = without(side_by_side(walking(), walking()), slice(4, 6), person=1)
    fixed, told = repair(pair)
    assert told.gaps == (Gap(track=1, first=4, stop=6, filled=True),)
    np.testing.assert_array_equal(fixed.keypoints[:, 0], pair.keypoints[:, 0])


def test_a_whole_motion_is_left_alone():
    motion = waving(10)
    fixed, told = repair(motion)
    for name in ("keypoints", "present", "face_boxes"):
        np.testing.assert_array_equal(getattr(fixed, name), getattr(motion, name))
    assert told.describe() == "0 frames filled in 0 gaps, 0 points filled"


def noisy(motion: Motion, pixels: float) -> Motion:
    points = motion.keypoints.copy()
    points[..., :2] += np.random.default_rng(0).normal(0, pixels, points[..., :2].shape).astype(np.float32)
    return with_points(motion, points)


def error(motion: Motion, truth: Motion) -> float:
    return float(np.sqrt(((motion.keypoints[..., :2] - truth.keypoints[..., :2]) ** 2).mean()))


def test_jitter_goes_down_and_movement_stays():
    truth = waving(50)
    shaking = noisy(truth, 2.0)
    errors = [error(shaking, truth)] + [error(smoothed(shaking, width), truth) for width in (1.0, 2.0)]
    assert errors[1] < 0.85 * errors[0]
    assert errors[2] < 0.75 * errors[0]
    # The wave itself, twice a second, is hardly flattened.
    assert error(smoothed(truth, 1.0), truth) < 0.15


def test_smoothing_leaves_parabolas_as_they_are_and_has_no_delay():
    motion = walking(40)
    points = motion.keypoints.astype(np.float64)
    points[..., 1] += 0.05 * (np.arange(40.0) ** 2)[:, None, None]
    motion = with_points(motion, points)
    np.testing.assert_allclose(smoothed(motion, 2.5).keypoints, motion.keypoints, atol=2e-3)
    shaking = noisy(waving(40), 1.5)
    backwards = with_points(shaking, shaking.keypoints[::-1])
    ahead, back = smoothed(shaking, 1.5).keypoints, smoothed(backwards, 1.5).keypoints[::-1]
    np.testing.assert_allclose(ahead, back, atol=1e-3)


def test_smoothing_does_not_reach_across_what_was_not_seen():
    motion = walking(20)
    points = motion.keypoints.copy()
    points[10:, ..., 0] += 100
    jump = without(with_points(motion, points), slice(9, 11))
    after = smoothed(jump, 2.0)
    np.testing.assert_allclose(after.keypoints, jump.keypoints, atol=2e-3)
    np.testing.assert_array_equal(after.present, jump.present)
    assert np.isnan(after.face_boxes[9:11]).all()


def test_smoothing_does_not_spread_what_absent_people_have_for_points():
    known = without(noisy(walking(20), 1.0), slice(9, 11))
    points = known.keypoints.copy()
    points[9:11] = np.nan
    after = smoothed(with_points(known, points), 2.0)
    np.testing.assert_array_equal(after.keypoints[known.present], smoothed(known, 2.0).keypoints[known.present])
    assert np.isnan(after.keypoints[9:11]).all()


def test_smoothing_is_asked_for_and_told():
    shaking = noisy(waving(20), 2.0)
    plain, told = repair(shaking)
    np.testing.assert_array_equal(plain.keypoints, shaking.keypoints)
    assert (told.smooth, told.moved) == (0.0, 0.0)
    after, told = repair(shaking, smooth=1.5)
    assert 0.5 < told.moved < 4
    assert "smoothed over 1.5 frames" in told.describe()
    np.testing.assert_array_equal(after.keypoints[..., 2], shaking.keypoints[..., 2])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_clips_of_a_few_frames(frames):
    motion = waving(frames)
    fixed, told = repair(motion, smooth=2.0)
    np.testing.assert_array_equal(fixed.keypoints, motion.keypoints)
    assert told.gaps == ()


def test_refusals():
    with pytest.raises(ValueError, match="gap -1: expected 0 frames or more"):
        repair(waving(2), gap=-1)
    for smooth in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="smooth"):
            repair(waving(2), smooth=smooth)
