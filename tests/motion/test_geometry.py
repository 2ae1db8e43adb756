from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.motion.geometry import ResizeTransform, resize_transform
from stableanimator_cli.records import Motion

SIZES = [((64, 48), (32, 32)), ((48, 64), (32, 32)), ((37, 91), (64, 40)), ((30, 20), (60, 40)), ((640, 7), (5, 9))]


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), np.uint8)


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_corners_meet(source, target, mode):
    mapping = resize_transform(source, target, mode)
    corners = np.array(mapping.box).reshape(2, 2)
    np.testing.assert_allclose(mapping.apply_points(corners), np.array(mapping.placed).reshape(2, 2), atol=1e-9)
    assert mapping.apply_image(noise(source)).shape == (target[1], target[0], 3)


@pytest.mark.parametrize(
    ("name", "pillow"), [("lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)]
)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_stretching_is_pillows_resize(source, target, name, pillow):
    image = noise(source)
    expected = np.asarray(Image.fromarray(image).resize(target, pillow))
    np.testing.assert_array_equal(resize_transform(source, target, "stretch").apply_image(image, name), expected)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_an_equal_aspect_uses_all_of_both(mode):
    mapping = resize_transform((1920, 1080), (640, 360), mode)
    assert mapping.box == (0, 0, 1920, 1080)
    assert mapping.placed == (0, 0, 640, 360)
    same = noise((33, 21))
    np.testing.assert_array_equal(resize_transform((33, 21), (33, 21), mode).apply_image(same), same)


def test_crop_takes_the_middle_of_the_longer_side():
    wide, tall = resize_transform((200, 100), (50, 50), "crop"), resize_transform((100, 200), (50, 50), "crop")
    assert wide.box == (50, 0, 150, 100)
    assert tall.box == (0, 50, 100, 150)
    assert wide.scale == tall.scale == (0.5, 0.5)
    assert wide.apply_points([[100, 50], [0, 0]]).tolist() == [[25, 25], [-25, 0]]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_crop_keeps_shapes_exactly_and_pad_to_half_a_pixel(source, target):
    across, down = resize_transform(source, target, "crop").scale
    assert across == pytest.approx(down, rel=1e-12)
    mapping = resize_transform(source, target, "pad")
    left, top, right, bottom = mapping.placed
    scale = min(target[0] / source[0], target[1] / source[1])
    assert abs(right - left - max(1, source[0] * scale)) <= 0.5
    assert abs(bottom - top - max(1, source[1] * scale)) <= 0.5


def test_pad_leaves_black_bars_round_the_whole_picture():
    image = np.full((50, 100, 3), 200, np.uint8)
    frame = resize_transform((100, 50), (60, 60), "pad").apply_image(image)
    assert not frame[:15].any()
    assert not frame[45:].any()
    assert (frame[15:45] == 200).all()


def test_a_marked_pixel_and_its_point_stay_together():
    image = np.zeros((80, 120, 3), np.uint8)
    image[38:42, 68:72] = 255
    for mode in ("crop", "pad", "stretch"):
        mapping = resize_transform((120, 80), (96, 160), mode)
        bright = np.argwhere(mapping.apply_image(image)[..., 0] > 128)
        middle = bright.mean(axis=0)[::-1] + 0.5  # pixel indices name corners, their middles lie half a pixel on
        np.testing.assert_allclose(middle, mapping.apply_points([70, 40]), atol=0.6)


def test_a_motion_moves_with_its_face_boxes():
    keypoints = np.zeros((2, 1, 134, 3), np.float32)
    keypoints[0, 0, 3] = [100, 50, 0.8]
    boxes = np.array([[[50, 0, 150, 100]], [[np.nan] * 4]], np.float32)
    times = (Fraction(0), Fraction(1, 30))
    motion = Motion(
        keypoints=keypoints, present=np.array([[True], [False]]), track=np.array([4]), face_boxes=boxes,
        size=(200, 100), times=times,
    )  # fmt: skip
    moved = resize_transform((200, 100), (50, 50), "crop").transform_motion(motion)
    assert moved.size == (50, 50)
    assert moved.keypoints.dtype == moved.face_boxes.dtype == np.float32
    np.testing.assert_allclose(moved.keypoints[0, 0, 3], [25, 25, 0.8])
    assert moved.face_boxes[0, 0].tolist() == [0, 0, 50, 50]
    assert np.isnan(moved.face_boxes[1]).all()
    assert moved.times == times
    assert motion.keypoints[0, 0, 3, 0] == 100  # the old one is untouched
    with pytest.raises(ValueError, match="expected \\(64, 64\\)"):
        resize_transform((64, 64), (32, 32), "crop").transform_motion(motion)


def test_wrong_modes_sizes_and_pictures_are_named():
    with pytest.raises(ValueError, match="resize mode 'zoom': expected crop, pad or stretch"):
        resize_transform((10, 10), (5, 5), "zoom")
    with pytest.raises(ValueError, match="0x5"):
        resize_transform((10, 10), (0, 5), "crop")
    with pytest.raises(ValueError, match="expected uint8"):
        resize_transform((10, 20), (5, 5), "crop").apply_image(np.zeros((10, 20, 3), np.uint8))


def test_a_fit_is_a_value():
    assert resize_transform((10, 20), (5, 5), "crop") == resize_transform((10, 20), (5, 5), "crop")
    assert isinstance(hash(resize_transform((10, 20), (5, 5), "crop")), int)
    assert {type(resize_transform((10, 20), (5, 5), "pad"))} == {ResizeTransform}
