"""Identity of several people: each face against its own person's, read by the recognisers from drawn portraits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import BadInput, CheckFailed, ConfigError
from stableanimator_cli.evaluate import identity_check
from stableanimator_cli.evaluate.cases import find_cases
from stableanimator_cli.evaluate.people import PersonScore, people_of
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import VideoWriter, write_image
from stableanimator_cli.motion.left_to_right import people_left_to_right
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.puppets.scene import Scene, sample_scene

SIZE, FRAMES, FPS = (256, 256), 4, Fraction(8)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return sample_scene("test", 156116, clip=189, people=2, framing="portrait", size=SIZE, frames=FRAMES, fps=FPS)


def write_video(path: Path, images: list[np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, SIZE, FPS, lossless=True) as video:
        for image in images:
            video.write(np.ascontiguousarray(image))
    return path


@pytest.fixture
def folder(tmp_path: Path, scene: Scene) -> Path:
    """The true video, the reference, and the motion of both people."""
    write_video(tmp_path / "out.mp4", [frame.image for frame in scene.clip()])
    write_image(tmp_path / "reference.png", scene.reference((512, 512)).image)
    save_motion(tmp_path / "poses.npz", scene.motion())
    return tmp_path


def scored(folder: Path, **flags: Any) -> Scores:
    given = {
        "inputs": [folder / "out.mp4"], "output": folder / "scores", "model": "puppet",
        "reference_picture": folder / "reference.png", "poses": folder / "poses.npz", **flags,
    }  # fmt: skip
    result = run(flags=given, animate=lambda flags, settings: pytest.fail("nothing is animated here"))
    assert isinstance(result, Scores)
    return result


def only(scores: Scores) -> VideoScore:
    (video,) = scores.videos
    return video


def write_record(folder: Path, people: Any) -> None:
    frames = list(range(FRAMES))
    record = {
        "stableanimator-cli": "0", "output": {"frames": FRAMES}, "motion": {"frames": frames, "times": None},
        "people": people,
    }  # fmt: skip
    (folder / "out.json").write_text(json.dumps(record))


def test_each_person_is_compared_with_their_own_face(folder: Path) -> None:
    scores = scored(folder)
    video = only(scores)
    assert [person.number for person in video.people] == [0, 1]
    for metric in ("csim_ref", "csim_ref_judge"):
        each = [person.values[metric] for person in video.people]
        assert min(each) > 0.6
        assert video.values[metric] == pytest.approx(np.mean(each))
    assert video.values["face_rate"] > 0.8
    assert "keypoint_error" not in video.values  # the largest of a frame may be the one or the other
    assert any("only the largest" in note for note in video.notes)
    assert len(video.curves["csim_ref_person_1"]) == FRAMES
    stored = json.loads((folder / "scores" / "scores.json").read_text())["videos"][0]
    assert [row["person"] for row in stored["people"]] == [0, 1]
    assert stored["people"][1]["values"]["csim_ref"] == pytest.approx(video.people[1].values["csim_ref"])
    title, columns, rows = scores.tables[0]
    assert (title, columns[0]) == ("videos", "video")
    assert [row[0] for row in rows] == ["out", "out, person 0", "out, person 1"]


def test_exchanged_faces_are_not_those_of_the_people(folder: Path) -> None:
    """A record that gives each person the other's face, as after ``--pair 0:1,1:0``."""
    right = only(scored(folder))
    write_record(folder, [{"person": 0, "image": "r", "face": 1}, {"person": 1, "image": "r", "face": 0}])
    wrong = only(scored(folder))
    for person in range(2):
        assert wrong.people[person].values["csim_ref"] < right.people[person].values["csim_ref"] - 0.3


def test_a_face_of_another_image_is_read_from_it(folder: Path, scene: Scene) -> None:
    write_image(folder / "other.png", scene.portrait((256, 256), person=1).image)
    people = [{"person": 0, "image": "r", "face": 0}, {"person": 1, "image": str(folder / "other.png"), "face": None}]
    write_record(folder, people)
    video = only(scored(folder))
    assert len(video.people) == 2
    assert video.people[1].values["csim_ref"] > 0.5


def test_an_image_of_a_face_that_is_not_the_runs_is_refused(folder: Path, scene: Scene) -> None:
    other = folder / "other.png"
    people = [{"person": 0, "image": "r", "face": 0}, {"person": 1, "image": str(other), "face": None}]
    write_record(folder, people)
    words = "expected the image of the face of person 1, as in the run record"
    with pytest.raises(BadInput, match=f"other.png: found no such file, {words}"):
        scored(folder)
    write_image(other, scene.portrait((256, 256), person=1).image)
    record = json.loads((folder / "out.json").read_text())
    record["inputs"] = {"face_of_1": {"path": str(other), "sha256": sha256_of(other)}}
    (folder / "out.json").write_text(json.dumps(record))
    assert len(only(scored(folder)).people) == 2
    write_image(other, scene.portrait((256, 256), person=0).image)
    with pytest.raises(BadInput, match=f"other.png: found another file, {words}"):
        scored(folder)


