"""People and their points: against the golden decoding, and from drawn rectangles through whole sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.detect.pose import (
    PersonDetector,
    PoseEstimator,
    _Crop,
    _Letterbox,
    decode_people,
    decode_points,
)
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from stableanimator_cli.motion.keypoints import from_wholebody
from tests import onnx_samples
from tests.onnx_samples import BLUE, GREEN, RED

GOLDEN = Path(__file__).parents[1] / "golden" / "reference" / "pose_decode.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dwpose")
    onnx_samples.yolox(folder / "one.onnx", classes=((RED, 0), (GREEN, 0), (BLUE, 2)))
    onnx_samples.yolox(folder / "many.onnx", classes=((RED, 0), (GREEN, 0), (BLUE, 2)), batch="batch")
    onnx_samples.simcc(folder / "pose.onnx")
    onnx_samples.simcc(folder / "pose_one.onnx", batch=1)
    return folder


def picture(h: int = 300, w: int = 400, **rectangles: tuple[int, int, int, int]) -> np.ndarray:
    image = np.full((h, w, 3), 40, np.uint8)
    for name, (x0, y0, x1, y1) in rectangles.items():
        image[y0:y1, x0:x1] = [230 if name == plane else 20 for plane in ("red", "green", "blue")]
    return image


def test_golden_letterbox_and_boxes(golden: dict[str, np.ndarray]) -> None:
    pixels, ratio = _Letterbox((640, 640))(golden["image"])
    np.testing.assert_array_equal(pixels, golden["det_input"][0])
    people = decode_people(golden["det_output"][0], ratio)
    np.testing.assert_array_equal(people[:, :4], golden["boxes"].astype(np.float32))
    assert (np.diff(people[:, 4]) <= 0).all()
    assert (people[:, 4] > 0.3).all()


def test_golden_crops_and_points(golden: dict[str, np.ndarray]) -> None:
    crops, centres, scales = zip(*(_Crop((288, 384))(golden["image"], box) for box in golden["boxes"]), strict=True)
    np.testing.assert_array_equal(np.stack(crops), golden["pose_inputs"].astype(np.float32))
    points = decode_points(golden["simcc_x"], golden["simcc_y"], np.stack(centres), np.stack(scales))
    people = from_wholebody(points)
    np.testing.assert_allclose(people[..., :2], golden["keypoints"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(people[..., 2], golden["scores"])


def test_decoding_leaves_its_input_alone(golden: dict[str, np.ndarray]) -> None:
    before = golden["det_output"].copy()
    first = decode_people(golden["det_output"][0], 4 / 3)
    np.testing.assert_array_equal(golden["det_output"], before)
    np.testing.assert_array_equal(decode_people(golden["det_output"][0], 4 / 3), first)


def test_the_smaller_maximum_is_the_score() -> None:
    x, y = np.zeros((1, 3, 576)), np.zeros((1, 3, 768))
    x[0, :, 100], y[0, :, 300] = [0.9, 0.4, 0.9], [0.5, 0.8, -0.1]
    y[0, 2] = -0.1
    (points,) = decode_points(x, y, np.array([[144.0, 192.0]]), np.array([[288.0, 384.0]]))
    np.testing.assert_allclose(points, [[50, 150, 0.5], [50, 150, 0.4], [-0.5, -0.5, -0.1]])


@pytest.mark.parametrize("name", ["one.onnx", "many.onnx"])
def test_people_are_found_and_other_classes_are_not(models: Path, name: str) -> None:
    detector = PersonDetector(models / name, "cpu", threads=1)
    frames = [
        picture(red=(100, 60, 180, 240), blue=(200, 10, 390, 290)),
        picture(),
        picture(480, 320, red=(10, 10, 60, 200), green=(100, 50, 300, 400)),
        picture(blue=(200, 10, 390, 290)),
        picture(red=(100, 60, 180, 240)),
    ]
    people = detector.detect(frames, batch=2)
    assert [len(rows) for rows in people] == [1, 0, 2, 0, 1]
    assert people[1].shape == (0, 5)
    assert people[1].dtype == np.float32
    np.testing.assert_allclose(people[0][0, :4], (100, 60, 180, 240), atol=1)
    np.testing.assert_allclose(people[2][:, :4], [(10, 10, 60, 200), (100, 50, 300, 400)], atol=1)
    assert people[2][:, 4].tolist() == pytest.approx([0.9, 0.8])
    for frame, rows in zip(frames, people, strict=True):
        np.testing.assert_array_equal(detector.detect([frame])[0], rows)
    assert detector.detect([]) == []
    assert detector.describe() == "CPU"


def test_the_threshold_holds(models: Path) -> None:
    frame = picture(red=(100, 60, 180, 240), green=(200, 10, 390, 290))
    assert len(PersonDetector(models / "one.onnx", "cpu", threads=1, threshold=0.85).detect([frame])[0]) == 1
    assert len(PersonDetector(models / "one.onnx", "cpu", threads=1, threshold=0.95).detect([frame])[0]) == 0


def test_doubles_are_suppressed() -> None:
    rows = np.zeros((8400, 85), np.float32)
    for cell, (cx, cy, side, score) in enumerate([(100, 100, 80, 0.9), (104, 100, 80, 0.8), (160, 100, 80, 0.7)]):
        rows[cell, :6] = cx / 8 - cell, cy / 8, *np.log([side / 8] * 2), score, 1.0
    people = decode_people(rows, 0.5)
    np.testing.assert_allclose(people[:, 4], [0.9, 0.7])
    np.testing.assert_allclose(people[0, :4], [120, 120, 280, 280], rtol=1e-5)


def test_graphs_that_suppress_doubles_themselves() -> None:
    out = np.array([[10, 20, 30, 40, 0.2], [10, 20, 30, 40, 0.5], [50, 60, 70, 80, 0.9]], np.float32)
    np.testing.assert_allclose(decode_people(out, 2.0), [[25, 30, 35, 40, 0.9], [5, 10, 15, 20, 0.5]])
    assert decode_people(out[:0], 2.0).shape == (0, 5)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_tiny_and_thin_frames(models: Path, size: tuple[int, int]) -> None:
    detector = PersonDetector(models / "one.onnx", "cpu", threads=1)
    assert detector.detect([np.zeros((*size, 3), np.uint8)])[0].shape == (0, 5)


@pytest.mark.parametrize("name", ["pose.onnx", "pose_one.onnx"])
def test_points_lie_where_the_crop_says(models: Path, name: str) -> None:
    estimator = PoseEstimator(models / name, "cpu", threads=1)
    boxes = [np.array([[100, 60, 180, 240, 0.9]]), np.zeros((0, 5)), np.array([[0, 0, 90, 90], [20, 5, 300, 290]])]
    people = estimator.estimate([picture()] * 3, boxes, batch=2)
    assert [rows.shape for rows in people] == [(1, 134, 3), (0, 134, 3), (2, 134, 3)]
    assert all(rows.dtype == np.float32 for rows in people)
    # 80 x 180 is narrower than 3:4, so the crop is 225 high and 168.75 wide around (140, 150).
    whole = onnx_samples.default_points() * (168.75 / 288) + (140 - 168.75 / 2, 150 - 112.5)
    expected = from_wholebody(np.concatenate([whole, np.full((133, 1), 0.8)], axis=1))
    np.testing.assert_allclose(people[0][0], expected, atol=1e-4)
    (alone,) = estimator.estimate([picture()], [boxes[2][1:]])
    np.testing.assert_array_equal(alone[0], people[2][1])
    assert estimator.estimate([], []) == []
    assert estimator.describe() == "CPU"


def test_points_that_were_not_seen_have_no_score(tmp_path: Path) -> None:
    estimator = PoseEstimator(onnx_samples.simcc(tmp_path / "p.onnx", peak=-0.1), "cpu", threads=1)
    (people,) = estimator.estimate([picture()], [np.array([[100, 60, 180, 240]])])
    assert not people[..., 2].any()


@pytest.mark.parametrize("box", [(5, 5, 5, 20), (9, 5, 2, 20), (np.nan, 5, 9, 20)])
def test_boxes_without_area_are_refused(models: Path, box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="has no area"):
        PoseEstimator(models / "pose.onnx", "cpu", threads=1).estimate([picture()], [np.array([box])])


def test_the_wrong_file_is_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelDamaged, match=r"pose\.onnx: found an output of shape .* expected a YOLOX"):
        PersonDetector(models / "pose.onnx", "cpu")
    with pytest.raises(ModelDamaged, match=r"one\.onnx: found outputs of shapes .* expected DWPose"):
        PoseEstimator(models / "one.onnx", "cpu")
    with pytest.raises(ModelDamaged, match="found an output of shape"):
        PersonDetector(onnx_samples.arcface(tmp_path / "a.onnx"), "cpu")
    with pytest.raises(ModelMissing, match="no such file"):
        PoseEstimator(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="device"):
        PersonDetector(models / "one.onnx", "tpu")


def test_nothing_is_printed(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    PersonDetector(models / "one.onnx", "cpu", threads=1).detect([picture()])
    PoseEstimator(models / "pose.onnx", "cpu", threads=1)
    assert capfd.readouterr() == ("", "")
