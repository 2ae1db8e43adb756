"""Which pixels a face box covers, at any size, and what a frame without a face is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stableanimator_cli.motion.masks import face_mask

NAN = [np.nan] * 4


def covered(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), half-open, of a mask that is one rectangle."""
    y, x = np.nonzero(mask)
    box = int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
    assert len(x) == (box[2] - box[0]) * (box[3] - box[1])
    return box


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((2, 3, 7, 5), (2, 3, 8, 6)),  # both ends are inside
        ((2.9, 3.9, 7.9, 5.9), (2, 3, 8, 6)),  # cut to whole pixels, not rounded
        ((-4, -9, 3, 2), (0, 0, 4, 3)),
        ((0, 0, 20, 10), (0, 0, 20, 10)),
        ((15, 6, 900, 900), (15, 6, 20, 10)),
        ((4.2, 4.2, 4.6, 4.6), (4, 4, 5, 5)),  # a small face is a pixel, not nothing
        ((19.5, 9.5, 30, 30), (19, 9, 20, 10)),
    ],
)
def test_both_ends_of_a_box_are_inside(box, expected):
    mask = face_mask(np.array([box]), (20, 10))
    assert covered(mask) == expected
    assert mask.shape == (10, 20)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}


def test_masks_are_the_filled_rectangles_of_the_reference_implementation():
    rng = np.random.default_rng(0)
    for _ in range(50):
        boxes = np.sort(rng.uniform(-8, 60, (2, 2, 2)), axis=1).reshape(2, 4)  # x0, y0, x1, y1
        boxes[:, :2] = boxes[:, :2].clip(max=20)  # in the frame
        boxes[:, 2:] = boxes[:, 2:].clip(min=22)
        drawn = np.zeros((41, 53), np.uint8)
        for x0, y0, x1, y1 in boxes.tolist():
            cv2.rectangle(drawn, (int(x0), int(y0)), (int(x1), int(y1)), 255, thickness=cv2.FILLED)
        np.testing.assert_array_equal(face_mask(boxes, (53, 41)), drawn)


def test_all_faces_of_a_frame_are_in_its_mask():
    mask = face_mask(np.array([[1, 1, 3, 3], NAN, [10, 5, 14, 9]]), (20, 10))
    assert (mask > 0).sum() == 9 + 25


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 20), (4, 6, 15, 11)), ((10, 5), (1, 1, 4, 3)), ((20, 40), (2, 12, 8, 21))]
)
def test_boxes_are_scaled_before_they_are_cut(size, expected):
    assert covered(face_mask([[2, 3, 7, 5]], size, source=(20, 10))) == expected


def test_margins_are_shares_of_the_box():
    assert covered(face_mask([[40, 40, 60, 50]], (100, 100), margin=0.5)) == (30, 35, 71, 56)


@pytest.mark.parametrize(
    "boxes", [np.zeros((0, 4)), np.array([NAN]), np.array([[30, 0, 40, 5.0]]), np.array([[5, 5, 5, 9.0]])]
)
def test_without_a_face_nothing_or_by_the_old_convention_everything(boxes):
    assert not face_mask(boxes, (20, 10)).any()
    assert (face_mask(boxes, (20, 10), missing="full") == 255).all()


def test_refusals():
    with pytest.raises(ValueError, match="expected empty or full"):
        face_mask([NAN], (4, 4), missing="white")
    for margin in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="margin"):
            face_mask([NAN], (4, 4), margin=margin)
    with pytest.raises(ValueError, match="0x4"):
        face_mask([NAN], (0, 4))
