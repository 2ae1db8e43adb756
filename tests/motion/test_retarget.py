"""Limbs become the reference's, bones keep their directions, and what was measured wrongly is not believed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stableanimator_cli.motion.keypoints import BODY_LIMBS
from stableanimator_cli.motion.limb_lengths import SEGMENTS, lengths, ratios, shoulder_width
from stableanimator_cli.motion.retarget import LARGEST, factors, retarget
from tests.motion.moving import standing
from tests.waving import waving

NO_BOXES = np.full((12, 4), np.nan)


@pytest.fixture
def points() -> np.ndarray:
    return waving(12).keypoints[:, 0].astype(np.float64)


def longer(person: np.ndarray, **by: float) -> np.ndarray:
    """``standing`` with some lengths scaled: the same person built otherwise."""
    person = person.copy()
    arms = {
        "upper_arm": ((2, 3), (5, 6)),
        "forearm": ((3, 4), (6, 7)),
        "thigh": ((8, 9), (11, 12)),
        "shin": ((9, 10), (12, 13)),
    }
    below = {2: (3, 4), 3: (4,), 5: (6, 7), 6: (7,), 8: (9, 10), 9: (10,), 11: (12, 13), 12: (13,)}
    for name, factor in by.items():
        for parent, child in arms[name]:
            step = (factor - 1) * (person[child, :2] - person[parent, :2])
            person[list(below[parent]), :2] += step
    return person


def test_single_limbs_get_the_references_length(points):
    body = longer(standing(), forearm=1.3, thigh=0.8)
    after, _, scale = retarget(points, NO_BOXES, body)
    assert scale["forearm"] == pytest.approx(1.3, rel=0.02)
    assert scale["thigh"] == pytest.approx(0.8, rel=1e-6)
    assert scale["shin"] == pytest.approx(1.0, rel=1e-6)
    found, wanted = lengths(after), lengths(body)
    for name in ("shoulders", "hips", "trunk", "upper_arm", "forearm", "thigh", "shin", "neck"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-6), name


def test_bones_keep_their_directions_and_joints_stay_joined(points):
    after, _, _ = retarget(points, NO_BOXES, longer(standing(), upper_arm=1.5, shin=0.7))
    for a, b in [limb for limb in BODY_LIMBS if 1 not in limb]:
        before = points[:, b, :2] - points[:, a, :2]
        now = after[:, b, :2] - after[:, a, :2]
        turned = before[:, 0] * now[:, 1] - before[:, 1] * now[:, 0]
        np.testing.assert_allclose(turned / np.linalg.norm(before, axis=1) / np.linalg.norm(now, axis=1), 0, atol=0.05)
    # Hands hang from wrists and feet from ankles as before.
    np.testing.assert_allclose(after[:, 92, :2], after[:, 7, :2], atol=1e-4)
    np.testing.assert_allclose(
        after[:, 21, :2] - after[:, 10, :2], 0.7 * (points[:, 21, :2] - points[:, 10, :2]), atol=1e-9
    )


def test_hips_take_the_trunks_length_and_their_own_width(points):
    body = standing()
    body[8:14, 1] += 30
    body[[11, 12, 13], 0] += 20
    after, _, _ = retarget(points, NO_BOXES, body)
    np.testing.assert_allclose(np.ptp(after[:, [8, 11], 0], axis=1), np.ptp(body[[8, 11], 0]), atol=1e-6)
    np.testing.assert_allclose(after[:, [8, 11], 1].mean(axis=1), body[[8, 11], 1].mean(), atol=0.5)


def test_a_foreshortened_limb_stays_foreshortened(points):
    points[4:7, 3:5, :2] = points[4:7, 2:3, :2] + 0.4 * (points[4:7, 3:5, :2] - points[4:7, 2:3, :2])
    after, _, scale = retarget(points, NO_BOXES, longer(standing(), upper_arm=1.25, forearm=1.25))
    assert scale["upper_arm"] == pytest.approx(1.25, rel=0.02)
    long = np.linalg.norm(after[:, 3, :2] - after[:, 2, :2], axis=1)
    np.testing.assert_allclose(long[4:7] / long[0], 0.4, rtol=1e-3)


def test_of_the_reference_the_longer_side_counts():
    body = standing()
    body[4, :2] = body[3, :2] + 0.2 * (body[4, :2] - body[3, :2])  # this forearm points at the camera
    assert lengths(body)["forearm"] == pytest.approx(lengths(standing())["forearm"], rel=0.05)


def test_unseen_points_neither_move_others_nor_are_moved_alone(points):
    points[5, 3, 2] = 0.1  # an elbow that was not found, somewhere
    points[5, 3, :2] = [900, 900]
    after, _, _ = retarget(points, NO_BOXES, longer(standing(), upper_arm=1.4))
    assert np.abs(after[5, 4, :2] - after[4, 4, :2]).max() < 60
    np.testing.assert_array_equal(after[..., 2], points[..., 2])


def test_widths_of_somebody_seen_from_the_side_are_not_believed(points):
    sideways = points.copy()
    sideways[:, :18, 0] = 256 + (sideways[:, :18, 0] - 256) * 0.2
    scale = factors(sideways, standing())
    assert scale["shoulders"] == pytest.approx(1.0)
    assert scale["hips"] == pytest.approx(1.0)
    assert scale["trunk"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.3, 1.3), (2.0, 2.0), (2.5, 1.6), (4.0, 1.0), (9.0, 1.0), (0.4, 0.625)]
)
def test_factors_stay_sane(points, ratio, expected):
    body = standing()
    for k in (8, 11):
        body[k, 1] = body[1, 1] + ratio * (body[k, 1] - body[1, 1])
    assert factors(points, body)["trunk"] == pytest.approx(expected, rel=1e-5)
    assert LARGEST == 2.0


def test_head_and_box_grow_about_the_nose(points):
    body = standing()
    body[[*range(14, 18), *range(24, 92)], :2] = body[0, :2] + 1.2 * (
        body[[*range(14, 18), *range(24, 92)], :2] - body[0, :2]
    )
    boxes = np.tile([[236.0, 60.0, 276.0, 110.0]], (12, 1))
    after, grown, scale = retarget(points, boxes, body)
    assert scale["head"] == pytest.approx(1.2, rel=0.01)
    np.testing.assert_allclose(grown[0, 2:] - grown[0, :2], [48, 60], rtol=0.01)
    nose, centre = points[0, 0, :2], np.array([256.0, 85.0])
    np.testing.assert_allclose(
        (grown[0, :2] + grown[0, 2:]) / 2 - after[0, 0, :2], scale["head"] * (centre - nose), atol=1e-9
    )


def test_lengths_of_nobody_are_unknown_and_compared_with_nothing():
    unknown = lengths(np.zeros((3, 134, 3)))
    assert set(unknown) == set(SEGMENTS)
    assert all(math.isnan(value) for value in unknown.values())
    assert math.isnan(shoulder_width(unknown))
    assert all(math.isnan(value) for value in ratios(lengths(standing()), unknown).values())
    assert all(value == 1.0 for value in factors(np.zeros((3, 134, 3)), standing()).values())


def test_shoulder_width_from_what_is_there():
    body = standing()
    assert shoulder_width(lengths(body)) == pytest.approx(0.18 * 512, rel=0.05)
    head = np.where(np.isin(np.arange(134), [0, 14, 15, 16, 17])[:, None], body, 0)
    assert shoulder_width(lengths(head)) == pytest.approx(0.09 * 512 / 0.42, rel=1e-6)
