from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput
from stableanimator_cli.motion import keypoints as kp
from stableanimator_cli.motion.openpose import load_openpose, save_openpose
from tests.motion.motions import assert_equal, random_motion

BODY_25_NAMES = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist", None,
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe",
    "right_heel",
)  # fmt: skip


def triples(count: int, start: float = 100) -> list[float]:
    """``count`` points whose x is ``start`` plus their own number."""
    return [value for i in range(count) for value in (start + i, 50, 0.9)]


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("name", ["poses", "poses.json"])
@pytest.mark.parametrize("people", [1, 2])
def test_lossless_there_and_back(tmp_path: Path, name, people):
    motion = random_motion(people=people, timed=False)
    read = load_openpose(save_openpose(tmp_path / name, motion))
    assert_equal(read.motion, motion)
    assert read.size_from == "file"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_coco_18_loses_only_the_feet(tmp_path: Path):
    motion = random_motion(timed=False)
    path = save_openpose(tmp_path / "poses.json", motion, body=18)
    assert len(json.loads(path.read_text())[0]["people"][0]["pose_keypoints_2d"]) == 54
    read = load_openpose(path).motion.keypoints
    assert not read[:, :, kp.FEET].any()
    np.testing.assert_array_equal(np.delete(read, kp.FEET, axis=2), np.delete(motion.keypoints, kp.FEET, axis=2))


def test_body_25_points_land_where_their_names_say(tmp_path: Path):
    person = load_openpose(
        write(tmp_path / "f.json", {"people": [{"pose_keypoints_2d": triples(25)}]}), size=(640, 480)
    ).motion.keypoints[0, 0]
    for place, name in enumerate(BODY_25_NAMES):
        if name is not None:
            assert person[kp.INDEX[name]].tolist() == pytest.approx([100 + place, 50, 0.9])
    assert 108 not in person[:, 0]  # the mid-hip is not one of our points


def test_the_mid_hip_is_written_between_the_hips_or_not_at_all(tmp_path: Path):
    motion = random_motion(people=1, frames=2, timed=False)
    motion.keypoints[:, 0, kp.INDEX["left_hip"]] = [[100, 60, 0.5], [100, 60, 0]]
    motion.keypoints[:, 0, kp.INDEX["right_hip"]] = [50, 40, 0.75]
    frames = json.loads(save_openpose(tmp_path / "poses.json", motion).read_text())
    mid_hips = [frame["people"][0]["pose_keypoints_2d"][24:27] for frame in frames]
    assert mid_hips == [[75, 50, 0.5], [0, 0, 0]]


@pytest.mark.parametrize("points", [68, 70])
def test_pupils_are_dropped(tmp_path: Path, points):
    path = write(tmp_path / "f.json", {"people": [{"face_keypoints_2d": triples(points)}]})
    motion = load_openpose(path, size=(640, 480)).motion
    assert motion.keypoints[0, 0, kp.FACE, 0].tolist() == list(range(100, 168))
    assert np.isfinite(motion.face_boxes).all()


def test_missing_parts_have_score_0_and_no_face_box(tmp_path: Path):
    person = {"pose_keypoints_2d": triples(18), "face_keypoints_2d": None, "hand_left_keypoints_2d": []}
    path = write(tmp_path / "f.json", {"people": [person], "canvas_width": 640, "canvas_height": 480})
    motion = load_openpose(path).motion
    assert motion.keypoints[0, 0, :18, 2].min() > 0
    assert not motion.keypoints[0, 0, 18:].any()
    assert np.isnan(motion.face_boxes).all()
    assert motion.times is None


def test_frames_are_taken_in_natural_order_and_other_files_left_alone(tmp_path: Path):
    for number in (10, 9, 100):
        write(tmp_path / f"v{number}_keypoints.json", {"people": [{"pose_keypoints_2d": triples(25, number)}]})
    write(tmp_path / "about.json", {"what": "not a frame"})
    (tmp_path / "notes.txt").write_text("nothing")
    motion = load_openpose(tmp_path, size=(640, 480)).motion
    assert motion.keypoints[:, 0, 0, 0].tolist() == [9, 10, 100]
    assert motion.times is None