def test_people_who_change_sides_are_paired_as_when_they_were_animated(scene: Scene) -> None:
    class Detector:
        def embed_faces(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            return [(np.array([x, 0, x + 9, 9]), np.full(512, x), np.ones(512)) for x in (0, 20)]

    motion, image = scene.motion(), np.zeros((64, 64, 3), np.uint8)
    left, right = people_left_to_right(motion, [0, 1])
    motion.keypoints[1:, :, :, 0] = SIZE[0] - motion.keypoints[1:, :, :, 0]  # in most frames on the other side
    motion.face_boxes[1:, :, [0, 2]] = SIZE[0] - motion.face_boxes[1:, :, [2, 0]]
    found = people_of(None, motion, image, Detector())  # type: ignore[arg-type]
    assert [(person.index, person.own[0]) for person in found] == [(left, 0), (right, 20)]


def test_frames_in_which_nobody_is_have_no_people(scene: Scene) -> None:
    class Detector:
        def embed_faces(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
            return [(np.array([x, 0, x + 9, 9]), np.ones(512), np.ones(512)) for x in (0, 20)]

    motion, image = scene.motion(), np.zeros((64, 64, 3), np.uint8)
    assert len(people_of(None, motion, image, Detector())) == 2  # type: ignore[arg-type]
    nobody = replace(motion, present=np.zeros_like(motion.present))
    assert people_of(None, nobody, image, Detector()) == ()  # type: ignore[arg-type]


def test_the_only_one_with_a_face_is_compared_with_that_face(folder: Path, scene: Scene) -> None:
    """A record as after ``--pair 1:1``, where the largest face of the frames and of the reference is another's."""
    both = only(scored(folder))
    write_record(folder, [{"person": 1, "image": "r", "face": 1}])
    one = only(scored(folder))
    assert [person.number for person in one.people] == [1]
    assert one.values["csim_ref"] == pytest.approx(both.people[1].values["csim_ref"])
    assert "keypoint_error" not in one.values  # two people are drawn


def test_the_only_one_drawn_may_have_the_face_of_another_image(folder: Path, scene: Scene) -> None:
    """A record as after ``--face-of 0=other.png`` with a motion of one person."""
    motion = load_motion(folder / "poses.npz")
    first = replace(
        motion, keypoints=motion.keypoints[:, :1], present=motion.present[:, :1], face_boxes=motion.face_boxes[:, :1],
        track=motion.track[:1],
    )  # fmt: skip
    save_motion(folder / "poses.npz", first)
    write_image(folder / "other.png", scene.portrait((256, 256), person=0).image)
    write_image(folder / "reference.png", scene.portrait((256, 256), person=1).image)
    write_record(folder, [{"person": 0, "image": str(folder / "other.png"), "face": None}])
    video = only(scored(folder))
    write_record(folder, None)
    assert video.values["csim_ref"] > 0.5 > only(scored(folder)).values["csim_ref"]
    assert "keypoint_error" in video.values


def test_a_record_without_people_is_scored_as_one_person(folder: Path) -> None:
    write_record(folder, None)
    video = only(scored(folder))
    assert video.people == ()
    assert "people" not in json.loads((folder / "scores" / "scores.json").read_text())["videos"][0]


def test_without_a_motion_one_face_counts_and_a_note_says_so(folder: Path) -> None:
    write_record(folder, [{"person": 0, "image": "r", "face": 0}, {"person": 1, "image": "r", "face": 1}])
    video = only(scored(folder, poses=None))
    assert video.people == ()
    assert any("who is where" in note for note in video.notes)


def test_a_motion_of_one_person_is_scored_as_before(folder: Path) -> None:
    motion = load_motion(folder / "poses.npz")
    several = only(scored(folder))
    first = replace(
        motion, keypoints=motion.keypoints[:, :1], present=motion.present[:, :1], face_boxes=motion.face_boxes[:, :1],
        track=motion.track[:1],
    )  # fmt: skip
    save_motion(folder / "poses.npz", first)
    one = only(scored(folder))
    assert one.people == ()
    assert one.values["csim_ref"] != several.values["csim_ref"]


def test_the_lowest_person_decides_on_the_minimum(folder: Path) -> None:
    values = [person.values["csim_ref"] for person in only(scored(folder)).people]
    low, high = sorted(values)
    assert scored(folder, min_csim=low - 0.01).failure is None
    failed = scored(folder, min_csim=(low + high) / 2)
    assert isinstance(failed.failure, CheckFailed)
    assert f"csim_ref of person {values.index(low)} is" in failed.failure.message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.4, 0.1, 0.2), "csim_ref of person 1 is 0.1, --min-csim is 0.5"),
        ((0.9, 0.4, math.nan), "csim_ref of person 2 has no value"),
        ((0.4, math.nan, 0.9), "csim_ref of person 1 has no value"),
    ],
)
def test_the_value_below_the_minimum_is_that_of_the_person_named(values: tuple[float, ...], message: str) -> None:
    people = tuple(
        PersonScore(number=number, values={"csim_ref": value, "face_rate": 1.0}, counts={})
        for number, value in enumerate(values)
    )
    video: Any = SimpleNamespace(people=people, values={}, pair=SimpleNamespace(predicted=Path("out.mp4")))
    config = EvaluateConfig(inputs=(Path("a"), Path("b")), min_csim=0.5)
    assert message in str(identity_check.failure([video], config))


def test_with_a_ground_truth_faces_are_compared_frame_by_frame(folder: Path, scene: Scene) -> None:
    (folder / "truth").mkdir()
    write_video(folder / "truth" / "out.mp4", [frame.image for frame in scene.clip()])
    flags = {"inputs": [folder / "out.mp4", folder / "truth" / "out.mp4"], "reference_picture": None}
    video = only(scored(folder, **flags))
    assert [person.values["csim_gt"] for person in video.people] == [pytest.approx(1, abs=1e-3)] * 2
    assert video.values["csim_gt"] == pytest.approx(1, abs=1e-3)


def test_a_bench_of_pairs_is_drawn(tmp_path: Path) -> None:
    config = EvaluateConfig(bench="puppet", people=2, figures=2, length=2)
    cases = find_cases(config, catalogue.open_model("puppet"), tmp_path, NullReporter())
    assert len(cases) == 4
    assert all(len(load_motion(case.motion).track) == 2 for case in cases)
    with pytest.raises(ConfigError, match="--people"):
        EvaluateConfig(bench="puppet", people=4)
