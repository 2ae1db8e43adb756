"""Faces: found, clipped, ordered, recognised in the colour order asked for; folders that are not what they must be."""

from __future__ import annotations

import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
from insightface.app import FaceAnalysis

from stableanimator_cli.detect.face import FaceReader, align, load_embedding, model_folder
from stableanimator_cli.errors import BadInput, ConfigError, ModelDamaged, ModelMissing
from stableanimator_cli.records import ChannelOrder
from tests import onnx_samples
from tests.onnx_samples import GREEN, RED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_samples.faces(tmp_path_factory.mktemp("faces"), planes=(RED, GREEN), dynamic=True)


@pytest.fixture(scope="module")
def reader(folder: Path) -> FaceReader:
    return FaceReader(folder, "bgr", "cpu", threads=1)


def picture(h: int = 300, w: int = 400, **rectangles: tuple[int, int, int, int]) -> np.ndarray:
    """Dark grey with textured rectangles x0, y0, x1, y1 of the colours named."""
    image = np.full((h, w, 3), 40, np.uint8)
    noise = np.random.default_rng(0).integers(0, 30, (h, w), np.uint8)
    for name, (x0, y0, x1, y1) in rectangles.items():
        plane = ("red", "green", "blue").index(name)
        image[y0:y1, x0:x1] = 20 + noise[y0:y1, x0:x1, None]
        image[y0:y1, x0:x1, plane] = 220 + noise[y0:y1, x0:x1]
    return image


def test_a_face_is_found_where_it_is(reader: FaceReader) -> None:
    (face,) = reader.faces(picture(red=(100, 60, 180, 140)))
    np.testing.assert_allclose(face.box, (100, 60, 180, 140), atol=1)
    np.testing.assert_allclose(face.landmarks, onnx_samples.FACE_POINTS * 80 / 112 + np.array((100, 60)), atol=1)
    assert face.score == pytest.approx(0.9)
    assert face.embedding is not None
    assert face.box.dtype == face.landmarks.dtype == face.embedding.dtype == np.float32
    assert face.embedding.shape == (512,)
    assert np.linalg.norm(face.embedding) > 2, "raw, not normalised"


def test_largest_first_and_none_at_all(reader: FaceReader) -> None:
    image = picture(red=(10, 10, 50, 50), green=(200, 100, 330, 230))
    faces = reader.faces(image)
    assert [round(face.score, 1) for face in faces] == [0.8, 0.9]
    assert faces[0].area > faces[1].area
    assert reader.faces(picture()) == ()
    assert [face.embedding for face in reader.boxes(image)] == [None, None]
    np.testing.assert_array_equal(reader.boxes(image)[0].box, faces[0].box)


def test_an_embedding_does_not_depend_on_other_faces(reader: FaceReader) -> None:
    alone = reader.faces(picture(red=(10, 10, 74, 74)))[0]
    among = next(f for f in reader.faces(picture(red=(10, 10, 74, 74), green=(200, 100, 330, 230))) if f.score > 0.85)
    np.testing.assert_array_equal(alone.embedding, among.embedding)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_it_is_what_insightface_answers(folder: Path, order: ChannelOrder) -> None:
    image = picture(red=(100, 60, 185, 140), blue=(200, 100, 330, 230))
    reader = FaceReader(folder, order, "cpu", threads=1)
    theirs = FaceAnalysis(str(folder), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_thresh=0.5, det_size=(640, 640))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        (expected,) = theirs.get(image[..., ::-1] if order == "bgr" else image)
    (face,) = reader.faces(image)
    assert face.embedding is not None
    np.testing.assert_allclose(face.box, expected.bbox, atol=1e-4)
    np.testing.assert_allclose(face.landmarks, expected.kps, atol=1e-4)
    np.testing.assert_allclose(face.embedding, expected.embedding, atol=1e-4)


