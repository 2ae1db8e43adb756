from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.motion import keypoints as kp

GOLDEN = Path(__file__).parents[1] / "golden" / "reference"


def numbered_wholebody() -> np.ndarray:
    """133 points whose x is their own number, all seen."""
    points = np.ones((133, 3))
    points[:, 0] = np.arange(133)
    return points


def test_names_are_unique_and_parts_cover_the_person():
    assert len(kp.NAMES) == len(set(kp.NAMES)) == kp.COUNT == 134
    covered = [i for part in kp.PARTS.values() for i in range(part.start, part.stop)]
    assert covered == list(range(134))
    assert kp.NAMES[kp.LEFT_HAND][8] == "left_hand_index_4"


def test_wholebody_points_land_where_their_names_say():
    person = kp.from_wholebody(numbered_wholebody())
    wholebody = {
        "nose": 0, "left_eye": 1, "right_eye": 2, "left_ear": 3, "right_ear": 4, "left_shoulder": 5,
        "right_shoulder": 6, "left_elbow": 7, "right_elbow": 8, "left_wrist": 9, "right_wrist": 10, "left_hip": 11,
        "right_hip": 12, "left_knee": 13, "right_knee": 14, "left_ankle": 15, "right_ankle": 16,
        "left_big_toe": 17, "right_heel": 22, "face_0": 23, "face_67": 90,
        "left_hand_wrist": 91, "left_hand_little_4": 111, "right_hand_wrist": 112, "right_hand_little_4": 132,
    }  # fmt: skip
    assert {name: int(person[kp.INDEX[name], 0]) for name in wholebody} == wholebody


@pytest.mark.parametrize(("left", "right", "neck"), [(0.31, 0.9, 1.0), (0.3, 0.9, 0.0), (0.9, 0.1, 0.0)])
def test_the_neck_is_seen_only_between_seen_shoulders(left, right, neck):
    points = numbered_wholebody()
    points[[5, 6], 2] = left, right
    person = kp.from_wholebody(points)
    assert person[kp.INDEX["neck"]].tolist() == [5.5, 1.0, neck]


def test_conversion_keeps_type_and_leading_axes_and_loses_only_the_neck():
    points = np.random.default_rng(0).random((2, 3, 133, 3), np.float32)
    person = kp.from_wholebody(points)
    assert person.shape == (2, 3, 134, 3)
    assert person.dtype == np.float32
    np.testing.assert_array_equal(kp.to_wholebody(person), points)


def test_recorded_people_go_to_wholebody_and_back():
    with np.load(GOLDEN / "pose_decode.npz") as golden:
        people = np.concatenate([golden["keypoints"], golden["scores"][..., None]], axis=-1)
    np.testing.assert_array_equal(kp.from_wholebody(kp.to_wholebody(people)), people)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(133, 3\)"):
        kp.from_wholebody(np.zeros((134, 3)))
    with pytest.raises(ValueError, match=r"\(134, 3\)"):
        kp.to_wholebody(np.zeros((133, 3)))


def test_limbs_make_one_tree_each():
    for limbs, points in ((kp.BODY_LIMBS, 18), (kp.HAND_LIMBS, 21)):
        reached = {limbs[0][0]}
        for _ in limbs:
            reached |= {end for limb in limbs if set(limb) & reached for end in limb}
        assert reached == set(range(points))
        assert len(limbs) == points - 1


def test_unfinite_and_faint_points_are_not_visible():
    points = np.array([[1, 2, 0.31], [1, 2, 0.3], [np.nan, 2, 0.9], [1, np.inf, 0.9]])
    assert kp.visible(points).tolist() == [True, False, False, False]


def test_a_face_box_holds_the_seen_face_points_and_a_margin():
    people = np.zeros((2, 134, 3))
    people[0, kp.FACE] = [30, 40, 0.9]
    people[0, kp.FACE.start, :2] = 20, 30
    people[0, kp.FACE.start + 1, :2] = 40, 70
    people[0, kp.FACE.start + 2] = [500, 500, 0.1]  # not seen, so not held
    boxes = kp.face_box(people, margin=0.1)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[0], [18, 26, 42, 74])
    assert np.isnan(boxes[1]).all()


def test_boxes_of_nobody():
    assert kp.face_box(np.zeros((4, 0, 134, 3))).shape == (4, 0, 4)
