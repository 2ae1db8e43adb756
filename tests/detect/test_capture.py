"""A video to a motion: batches, order, tracking and faces, and what happens where something is missing."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.clip_folder import FaceTable, load_faces, save_faces
from stableanimator_cli.detect.capture import (
    BATCH,
    CaptureOptions,
    Detectors,
    _between,
    batch_of,
    extract_motion,
    is_frontal,
    pose_of,
)
from stableanimator_cli.detect.read_ahead import read_ahead
from stableanimator_cli.errors import BadInput, ModelMissing, NoPerson
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.keypoints import from_wholebody
from stableanimator_cli.motion.track import Numbers
from stableanimator_cli.records import Clip, Face
from tests import onnx_samples
from tests.preprocess import drawn


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Detectors:
    return Detectors.open(open_model(drawn.write_model(tmp_path_factory.mktemp("model") / "model")), "cpu", threads=1)


def clip_of(boxes: list[drawn.Box | None], path: str = "walk.mp4") -> Clip:
    """A clip without a file: exact pixels, eight frames a second."""

    def frames() -> Iterator[tuple[Fraction | None, np.ndarray]]:
        for index, box in enumerate(boxes):
            yield Fraction(index, 8), drawn.frame(box)

    return Clip(path=Path(path), size=drawn.SIZE, fps=Fraction(8), count=len(boxes), audio=False, frames=frames)


def expected_points(box: drawn.Box) -> np.ndarray:
    """Where the drawn network sees its 134 points in a box: rtmlib widens it by a quarter and to the crop's aspect."""
    x0, y0, x1, y1 = box
    width, height = 1.25 * (x1 - x0), 1.25 * (y1 - y0)
    width, height = max(width, height * 288 / 384), max(height, width * 384 / 288)
    corner = np.array([(x0 + x1) / 2 - width / 2, (y0 + y1) / 2 - height / 2])
    whole = onnx_samples.default_points() / (288, 384) * (width, height) + corner
    return from_wholebody(np.concatenate([whole, np.full((133, 1), 0.8)], axis=1))


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1, 3 * BATCH - 1])
def test_every_frame_gets_its_own_points_whatever_the_batches(detectors, count):
    boxes = drawn.walk(count)
    seen = extract_motion(clip_of(boxes), detectors)
    assert len(seen.motion) == count
    assert seen.motion.present.all()
    assert seen.motion.times == tuple(Fraction(index, 8) for index in range(count))
    truth = np.stack([expected_points(box) for box in boxes if box is not None])
    # the detector sees the rectangle to a pixel of its letterbox, which is half a pixel of these frames
    assert np.abs(seen.motion.keypoints[:, 0, :, :2] - truth[..., :2]).max() < 1.5
    assert seen.found.tolist() == [1] * count
    found = np.stack([seen.motion.face_boxes[t, 0] for t in range(count)])
    assert np.abs(found - np.array(boxes, float)).max() < 1.5
    assert seen.faces.frame.tolist() == list(range(count))
    assert (seen.faces.person == 0).all()


def test_a_gap_is_closed_a_long_one_is_told(detectors):
    seen = extract_motion(clip_of(drawn.walk(24, missing=(5, 6))), detectors)
    assert seen.motion.present.all()
    assert seen.repairs.frames == 2
    assert seen.found.sum() == 22
    open_gap = extract_motion(clip_of(drawn.walk(24, missing=range(5, 18))), detectors, CaptureOptions(gap=4))
    assert np.flatnonzero(~open_gap.motion.present.any(axis=1)).tolist() == list(range(5, 18))
    assert [(gap.first, gap.stop, gap.filled) for gap in open_gap.repairs.gaps] == [(5, 18, False)]


def test_nobody_names_file_and_frames(detectors):
    with pytest.raises(NoPerson, match=r"walk\.mp4: no person found in any of 3 frames"):
        extract_motion(clip_of([None] * 3), detectors)
    with pytest.raises(NoPerson, match=r"walk\.mp4: person 4: found no person with that number"):
        extract_motion(clip_of(drawn.walk(3)), detectors, CaptureOptions(person=4))