def test_the_swapped_order_sees_blue_as_red(folder: Path, reader: FaceReader) -> None:
    red, blue = picture(red=(100, 60, 180, 140)), picture(blue=(100, 60, 180, 140))
    swapped = FaceReader(folder, "rgb", "cpu", threads=1)
    assert len(reader.faces(red)) == len(swapped.faces(blue)) == 1
    assert reader.faces(blue) == swapped.faces(red) == ()
    np.testing.assert_array_equal(reader.faces(red)[0].embedding, swapped.faces(blue)[0].embedding)


def test_boxes_stay_in_the_picture(reader: FaceReader) -> None:
    # Scaling to the detector rounds, so a face at the edge would stick out by a fraction of a pixel.
    (face,) = reader.faces(picture(301, 403, red=(0, 0, 403, 301)))
    assert face.box.tolist() == [0, 0, 403, 301]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 2000), (2000, 1), (7, 5000)])
def test_tiny_and_thin_pictures(reader: FaceReader, size: tuple[int, int]) -> None:
    assert reader.faces(np.zeros((*size, 3), np.uint8)) == ()
    red = np.zeros((*size, 3), np.uint8)
    red[..., 0] = 255
    for face in reader.faces(red):
        assert 0 <= face.box[0] < face.box[2] <= size[1]
        assert 0 <= face.box[1] < face.box[3] <= size[0]