@pytest.mark.parametrize(("ids", "tracks", "present"), [
    ([[7], [7, 2]], [2, 7], [[False, True], [True, True]]),
    ([[-1], [-1, -1]], [0, 1], [[True, False], [True, True]]),
    ([[3], [3, 3]], [0, 1], [[True, False], [True, True]]),
])  # fmt: skip
def test_people_follow_their_ids_where_these_are_of_use(tmp_path: Path, ids, tracks, present):
    frames = [{"people": [{"person_id": [i], "pose_keypoints_2d": triples(25)} for i in row]} for row in ids]
    motion = load_openpose(write(tmp_path / "f.json", frames), size=(640, 480)).motion
    assert motion.track.tolist() == tracks
    assert motion.present.tolist() == present


def test_the_size_is_the_files_then_the_callers_then_the_extent(tmp_path: Path):
    frame = {"people": [{"pose_keypoints_2d": triples(25)}]}
    bare = write(tmp_path / "bare.json", frame)
    sized = write(tmp_path / "sized.json", frame | {"canvas_width": 640, "canvas_height": 480.0})
    reads = [load_openpose(sized, size=(10, 10)), load_openpose(bare, size=(700, 500)), load_openpose(bare)]
    assert [(r.motion.size, r.size_from) for r in reads] == [
        ((640, 480), "file"), ((700, 500), "caller"), ((124, 50), "extent"),
    ]  # fmt: skip


def test_shares_of_a_canvas_become_pixels(tmp_path: Path):
    frame = {"people": [{"pose_keypoints_2d": [0.25, 0.5, 1.0] * 25}]}
    read = load_openpose(write(tmp_path / "f.json", frame | {"canvas_width": 640, "canvas_height": 480}))
    assert read.motion.keypoints[0, 0, 0].tolist() == [160, 240, 1]
    with pytest.raises(BadInput, match="fractions of an unknown size") as caught:
        load_openpose(write(tmp_path / "g.json", frame))
    assert caught.value.hint == (  # `sa animate --size` is about the output
        "add canvas_width and canvas_height to the frames, or convert them: sa preprocess FILE --size WxH -o motion.npz"
    )


def test_a_point_beyond_any_frame_does_not_become_its_size(tmp_path: Path):
    path = write(tmp_path / "f.json", {"people": [{"pose_keypoints_2d": [50000.0, 9.0, 1.0] * 25}]})
    with pytest.raises(BadInput, match=r"points as far as 50000x9, expected within 16384 pixels"):
        load_openpose(path)
    assert load_openpose(path, size=(640, 480)).motion.size == (640, 480)


def test_empty_frames_are_frames(tmp_path: Path):
    motion = load_openpose(write(tmp_path / "f.json", [{"people": []}, {"people": []}]), size=(64, 64)).motion
    assert motion.keypoints.shape == (2, 0, 134, 3)
    with pytest.raises(BadInput, match="neither a canvas size nor a visible point"):
        load_openpose(tmp_path / "f.json")


def test_a_person_whose_points_are_all_zeros_is_absent_in_that_frame(tmp_path: Path):
    shown, padding = {"pose_keypoints_2d": triples(25)}, {"pose_keypoints_2d": [0] * 75}
    frames = [{"people": people} for people in ([padding, shown], [shown, padding], [padding, {}])]
    motion = load_openpose(write(tmp_path / "f.json", frames), size=(640, 480)).motion
    assert motion.present.tolist() == [[False, True], [True, False], [False, False]]