def test_times_that_no_motion_file_can_hold_are_refused_with_the_video_and_the_frame(detectors):
    clip = clip_of(drawn.walk(3))
    paused = dataclasses.replace(
        clip, frames=lambda: ((time + 90 * (time >= Fraction(2, 8)), pixels) for time, pixels in clip.frames())
    )
    with pytest.raises(BadInput, match=r"walk\.mp4, frame 2: found the time 90\.25 s, 90\.125 s after") as caught:
        extract_motion(paused, detectors)
    assert caught.value.hint == "cut the pause out of the video, or use the frames 0:2"


def test_detection_of_some_frames_finds_the_same_person(detectors):
    boxes = drawn.walk(40)
    each, some = (extract_motion(clip_of(boxes), detectors, CaptureOptions(every=k)) for k in (1, 4))
    away = np.abs(each.motion.keypoints - some.motion.keypoints)[..., :2]
    assert away.max() < 2  # steady steps: what lies between two detections is where it is thought to be
    calls = []
    counting = dataclasses.replace(detectors, people=_Counting(detectors.people, calls))
    extract_motion(clip_of(boxes), counting, CaptureOptions(every=4))
    assert sum(calls) == 5 + 5 + 3  # 0 4 8 12 and the last of each batch of 16; 0 4 and the last of 8


@pytest.mark.parametrize(("first", "read"), [((10, 30, 50, 94), 32), ((120, 0, 150, 20), 48)])
def test_detection_ends_behind_the_frames_that_matter(detectors, first, read):
    """Once nobody can get another number: not while somebody was seen in a single frame before."""
    calls: list[int] = []
    counting = dataclasses.replace(detectors, people=_Counting(detectors.people, calls))
    options = CaptureOptions(person=Numbers((0,)), frames=(18, 20))
    some = extract_motion(clip_of([first, *drawn.walk(47)]), counting, options)
    assert sum(calls) == read
    full = extract_motion(clip_of([first, *drawn.walk(47)]), detectors, CaptureOptions(person=Numbers((0,))))
    assert some.motion.track.tolist() == full.motion.track.tolist() == [0]
    np.testing.assert_array_equal(some.motion.keypoints[:20], full.motion.keypoints[:20])


class _Counting:
    def __init__(self, inner, calls: list[int]) -> None:
        self.inner, self.calls = inner, calls

    def detect(self, frames):
        self.calls.append(len(frames))
        return self.inner.detect(frames)


