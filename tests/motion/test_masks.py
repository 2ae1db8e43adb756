"""Which pixels a face box covers, at any size, and what a frame without a face is."""

from __future__ import annotations

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
        ((2, 3, 7, 5), (2, 3, 7, 5)),
        ((2.9, 3.9, 7.9, 5.9), (2, 3, 7, 5)),  # cut to whole pixels, not rounded
        ((-4, -9, 3, 2), (0, 0, 3, 2)),
        ((0, 0, 20, 10), (0, 0, 20, 10)),
        ((15, 6, 900, 900), (15, 6, 20, 10)),
        ((4.2, 4.2, 4.6, 4.6), (4, 4, 5, 5)),  # a small face is a pixel, not nothing
        ((19.5, 9.5, 30, 30), (19, 9, 20, 10)),
    ],
)
def test_half_open_rule(box, expected):
    mask = face_mask(np.array([box]), (20, 10))
    assert covered(mask) == expected
    assert mask.shape == (10, 20)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}


def test_boxes_that_touch_share_no_pixel():
    left, right = face_mask([[0, 0, 8, 10]], (20, 10)), face_mask([[8, 0, 20, 10]], (20, 10))
    assert not (left & right).any()
    assert (left | right).all()


def test_all_faces_of_a_frame_are_in_its_mask():
    mask = face_mask(np.array([[1, 1, 3, 3], NAN, [10, 5, 14, 9]]), (20, 10))
    assert (mask > 0).sum() == 4 + 16


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 20), (4, 6, 14, 10)), ((10, 5), (1, 1, 3, 2)), ((20, 40), (2, 12, 7, 20))]
)
def test_boxes_are_scaled_before_they_are_cut(size, expected):
    assert covered(face_mask([[2, 3, 7, 5]], size, source=(20, 10))) == expected


def test_margins_are_shares_of_the_box():
    assert covered(face_mask([[40, 40, 60, 50]], (100, 100), margin=0.5)) == (30, 35, 70, 55)


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
