"""Key-point error against hand-made displacements."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.metrics.motion import PARTS, keypoint_error
from stableanimator_cli.motion.keypoints import FACE, LEFT_HAND, RIGHT_HAND


def _people(frames: int = 5) -> np.ndarray:
    """A person whose body fills the box (0, 0) - (30, 40), so that its size is 50."""
    points = np.ones((frames, 134, 3))
    points[..., :2] = np.random.default_rng(0).uniform((0, 0), (30, 40), (134, 2))
    points[:, 0, :2], points[:, 1, :2] = (0, 0), (30, 40)
    return points


def test_the_same_points_have_no_error() -> None:
    result = keypoint_error(_people(), _people())
    assert (result.error, result.pixels, result.pck, result.found, result.points) == (0, 0, 1, 1, 5 * 18)


def test_a_shift_is_told_in_pixels_and_in_shares_of_the_person() -> None:
    made = _people()
    made[..., :2] += (3, 4)
    result = keypoint_error(made, _people())
    assert result.pixels == pytest.approx(5)
    assert result.error == pytest.approx(0.1)
    made[..., :2] += (3, 4)
    assert keypoint_error(made, _people()).pck == 0


def test_near_and_far_figures_weigh_the_same() -> None:
    made, driven = _people(), _people()
    made[..., :2] += (3, 4)
    large = keypoint_error(made * (4, 4, 1), driven * (4, 4, 1))
    assert large.error == pytest.approx(keypoint_error(made, driven).error)
    assert large.pixels == pytest.approx(20)


def test_points_that_are_not_found_lower_found_and_pck_but_not_the_error() -> None:
    made = _people()
    made[:, :9, 2] = 0
    made[:, :9, :2] = 1e6
    result = keypoint_error(made, _people())
    assert (result.error, result.found, result.pck) == (0, 0.5, 0.5)


def test_nobody_found_is_wrong_in_every_driven_point() -> None:
    result = keypoint_error(_people() * (1, 1, 0), _people())
    assert (result.pck, result.found, result.points, result.driven) == (0, 0, 0, 5 * 18)
    assert np.isnan(result.error)


def test_only_the_body_counts() -> None:
    made = _people()
    made[:, 18:, :2] += 100
    assert keypoint_error(made, _people()).error == 0


def test_frames_without_anybody_are_gaps_in_the_curve() -> None:
    made = _people()
    made[2, :, 2] = 0
    curve = keypoint_error(made, _people()).curve
    assert np.isnan(curve).tolist() == [False, False, True, False, False]


def test_a_motion_of_nobody_gives_no_number() -> None:
    result = keypoint_error(_people(), _people() * (1, 1, 0))
    assert np.isnan([result.error, result.pck, result.found]).all()
    assert result.points == 0


def test_motions_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="points"):
        keypoint_error(_people(5), _people(4))


def _hands(frames: int = 5) -> np.ndarray:
    """Hands in boxes of 6 x 8 (size 10) and a face in one of 30 x 40 (size 50)."""
    points = _people(frames)
    rng = np.random.default_rng(1)
    for part, corner, size in (
        (LEFT_HAND, (50, 50), (6, 8)),
        (RIGHT_HAND, (70, 50), (6, 8)),
        (FACE, (20, 5), (30, 40)),
    ):
        points[:, part, :2] = np.array(corner) + rng.uniform((0, 0), size, (part.stop - part.start, 2))
        points[:, part.start, :2], points[:, part.start + 1, :2] = corner, np.add(corner, size)
    return points


def test_hands_and_landmarks_are_measured_by_their_own_size() -> None:
    made = _hands()
    made[:, LEFT_HAND, :2] += (3, 4)
    made[:, FACE, :2] += (3, 4)
    hand = keypoint_error(made, _hands(), PARTS["hand"], (100, 100))
    assert (hand.error, hand.pixels) == (pytest.approx(0.25), pytest.approx(2.5))  # the other hand is right
    assert (hand.pck, hand.found, hand.driven) == (0.5, 1, 5 * 42)
    face = keypoint_error(made, _hands(), PARTS["landmark"], (100, 100))
    assert (face.error, face.driven) == (pytest.approx(0.1), 5 * 68)
    assert keypoint_error(made, _hands()).error == 0  # the body does not know of them


def test_a_hidden_hand_is_not_asked_for_and_a_lost_one_is_wrong() -> None:
    driven, made = _hands(), _hands()
    driven[:, RIGHT_HAND, 2] = 0.1
    made[:, LEFT_HAND, 2] = 0
    lost = keypoint_error(made, driven, PARTS["hand"])
    assert (lost.driven, lost.points, lost.pck, lost.found) == (5 * 21, 0, 0, 0)
    assert np.isnan(lost.error)
    driven[..., 2] = 0.1
    absent = keypoint_error(made, driven, PARTS["hand"])
    assert absent.driven == 0
    assert np.isnan([absent.error, absent.pck, absent.found]).all()


def test_points_outside_of_the_frame_are_invisible() -> None:
    driven = _hands()
    left = keypoint_error(driven, driven, PARTS["hand"], (65, 100))  # the right hand begins at 70
    assert (left.driven, left.error) == (5 * 21, 0)
    assert keypoint_error(driven, driven, frame=(1, 1)).driven == 5 * 18  # of the body all count, as before


def test_a_hand_of_a_few_points_has_no_size() -> None:
    driven = _hands()
    driven[:, LEFT_HAND.start + 10 : LEFT_HAND.stop, 2] = 0
    driven[:, RIGHT_HAND, 2] = 0
    assert np.isnan(keypoint_error(driven, driven, PARTS["hand"]).error)
