"""The shipped small networks: opened unchanged by insightface's and rtmlib's own classes, and by ours."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx as onnx_files
import pytest
from insightface.app import FaceAnalysis
from rtmlib import YOLOX, RTMPose

from stableanimator_cli import catalogue
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator
from stableanimator_cli.motion.keypoints import from_wholebody
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.records import ModelFolder
from tools.bench import puppet_figures as bench
from tools.figure_networks.data import LABELS, head_size, person_box

FOUR = range(60_000, 60_004)


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return catalogue.open_model("puppet")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Both libraries print while they open; insightface's alignment uses a deprecated function of scikit-image."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def test_insightface_detects_and_distinguishes_people(model: ModelFolder) -> None:
    vectors = []
    with quiet():
        app = FaceAnalysis(name=str(model.files["face"]), providers=["CPUExecutionProvider"])
        app.prepare(ctx_id=-1, det_size=(640, 640))
        for index in FOUR:
            frame = sample_scene("test", index, size=(256, 256)).reference()
            again = sample_scene("test", index, size=(256, 256), clip=1).reference()
            (face,), (other) = app.get(frame.image[..., ::-1]), app.get(again.image[..., ::-1])
            assert bench.overlap(face.bbox[None], frame.face_boxes)[0, 0] > 0.5
            assert np.linalg.norm(face.kps - frame.landmarks[0], axis=1).max() < 0.15 * np.ptp(frame.face_boxes[0])
            vectors += [face.normed_embedding, other[0].normed_embedding]
    cosine = np.stack(vectors) @ np.stack(vectors).T
    same = [cosine[2 * n, 2 * n + 1] for n in range(len(FOUR))]
    strangers = [cosine[i, j] for i in range(8) for j in range(8) if i // 2 != j // 2]
    assert min(same) > max(strangers)


@pytest.mark.parametrize("size", [(128, 128), (640, 640), (320, 480)])
def test_the_face_detector_accepts_any_size(model: ModelFolder, size: tuple[int, int]) -> None:
    opened = onnx.session(model.files["face"] / "scrfd_puppet.onnx", "cpu")
    outputs = onnx.run(opened, np.zeros((1, 3, size[1], size[0]), np.float32))
    cells = [2 * (size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32)]
    assert [out.shape for out in outputs] == [(n, width) for width in (1, 4, 10) for n in cells]
    assert max(out.max() for out in outputs[:3]) < 0.5


def test_rtmlib_finds_people_and_their_points(model: ModelFolder) -> None:
    with quiet():
        people = YOLOX(str(model.files["person_detector"]), model_input_size=(640, 640))
        points = RTMPose(str(model.files["pose_detector"]), model_input_size=(288, 384))
    for index in FOUR:
        frame = sample_scene("test", index, framing="whole", size=(192, 256)).reference()
        truth = frame.keypoints[0]
        boxes = people(frame.image)
        assert len(boxes) == 1
        assert bench.overlap(boxes, person_box(truth, (192, 256))[None])[0, 0] > 0.6
        xy, scores = points(frame.image, bboxes=boxes)
        guess = from_wholebody(np.concatenate([xy[0], scores[0][:, None]], axis=1))
        seen = truth[:18, 2] > 0
        error = np.linalg.norm(guess[:18, :2] - truth[:18, :2], axis=1)[seen]
        assert error.max() < 0.4 * head_size(truth)
        assert error.mean() < 0.1 * head_size(truth)


def test_no_person_is_found_on_a_backdrop(model: ModelFolder) -> None:
    backdrop = sample_scene("test", FOUR[0], size=(256, 256)).backdrop
    picture = backdrop.draw((256, 256), 0.0)
    assert PersonDetector(model.files["person_detector"], "cpu").detect([picture])[0].shape == (0, 5)
    assert FaceReader(model.files["face"], device="cpu").faces(picture) == ()


def test_invisible_points_score_low(model: ModelFolder) -> None:
    points = PoseEstimator(model.files["pose_detector"], "cpu")
    frame = sample_scene("test", FOUR[1], framing="half", size=(256, 256)).reference()
    truth = frame.keypoints[0]
    guess = points.estimate([frame.image], [person_box(truth, (256, 256))[None]])[0][0]
    assert (truth[[10, 13], 2] == 0).all()  # feet are below the picture
    assert guess[[10, 13], 2].max() < 0.3
    assert guess[[0, 2, 5, 14, 15], 2].min() > 0.5
    assert guess[:, 2].max() <= 1.0


def test_a_batch_equals_single_images(model: ModelFolder) -> None:
    people, points = (
        PersonDetector(model.files["person_detector"], "cpu"),
        PoseEstimator(model.files["pose_detector"], "cpu"),
    )
    frames = [sample_scene("test", index, size=(128, 128)).reference().image for index in FOUR[:3]]
    together = people.detect(frames)
    guesses = points.estimate(frames, together)
    for frame, boxes, guess in zip(frames, together, guesses, strict=True):
        (alone,) = people.detect([frame])
        np.testing.assert_allclose(boxes, alone, atol=1e-2)
        np.testing.assert_allclose(guess, points.estimate([frame], [boxes])[0], atol=0.3)


def test_the_judge_distinguishes_people_and_is_no_copy(model: ModelFolder) -> None:
    sessions = {
        name: onnx.session(path, "cpu")
        for name, path in (("judge", model.files["judge"]), ("own", model.files["face"] / "arcface_puppet.onnx"))
    }
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in sessions}
    for index in FOUR:
        for clip in (0, 1):
            frame = sample_scene("test", index, size=(256, 256), clip=clip).reference()
            for name, opened in sessions.items():
                vector = bench.embed(opened, frame.image, frame.landmarks[0])
                assert vector is not None
                assert vector.shape == (512,)
                vectors[name].append(vector / np.linalg.norm(vector))
    judge = np.stack(vectors["judge"])
    assert (judge[::2] * judge[1::2]).sum(axis=1).min() > (judge[::2] @ judge[1::2].T - 2 * np.eye(4)).max()
    between = (judge * np.stack(vectors["own"])).sum(axis=1)
    assert np.abs(between).max() < 0.3


def test_the_video_network_gives_maps_and_features(model: ModelFolder) -> None:
    opened = onnx.session(model.files["video"], "cpu")
    assert [out.name for out in opened.get_outputs()] == ["layer1", "layer2", "layer3", "features", *LABELS]
    clip = np.random.default_rng(0).uniform(-1, 1, (1, 3, 5, 64, 96)).astype(np.float32)
    shapes = [out.shape for out in onnx.run(opened, clip)]
    assert shapes[:4] == [(5, 16, 64, 96), (5, 32, 32, 48), (5, 64, 16, 24), (1, 128)]
    assert shapes[4:] == [(1, len(kinds)) for kinds in LABELS.values()]
    # The maps of a frame are its own: they are there to compare single pictures.
    alone = onnx.run(opened, np.ascontiguousarray(clip[:, :, 2:3]))
    for n in range(3):
        np.testing.assert_allclose(onnx.run(opened, clip)[n][2], alone[n][0], atol=1e-4)


def test_the_files_are_those_of_the_card_and_small(model: ModelFolder) -> None:
    entry = catalogue.entry("puppet")
    assert {file.path for file in entry.files} >= {
        "face/arcface_puppet.onnx", "face/scrfd_puppet.onnx", "judge.onnx", "person_detector.onnx",
        "pose_detector.onnx", "video.onnx",
    }  # fmt: skip
    networks = 0
    for file in entry.files:
        data = (model.path / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256), file.path
        networks += len(data) * file.path.endswith(".onnx")
    assert networks <= 10e6


def test_files_hold_no_paths_and_no_external_data(model: ModelFolder) -> None:
    for path in Path(model.path).rglob("*.onnx"):
        graph = onnx_files.load(path, load_external_data=False)
        assert all(tensor.data_location == onnx_files.TensorProto.DEFAULT for tensor in graph.graph.initializer)
        assert "drawn figures" in graph.doc_string
        assert b"site-packages" not in path.read_bytes()