GOOD = {"people": [{"pose_keypoints_2d": triples(25)}]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("[]", "found an empty list, expected a frame with people"),
        ("3", "found a number"),
        ("[{}]", r"frame 0: found an object without a list of people \(empty\), expected an OpenPose frame"),
        ([GOOD, {"persons": []}], "without a list of people .persons."),
        ([GOOD, 5], "frame 1: found a number"),
        ({"people": ["me"]}, "found a text for person 0"),
        (
            {"people": [{"pose_keypoints_2d": triples(17)}]},
            r"found 51 numbers in pose_keypoints_2d of person 0, expected 75 \(25 points.*or 54",
        ),
        ({"people": [{"hand_left_keypoints_2d": [1, 2]}]}, "found 2 numbers in hand_left_keypoints_2d"),
        ({"people": [{"face_keypoints_2d": "x"}]}, "found a text in face_keypoints_2d"),
        ({"people": [{"pose_keypoints_2d": ["a", *triples(25)[1:]]}]}, "found 'a' at 0 of pose_keypoints_2d"),
        ({"people": [{"pose_keypoints_2d": [True, *triples(25)[1:]]}]}, "found true at 0"),
        ('{"people": [{"hand_left_keypoints_2d": [NaN' + ", 1" * 62 + "]}]}", "found nan at 0"),
        ({"people": [], "canvas_width": 640}, "canvas_width 640 and canvas_height null"),
        ({"people": [], "canvas_width": 0, "canvas_height": 5}, "canvas_width 0"),
        ([GOOD | {"canvas_width": 9, "canvas_height": n} for n in (5, 6)], "frame 1: .* canvas of 9x6, expected 9x5"),
        ('{"people": [', "it is not OpenPose JSON: broken JSON at line 1, column"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, bad, message):
    path = tmp_path / "poses.json"
    path.write_text(bad if isinstance(bad, str) else json.dumps(bad))
    with pytest.raises(BadInput, match=message) as caught:
        load_openpose(path, size=(640, 480))
    assert caught.value.message.startswith(str(path))
    assert "\n" not in caught.value.message


def test_the_file_and_the_frame_of_a_folder_are_named(tmp_path: Path):
    with pytest.raises(BadInput, match=r"found no \.json files"):
        load_openpose(tmp_path)
    for number in range(3):
        write(tmp_path / f"{number}_keypoints.json", GOOD)
    (tmp_path / "2_keypoints.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"2_keypoints\.json, frame 2: "):
        load_openpose(tmp_path)
    write(tmp_path / "2_keypoints.json", [GOOD, GOOD])
    with pytest.raises(BadInput, match="frame 2: found 2 frames in a file, expected one frame per file"):
        load_openpose(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        load_openpose(tmp_path / "none.json")


def test_a_folder_in_use_is_not_written_into(tmp_path: Path):
    motion = random_motion(timed=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(BadInput, match=r"full/mine\.txt: it is in the way") as caught:
        save_openpose(tmp_path / "full", motion)
    assert "another folder" in (caught.value.hint or "")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert len(list(save_openpose(tmp_path / "empty", motion).iterdir())) == 3
    (tmp_path / "empty" / "frame_000000000009_keypoints.json").write_text(json.dumps(GOOD))  # not of ours
    with pytest.raises(BadInput, match=r"frame_000000000009_keypoints\.json: it is in the way"):
        save_openpose(tmp_path / "empty", motion)
    (tmp_path / "empty" / "frame_000000000009_keypoints.json").rename(tmp_path / "mine.json")
    assert len(list(save_openpose(tmp_path / "empty", random_motion(timed=False)).iterdir())) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full", "mine.json"]


def test_frames_are_not_written_through_a_link(tmp_path: Path):
    motion = random_motion(timed=False)
    frames = save_openpose(tmp_path / "frames", motion)
    (tmp_path / "link").symlink_to(frames)
    with pytest.raises(BadInput, match="it is a link"):
        save_openpose(tmp_path / "link", motion)
    assert (tmp_path / "link").is_symlink()
    assert len(list(frames.iterdir())) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["frames", "link"]


def test_frames_are_restored_if_others_cannot_take_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frames, replace = save_openpose(tmp_path / "frames", random_motion(timed=False)), os.replace
    before = {p.name: p.read_bytes() for p in frames.iterdir()}

    def refuse_the_new_ones(source: Path, target: Path) -> None:
        if target == frames and source.name.startswith(".frames.") and ".old." not in source.name:
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_new_ones)
    with pytest.raises(BadInput, match="a write that failed"):
        save_openpose(frames, random_motion(people=2, timed=False))
    assert {p.name: p.read_bytes() for p in frames.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]
