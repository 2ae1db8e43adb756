"""Key-point error against hand-made displacements."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.metrics.motion import keypoint_error


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