def test_boxes_between_two_detections():
    a = np.array([[0, 0, 10, 10, 0.9], [50, 0, 60, 10, 0.8]], np.float32)
    b = np.array([[4, 0, 14, 10, 0.7]], np.float32)
    np.testing.assert_allclose(_between(a, b, 0.25), [[1, 0, 11, 10, 0.85], [50, 0, 60, 10, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(_between(a, b, 0.75), [[3, 0, 13, 10, 0.75]], rtol=1e-6)
    assert _between(b[:0], b[:0], 0.5).shape == (0, 5)
    assert [batch_of(k) for k in (1, 3, 4, 16, 40)] == [16, 15, 16, 16, 40]


def test_two_runs_and_other_threads_give_equal_bits(detectors):
    boxes = drawn.walk(20, missing=(3,))
    other = Detectors.open(detectors.model, "cpu", threads=2)
    first, second, third = (extract_motion(clip_of(boxes), which) for which in (detectors, detectors, other))
    for run in (second, third):
        np.testing.assert_array_equal(first.motion.keypoints, run.motion.keypoints)
        np.testing.assert_array_equal(first.faces.embeddings, run.faces.embeddings)


def test_decoding_runs_ahead_but_not_far():
    decoded: list[int] = []

    def frames() -> Iterator[tuple[Fraction | None, np.ndarray]]:
        for index in range(100):
            decoded.append(index)
            yield None, np.zeros((4, 4, 3), np.uint8)

    clip = dataclasses.replace(clip_of([]), frames=frames)
    batches = read_ahead(clip, 4)
    assert len(next(batches)[0]) == 4
    time.sleep(0.3)
    assert 4 < len(decoded) <= 4 * 5  # one taken, two waiting, one made, and one on its way
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_a_broken_video_says_its_frame_and_leaves_no_thread(detectors, tmp_path):
    path = drawn.write_video(tmp_path / "cut.mp4", drawn.walk(60))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(BadInput, match=r"cut\.mp4"):
        extract_motion(open_clip(path), detectors)
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_a_clip_that_does_not_open_at_all_is_told_to_who_waits():
    def frames() -> Iterator[tuple[Fraction | None, np.ndarray]]:
        raise BadInput("a.jpg", "a damaged picture", "a whole picture")

    with pytest.raises(BadInput, match=r"a\.jpg"):
        list(read_ahead(dataclasses.replace(clip_of([]), frames=frames), 4))
    assert not [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_a_watcher_sees_each_frame_once_in_order(detectors):
    frames: list[np.ndarray] = []
    boxes: list[np.ndarray] = []

    class Watcher:
        def add_batch(self, batch, people) -> None:
            frames.extend(batch)
            boxes.extend(people)

    walk = drawn.walk(BATCH + 3, missing=(2,))
    extract_motion(clip_of(walk), detectors, watchers=[Watcher()])
    for frame, box in zip(frames, walk, strict=True):
        np.testing.assert_array_equal(frame, drawn.frame(box))
    assert [len(people) for people in boxes] == [int(box is not None) for box in walk]


def test_a_model_without_detectors_says_what_it_lacks(tmp_path):
    folder = drawn.write_model(tmp_path / "model")
    (folder / "pose.onnx").unlink()
    with pytest.raises(ModelMissing, match="no pose_detector"):
        Detectors.open(open_model(folder))


def test_the_pose_of_a_picture(detectors):
    points = pose_of(drawn.frame((40, 20, 80, 84)), detectors)
    assert points is not None
    assert np.abs(points[:, :2] - expected_points((40, 20, 80, 84))[:, :2]).max() < 1.5
    assert pose_of(drawn.frame(None), detectors) is None


def test_faces_come_back_from_disk_and_damage_is_named(tmp_path):
    face = Face(box=np.arange(4, dtype=np.float32), landmarks=np.ones((5, 2), np.float32), score=0.5, embedding=None)
    known = dataclasses.replace(face, embedding=np.arange(512, dtype=np.float32))
    table = FaceTable.of([(0, -1, face), (3, 1, known)], "rgb")
    save_faces(tmp_path / "faces.npz", table)
    back = load_faces(tmp_path / "faces.npz")
    assert (back.channel_order, back.frame.tolist(), back.person.tolist()) == ("rgb", [0, 3], [-1, 1])
    np.testing.assert_array_equal(back.embeddings, table.embeddings)
    assert np.isnan(back.embeddings[0]).all()
    assert back.at(3).tolist() == [1]
    before = (tmp_path / "faces.npz").read_bytes()
    save_faces(tmp_path / "faces.npz", table)
    assert (tmp_path / "faces.npz").read_bytes() == before
    np.savez(tmp_path / "faces.npz", version=np.int64(9))
    with pytest.raises(BadInput, match="version 9"):
        load_faces(tmp_path / "faces.npz")


@pytest.mark.parametrize(
    ("eyes", "nose", "frontal"),
    [((30, 70), 50, True), ((30, 70), 32, False), ((30, 70), 75, False), ((45, 60), 52, False), ((70, 30), 50, False)],
)
def test_only_a_face_seen_from_the_front_tells_who_it_is(eyes, nose, frontal):
    landmarks = np.array([[eyes[0], 40], [eyes[1], 40], [nose, 60], [40, 80], [60, 80]], np.float32)
    box = np.array([0, 0, 100, 120], np.float32)
    assert is_frontal(Face(box=box, landmarks=landmarks, score=1.0, embedding=None)) is frontal