def test_views_and_wrong_arrays(reader: FaceReader) -> None:
    image = picture(red=(100, 60, 180, 140))
    flipped = reader.faces(image[:, ::-1])
    np.testing.assert_allclose(flipped[0].box, (220, 60, 300, 140), atol=1)
    for wrong in (image[..., 0], image.astype(np.float32), image[:0], np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \[h,w,3\]"):
            reader.faces(wrong)


def test_threads_agree(reader: FaceReader) -> None:
    image = picture(red=(100, 60, 180, 140), green=(200, 100, 330, 230))
    expected = reader.faces(image)
    with ThreadPoolExecutor(4) as pool:
        for faces in pool.map(reader.faces, [image] * 8):
            for face, other in zip(faces, expected, strict=True):
                np.testing.assert_array_equal(face.embedding, other.embedding)


def test_alignment_of_points_that_span_nothing() -> None:
    pixels = picture()
    assert align(pixels, np.full((5, 2), 7.0)) is None
    assert align(pixels, np.full((5, 2), np.nan)) is None


def test_alignment_puts_the_eyes_on_the_template() -> None:
    turn = cv2.getRotationMatrix2D((200, 150), 30, 1.0)
    upright = onnx_samples.FACE_POINTS + np.array((140, 90))
    landmarks = upright @ turn[:, :2].T + turn[:, 2]
    image = np.zeros((300, 400, 3), np.uint8)
    for x, y in landmarks:
        cv2.circle(image, (round(x), round(y)), 2, (255, 255, 255), -1)
    aligned = align(image, landmarks)
    assert aligned is not None
    for x, y in onnx_samples.FACE_POINTS:
        assert aligned[round(y), round(x)].min() > 150


def test_a_doubly_nested_folder_is_found(folder: Path, tmp_path: Path, reader: FaceReader) -> None:
    shutil.copytree(folder, tmp_path / "antelopev2" / "antelopev2")
    assert model_folder(tmp_path / "antelopev2") == (tmp_path / "antelopev2" / "antelopev2").resolve()
    image = picture(red=(100, 60, 180, 140))
    nested = FaceReader(tmp_path / "antelopev2", "bgr", "cpu", threads=1)
    np.testing.assert_array_equal(nested.faces(image)[0].embedding, reader.faces(image)[0].embedding)


def test_folders_without_models(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="found nothing, expected a folder"):
        FaceReader(tmp_path / "none")
    with pytest.raises(ModelMissing, match="found no ONNX file"):
        FaceReader(tmp_path)
    for name in ("a", "b"):
        onnx_samples.scrfd(tmp_path / name / "scrfd.onnx")
    with pytest.raises(ModelMissing, match="found 2 folders"):
        FaceReader(tmp_path)
    with pytest.raises(ModelMissing, match="found a file"):
        FaceReader(tmp_path / "a" / "scrfd.onnx")


def test_folders_that_break_the_contract(tmp_path: Path) -> None:
    onnx_samples.arcface(tmp_path / "w.onnx")
    with pytest.raises(ModelDamaged, match=r"found w\.onnx, expected an SCRFD"):
        FaceReader(tmp_path, device="cpu")
    (tmp_path / "w.onnx").unlink()
    onnx_samples.scrfd(tmp_path / "scrfd.onnx")
    with pytest.raises(ModelDamaged, match="expected an ArcFace"):
        FaceReader(tmp_path, device="cpu")
    onnx_samples.arcface(tmp_path / "w.onnx", width=128)
    with pytest.raises(ModelDamaged, match="the one found gives 128"):
        FaceReader(tmp_path, device="cpu")
    onnx_samples.scrfd(tmp_path / "scrfd.onnx", landmarks=False)
    with pytest.raises(ModelDamaged, match="five landmarks"):
        FaceReader(tmp_path, device="cpu")
    (tmp_path / "scrfd.onnx").write_bytes(b"\x08\x08not a model")
    with pytest.raises(ModelDamaged, match="does not open"):
        FaceReader(tmp_path, device="cpu")
    (tmp_path / "scrfd.onnx").write_bytes(b"")
    with pytest.raises(ModelDamaged, match=r"scrfd\.onnx: found nothing in it"):
        FaceReader(tmp_path, device="cpu")


def test_unknown_channel_orders_and_devices(folder: Path) -> None:
    with pytest.raises(ConfigError, match="face_channel_order"):
        FaceReader(folder, cast(ChannelOrder, "RGB"))
    with pytest.raises(ValueError, match="device"):
        FaceReader(folder, device="gpu")


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reader = FaceReader(folder, "bgr", "cpu", threads=1)
    reader.faces(picture(red=(100, 60, 180, 140)))
    assert capfd.readouterr() == ("", "")
    assert reader.describe() == "CPU"


@pytest.mark.parametrize("shape", [(512,), (1, 512)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embeddings_are_read(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    vector = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    np.save(tmp_path / "e.npy", vector)
    read = load_embedding(tmp_path / "e.npy")
    assert read.shape == (512,)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, vector.reshape(512).astype(np.float32))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.ones(128, np.float32), r"shape \(128,\)"),
        (np.ones((512, 1), np.float32), r"shape \(512, 1\)"),
        (np.ones(512, np.int64), "type int64"),
        (np.zeros(512, np.float32), "zeros only"),
        (np.full(512, np.nan, np.float32), "512 numbers that are not finite"),
        (np.full(512, 1e300), "not finite"),
        (np.array([{}] * 512), "an array of type"),
    ],
)
def test_embeddings_that_are_none(tmp_path: Path, value: np.ndarray, says: str) -> None:
    np.save(tmp_path / "e.npy", value)
    with pytest.raises(BadInput, match=says):
        load_embedding(tmp_path / "e.npy")


def test_files_that_are_no_embedding(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_embedding(tmp_path / "none.npy")
    with pytest.raises(BadInput, match="a folder"):
        load_embedding(tmp_path)
    for content, says in ((b"", "empty"), (b"hello", "no NumPy array"), (b"\x93NUMPY\x01\x00", "version 1")):
        (tmp_path / "e.npy").write_bytes(content)
        with pytest.raises(BadInput, match=says):
            load_embedding(tmp_path / "e.npy")
    np.savez(tmp_path / "e.npz", a=np.ones(512))
    with pytest.raises(BadInput, match="an archive"):
        load_embedding(tmp_path / "e.npz")
    whole = np.ones(512, np.float32)
    np.save(tmp_path / "cut.npy", whole)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-9])
    with pytest.raises(BadInput, match="needs 2048 bytes and has 2039"):
        load_embedding(tmp_path / "cut.npy")
