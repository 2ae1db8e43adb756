"""The overlay shows both skeletons where they are, over the picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stableanimator_cli.motion.overlay import ALIGNED_COLOUR, REFERENCE_COLOUR, overlay
from tests.motion.moving import mapped, side_by_side, standing, with_points
from tests.waving import waving

PICTURE = np.full((512, 512, 3), 100, np.uint8)


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) < 30).all(axis=-1)


def test_both_skeletons_lie_where_their_points_are():
    motion = with_points(waving(5), mapped(waving(5).keypoints, shift=(60, 0)))
    seen = overlay(PICTURE, standing(), motion, [4])
    alone = overlay(PICTURE, standing() * [1, 1, 0], motion, [4])  # the reference's lines lie on top
    shown = (seen, standing(), REFERENCE_COLOUR), (alone, motion.keypoints[4, 0], ALIGNED_COLOUR)
    for picture, person, colour in shown:
        assert picture.shape == PICTURE.shape
        where = coloured(picture, colour)
        for x, y in person[2:14, :2]:
            assert where[round(float(y)) - 2 : round(float(y)) + 3, round(float(x)) - 2 : round(float(x)) + 3].any()
    assert (seen[300, 20] == 55).all()  # the picture, dimmed
    assert (PICTURE == 100).all()


def test_small_pictures_are_enlarged_and_unseen_points_are_left_out():
    motion = waving(4, (100, 100))
    seen = overlay(PICTURE[:100, :100], standing((100, 100)), motion)
    assert seen.shape == (600, 600, 3)
    blind = overlay(PICTURE[:100, :100], standing((100, 100)) * [1, 1, 0], motion)
    assert coloured(seen, REFERENCE_COLOUR)[60:].any()
    assert not coloured(blind, REFERENCE_COLOUR)[60:].any()  # below the words


def test_points_far_away_or_not_finite_do_no_harm():
    person = standing()
    person[4, :2], person[7, :2] = [1e12, -1e12], [np.nan, 3]
    assert coloured(overlay(PICTURE, person, waving(1)), REFERENCE_COLOUR).any()


def test_refusals():
    with pytest.raises(ValueError, match=r"uint8\[512, 512, 3\] for a motion of size \(64, 64\)"):
        overlay(PICTURE, standing(), waving(2, (64, 64)))
    with pytest.raises(ValueError, match=r"frames \[2\] of a motion of 2 frames"):
        overlay(PICTURE, standing(), waving(2), [2])


def test_several_people_have_their_numbers():
    left, right = (mapped(waving(2).keypoints, 0.5, (x, 200)) for x in (0, 256))
    motion = side_by_side(with_points(waving(2), left), with_points(waving(2), right))
    numbered = overlay(PICTURE, standing() * [1, 1, 0], motion)
    one = dataclasses.replace(motion, present=motion.present & [True, False])
    white = np.all(numbered > 200, axis=-1)
    middle = white.shape[1] // 2
    assert white[:, :middle].any()
    assert white[:, middle:].any()
    absent = np.all(overlay(PICTURE, standing() * [1, 1, 0], one) > 200, axis=-1)
    assert absent[:, :middle].any()
    assert not absent[:, middle:].any()
    alone = overlay(PICTURE, standing() * [1, 1, 0], waving(2))
    assert not (alone > 200).all(axis=-1).any()
