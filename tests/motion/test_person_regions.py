"""Where people are: soft weights that sum to one, heads before limbs, nobody where nobody is."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.motion.person_regions import person_regions
from stableanimator_cli.puppets.scene import sample_scene

SIZE = (256, 192)


def person(x: float, y: float = 60.0, unit: float = 24.0) -> np.ndarray:
    """Keypoints float32[134,3] of somebody who stands at ``x`` with the neck at ``y``; no face points."""
    points = np.zeros((134, 3), np.float32)
    places = {
        0: (0, -1), 1: (0, 0), 2: (-0.7, 0), 5: (0.7, 0), 3: (-0.9, 0.9), 6: (0.9, 0.9), 4: (-0.9, 1.7), 7: (0.9, 1.7),
        8: (-0.4, 1.8), 11: (0.4, 1.8), 9: (-0.4, 3), 12: (0.4, 3), 10: (-0.4, 4), 13: (0.4, 4),
    }  # fmt: skip
    for index, (dx, dy) in places.items():
        points[index] = x + dx * unit, y + dy * unit, 1
    return points


def regions(*people: np.ndarray, boxes: list[list[float]] | None = None, present: list[bool] | None = None, cell=8):
    faces = None if boxes is None else np.array([boxes], np.float32)
    there = np.array([present or [True] * len(people)])
    return person_regions(np.stack(people)[None], there, faces, SIZE, cell=cell)[0]


def at(weights: np.ndarray, x: float, y: float) -> np.ndarray:
    return weights[:, int(y // 8), int(x // 8)]


def test_weights_sum_to_one_and_are_never_negative():
    for framing in ("half", "whole", "portrait"):
        scene = sample_scene("val", 2, people=3, framing=framing, size=(136, 100), frames=5)
        motion = scene.motion()
        weights = person_regions(motion.keypoints, motion.present, motion.face_boxes, motion.size)
        assert weights.shape == (5, 4, 13, 17)
        assert weights.dtype == np.float32
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_faces_of_drawn_people_belong_to_their_own_person():
    scene = sample_scene("test", 0, people=2, framing="half", size=(256, 256), frames=6)
    motion = scene.motion()
    weights = person_regions(motion.keypoints, motion.present, motion.face_boxes, motion.size)
    seen = 0
    for frame, boxes in enumerate(motion.face_boxes):
        for who, box in enumerate(boxes):
            if np.isfinite(box).all():
                x0, y0, x1, y1 = (int(side // 8) for side in box)
                seen += 1
                assert weights[frame, who, y0 : y1 + 1, x0 : x1 + 1].mean() > 0.85
    assert seen == 12


def test_torso_and_background():
    weights = regions(person(60), person(190))
    assert at(weights, 60, 90)[0] > 0.95
    assert at(weights, 190, 90)[1] > 0.95
    assert at(weights, 125, 20)[2] > 0.99


def test_edges_are_soft():
    weights = regions(person(60), person(190))
    row = weights[0, 11]
    between = row[(row > 0.02) & (row < 0.98)]
    assert len(between) >= 2
    for y in (40, 60, 92):  # across head, shoulders and trunk: two edges of several pixels, not of one cell
        row = regions(person(60), person(190), cell=1)[0, y]
        assert row.max() > 0.99
        assert ((row > 0.02) & (row < 0.98)).sum() > 10


def test_bodies_share_where_they_overlap():
    weights = regions(person(120), person(128))
    body = at(weights, 124, 90)
    assert body[2] < 0.05
    np.testing.assert_allclose(body[:2], 0.5, atol=0.1)


def test_a_face_wins_over_the_arm_of_another():
    near, far = person(60), person(180)
    near[6, :2], near[7, :2] = (120, 50), (180, 38)  # the left hand is before the other's face
    boxes = [[50, 24, 70, 48], [168, 24, 192, 48]]
    face = at(regions(near, far, boxes=boxes), 180, 38)
    assert face[1] > 0.8
    assert face[0] < 0.2


def test_the_absent_have_no_weight():
    alone, both = regions(person(60)), regions(person(60), person(190), present=[True, False])
    assert (both[1] == 0).all()
    np.testing.assert_array_equal(both[[0, 2]], alone)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 1e9, -4000.0])
def test_who_leaves_the_frame_leaves_it_to_nobody(spoil):
    gone = person(190)
    gone[:, :2] = spoil
    weights = regions(person(60), gone, boxes=[[50, 24, 70, 48], [np.nan] * 4])
    assert np.isfinite(weights).all()
    assert (weights[1] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-6)


def test_a_box_without_points_is_a_face_alone():
    weights = regions(np.zeros((134, 3), np.float32), boxes=[[100, 60, 130, 100]])
    assert at(weights, 115, 80)[0] > 0.95
    assert at(weights, 115, 180)[0] < 0.01


def test_without_hips_the_torso_goes_down_from_the_shoulders():
    half = person(120)
    half[8:14] = 0
    assert at(regions(half), 120, 95)[0] > 0.9


def test_a_profile_has_its_ear_in_the_head():
    profile = person(120)
    profile[16] = 150, 40, 1
    assert at(regions(profile, boxes=[[104, 24, 120, 50]]), 148, 36)[0] > 0.8


def test_cells_are_counted_up():
    assert regions(person(60), cell=10).shape == (2, 20, 26)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="keypoints"):
        person_regions(np.zeros((2, 1, 133, 3)), np.ones((2, 1), bool), None, SIZE)
    with pytest.raises(ValueError, match="face boxes"):
        person_regions(np.zeros((2, 1, 134, 3)), np.ones((2, 1), bool), np.zeros((2, 2, 4)), SIZE)
    with pytest.raises(ValueError, match="size"):
        person_regions(np.zeros((2, 1, 134, 3)), np.ones((2, 1), bool), None, (0, 4))
