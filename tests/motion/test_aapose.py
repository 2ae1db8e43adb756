"""Skeletons and face crops in the style of Wan-Animate's preprocessing."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.motion.aapose import FACE_AREA, crop_boxes, crop_face, draw_aapose
from stableanimator_cli.motion.keypoints import COUNT, FACE, INDEX, LEFT_HAND
from stableanimator_cli.motion.skeleton import draw_skeleton
from tests.tiny import person

SIZE = (640, 400)


def blank() -> np.ndarray:
    return np.zeros((COUNT, 3), np.float32)


def put(points: np.ndarray, **where: tuple[float, float]) -> np.ndarray:
    for name, (x, y) in where.items():
        points[INDEX[name]] = (x, y, 1.0)
    return points


def test_a_limb_is_dim_and_its_joints_are_bright():
    image = draw_aapose(put(blank(), right_shoulder=(100, 100), right_elbow=(200, 100))[None], SIZE)
    assert tuple(image[100, 150]) == (153, 102, 0)  # the third colour of the rainbow at 0.6
    assert tuple(image[100, 100]) == (255, 170, 0)
    assert tuple(image[100, 200]) == (255, 255, 0)
    half = 400 // 200 - 1
    assert np.flatnonzero(image[:, 150].any(axis=1)).tolist() == list(range(100 - half, 100 + half + 1))


def test_scores_below_a_half_are_not_drawn_and_do_not_dim():
    points = put(blank(), right_shoulder=(100, 100), right_elbow=(200, 100))
    points[INDEX["right_elbow"], 2] = 0.5
    bright = draw_aapose(points[None], SIZE)
    assert tuple(bright[100, 150]) == (153, 102, 0)
    points[INDEX["right_elbow"], 2] = 0.49
    assert not draw_aapose(points[None], SIZE)[100, 150].any()


def test_the_neck_is_between_the_shoulders_whatever_its_own_score():
    points = put(blank(), right_shoulder=(100, 100), left_shoulder=(200, 100), nose=(150, 60))
    image = draw_aapose(points[None], SIZE)
    assert tuple(image[100, 150]) == (255, 85, 0)
    assert tuple(image[80, 150]) == (0, 0, 153)
    points[INDEX["neck"]] = (400, 300, 1)  # our own is not used
    assert (draw_aapose(points[None], SIZE) == image).all()
    for score in (0.9, 0.0):  # the mean of both, and no point without both
        points[INDEX["left_shoulder"], 2], points[INDEX["right_shoulder"], 2] = 0.0, score
        assert not draw_aapose(points[None], SIZE)[80, 150].any()
    points[INDEX["left_shoulder"], 2], points[INDEX["right_shoulder"], 2] = 0.1, 0.85
    assert not draw_aapose(points[None], SIZE)[80, 150].any()


def test_toes_are_the_middle_of_two_points():
    points = put(blank(), left_ankle=(300, 300), left_big_toe=(340, 300), left_small_toe=(340, 310))
    image = draw_aapose(points[None], SIZE)
    assert tuple(image[305, 340]) == (200, 200, 0)
    assert image[302, 320].any()


def test_hands_are_thin_and_faces_are_not_drawn():
    points = blank()
    points[LEFT_HAND] = [(20 + 10 * i, 50, 1.0) for i in range(21)]
    points[FACE] = [(300 + i, 200, 1.0) for i in range(68)]
    image = draw_aapose(points[None], SIZE)
    assert tuple(image[50, 20]) == (0, 0, 255)
    assert not image[190:210].any()
    points[LEFT_HAND, 0] = 0
    assert not draw_aapose(points[None], SIZE).any()  # a hand at the edge counts as missing


def test_it_is_not_our_own_style_and_two_people_are_drawn():
    one = person(0.5, SIZE)
    other = one + np.array([100, 0, 0], np.float32)
    assert (draw_aapose(one[None], SIZE) != draw_skeleton(one[None], SIZE)).any()
    both = draw_aapose(np.stack([one, other]), SIZE)
    assert both.any(axis=2).sum() > 1.7 * draw_aapose(one[None], SIZE).any(axis=2).sum()


def test_points_that_are_not_finite_or_far_away_are_left_out():
    points = put(blank(), right_shoulder=(np.nan, 100), right_elbow=(1e30, 100), nose=(5, 5))
    image = draw_aapose(points[None], SIZE)
    assert image[5, 5].any()
    assert not image[90:110].any()
    with pytest.raises(ValueError, match="expected"):
        draw_aapose(points, SIZE)


def face(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    points = blank()
    rng = np.random.default_rng(0)
    points[FACE, 0] = rng.uniform(x0, x1, 68)
    points[FACE, 1] = rng.uniform(y0, y1, 68)
    points[FACE, 2] = 1
    points[FACE.start, :2] = (x0, y0)
    points[FACE.start + 1, :2] = (x1, y1)
    return points


def test_a_crop_has_more_area_and_grows_upwards():
    (box,) = crop_boxes(face(200, 100, 300, 200)[None], SIZE)
    assert (box[2] - box[0]) * (box[3] - box[1]) == pytest.approx(FACE_AREA * 100 * 100, rel=1e-5)
    assert 250 - box[0] == pytest.approx(box[2] - 250)
    assert 100 - box[1] == pytest.approx(3 * (box[3] - 200), rel=1e-4)


def test_a_crop_is_clipped_and_a_missing_face_is_nan():
    motion = np.stack([face(0, 0, 60, 60), blank(), blank()])
    boxes = crop_boxes(motion, SIZE, np.array([[np.nan] * 4, [10, 20, 50, 60], [np.nan] * 4]))
    assert boxes[0, :2].tolist() == [0, 0]
    assert boxes[1].tolist() == [10, 20, 50, 60]
    assert np.isnan(boxes[2]).all()
    assert np.isnan(crop_boxes(motion, SIZE)[1]).all()


def test_pixels_of_a_crop_are_stretched_to_a_square():
    image = np.zeros((100, 100, 3), np.uint8)
    image[10:20, 30:70] = 200
    crop = crop_face(image, np.array([30.0, 10, 70, 20]), 64)
    assert crop is not None
    assert crop.shape == (64, 64, 3)
    assert (crop == 200).all()
    assert crop_face(image, np.full(4, np.nan)) is None
    assert crop_face(image, np.array([30.0, 10, 33, 20])) is None
