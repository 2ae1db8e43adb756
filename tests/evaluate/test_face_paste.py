"""The pasted face: where it lands, what it leaves alone, what it does to identity, and that it is not made twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from insightface.utils.face_align import arcface_dst

from stableanimator_cli import catalogue
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.evaluate.face_paste import paste, paste_faces
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.metrics.identity import cosines
from stableanimator_cli.progress import NullReporter
from tests.evaluate.samples import drawn, write

SIZE = (128, 128)
TEMPLATE = arcface_dst.astype(np.float64)


@pytest.fixture(scope="module")
def reader() -> FaceReader:
    return FaceReader(catalogue.open_model("puppet").files["face"], "bgr", "cpu")


def test_a_face_on_itself_changes_nothing() -> None:
    frame = drawn(0, frames=1, size=SIZE)[0]
    again = paste(frame, TEMPLATE, frame, TEMPLATE)
    assert again is not None
    assert np.abs(again.astype(int) - frame).max() <= 1


def test_it_lands_by_the_landmarks_at_another_size_and_turned() -> None:
    rng = np.random.default_rng(0)
    picture = np.repeat(np.repeat(rng.integers(0, 256, (14, 14, 3), np.uint8), 8, 0), 8, 1)  # blocks of 8 pixels
    turn = 1.5 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    there = TEMPLATE @ turn.T + (40.0, 5.0)
    frame = np.full((200, 220, 3), 99, np.uint8)
    out = paste(frame, there, picture, TEMPLATE)
    assert out is not None
    for block in ((7, 7), (6, 8), (8, 6)):  # middles of blocks well inside the oval
        x, y = np.rint((np.array(block) * 8 + 3.5) @ turn.T + (40.0, 5.0)).astype(int)
        assert np.abs(out[y, x].astype(int) - picture[block[1] * 8 + 4, block[0] * 8 + 4]).max() <= 2
    assert (out[:30] == 99).all()
    assert (out[190:] == 99).all()
    assert (out[:, :30] == 99).all()


def test_beyond_the_pictures_edge_there_is_the_frame() -> None:
    frame = np.full((112, 112, 3), 200, np.uint8)
    cut = np.zeros((112, 56, 3), np.uint8)  # the left half of a black face
    out = paste(frame, TEMPLATE, cut, TEMPLATE)
    assert out is not None
    assert (out[68, 40] == 0).all()
    assert (out[68, 58:] == 200).all()


@pytest.mark.parametrize("points", [np.full((5, 2), 7.0), np.full((5, 2), np.nan)])
def test_landmarks_that_span_nothing_give_nothing(points: np.ndarray) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    assert paste(frame, points, frame, TEMPLATE) is None
    assert paste(frame, TEMPLATE, frame, points) is None


def test_another_figures_face_becomes_that_of_the_reference(reader: FaceReader, tmp_path: Path) -> None:
    picture = drawn(1, frames=1, size=SIZE)[0]
    frames = [*drawn(0, frames=2, size=SIZE), np.full((128, 128, 3), 128, np.uint8)]
    predicted = write(tmp_path / "made" / "one.mp4", frames)
    record = {"stableanimator-cli": "0", "output": {"frames": 3}, "windows": ["window 1: 0-2"]}
    predicted.with_suffix(".json").write_text(json.dumps(record))
    write_image(tmp_path / "one.png", picture)
    pair = Pair(name="one", predicted=predicted, target=None, reference=tmp_path / "one.png", poses=None)
    (done,) = paste_faces([pair], tmp_path / "pasted", reader, NullReporter())
    assert done.predicted == tmp_path / "pasted" / "one.mp4"
    out = [frame for _, frame in open_clip(done.predicted).frames()]
    assert (out[2] == frames[2]).all()  # nobody is there
    known = reader.faces(picture)[0].embedding
    assert known is not None
    before, after = (
        cosines(np.stack([reader.faces(frame)[0].embedding for frame in shown[:2]]), known).mean()
        for shown in (frames, out)
    )
    assert after > before + 0.3
    told = json.loads(done.predicted.with_suffix(".json").read_text())
    assert told["face_paste"] == {"of": "one.mp4", "frames": 3, "pasted": 2}
    assert told["windows"] == record["windows"]


def test_what_is_pasted_is_kept_and_a_new_video_is_not(reader: FaceReader, tmp_path: Path) -> None:
    write_image(tmp_path / "one.png", drawn(1, frames=1)[0])
    predicted = write(tmp_path / "one.mp4", drawn(0, frames=2))
    pair = Pair(name="one", predicted=predicted, target=None, reference=tmp_path / "one.png", poses=None)

    def made() -> int:
        (done,) = paste_faces([pair], tmp_path / "pasted", reader, NullReporter())
        return done.predicted.stat().st_mtime_ns

    first = made()
    assert made() == first
    write(predicted, drawn(2, frames=2))
    assert made() != first


def test_the_record_beside_is_that_of_the_video_that_was_pasted(reader: FaceReader, tmp_path: Path) -> None:
    """Borders and frames of the motion are read from it: those of an earlier video are wrong."""
    write_image(tmp_path / "one.png", drawn(1, frames=1)[0])
    predicted = write(tmp_path / "one.mp4", drawn(0, frames=2))
    pair = Pair(name="one", predicted=predicted, target=None, reference=tmp_path / "one.png", poses=None)
    beside = tmp_path / "pasted" / "one.json"
    for windows in (["window 1: 0-1"], ["window 1: 0", "window 2: 1"]):
        record = {"stableanimator-cli": "0", "output": {"frames": 2}, "windows": windows}
        predicted.with_suffix(".json").write_text(json.dumps(record))
        paste_faces([pair], tmp_path / "pasted", reader, NullReporter())
        assert json.loads(beside.read_text())["windows"] == windows
    predicted.with_suffix(".json").unlink()
    paste_faces([pair], tmp_path / "pasted", reader, NullReporter())
    assert not beside.exists()


def test_a_reference_without_a_face_leaves_the_video_as_it_is(reader: FaceReader, tmp_path: Path) -> None:
    class Heard(NullReporter):
        said: list[str] = []  # noqa: RUF012

        def warning(self, text: str) -> None:
            self.said.append(text)

    frames = drawn(0, frames=2)
    write_image(tmp_path / "one.png", np.full((64, 64, 3), 90, np.uint8))
    predicted = write(tmp_path / "one.mp4", frames)
    pair = Pair(name="one", predicted=predicted, target=None, reference=tmp_path / "one.png", poses=None)
    reporter = Heard()
    (done,) = paste_faces([pair], tmp_path / "pasted", reader, reporter)
    assert reporter.said == ["one: no face in its reference image, so that none is pasted"]
    for (_, out), frame in zip(open_clip(done.predicted).frames(), frames, strict=True):
        assert (out == frame).all()
