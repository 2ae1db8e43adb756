"""A motion from any form to any other and back."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.config.preprocess import PreprocessConfig
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.keypoints import to_wholebody
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from stableanimator_cli.motion.openpose import save_openpose
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.preprocess.convert import is_motion
from stableanimator_cli.records import Motion
from tests.animate.clips import Heard
from tests.media_samples import make_video
from tests.preprocess import drawn
from tests.tiny import skeletons, waving

SIZE = (128, 96)


@pytest.fixture
def motion(tmp_path: Path) -> Path:
    return save_motion(tmp_path / "poses.npz", two_people())


def two_people() -> Motion:
    """Two people of whom the second is there only in part, on a clock of 29.97 frames a second."""
    one = waving(6, size=SIZE)
    keypoints = np.concatenate([one.keypoints, one.keypoints + np.float32([20.25, 1.5, 0])], axis=1)
    present = np.ones((6, 2), bool)
    present[:2, 1] = False
    keypoints[~present] = 0
    return dataclasses.replace(
        one,
        keypoints=keypoints,
        present=present,
        track=np.array([0, 3]),
        face_boxes=np.concatenate([one.face_boxes] * 2, axis=1),
        times=tuple(Fraction(1001 * k, 30000) for k in range(6)),
    )


def same(a: Motion, b: Motion) -> None:
    np.testing.assert_array_equal(a.present, b.present)
    np.testing.assert_array_equal(a.keypoints[a.present], b.keypoints[b.present])
    assert a.size == b.size


@pytest.mark.parametrize("name", ["folder", "p.json", "p.mp4"])
def test_what_a_killed_conversion_left_is_removed(preprocess, motion, tmp_path, name):
    for left in (f".{name}.999999999.part", f".{name}.old.999999999.part"):
        if name == "folder":
            save_openpose(tmp_path / left, two_people())
        else:
            (tmp_path / left).write_bytes(b"half")
    preprocess(motion, output=tmp_path / name)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["p.json", "folder", "p.npy"])
def test_there_and_back_nothing_is_lost(preprocess, motion, tmp_path, name):
    there, back = tmp_path / "there" / name, tmp_path / "back.npz"
    assert preprocess(motion, output=there).output == there
    preprocess(there, output=back, size="128x96", fps="30000/1001")
    found, expected = load_motion(back), load_motion(motion)
    same(found, expected)
    assert found.times == expected.times
    if not name.endswith(".npy"):  # arrays have no names of people
        assert found.track.tolist() == [0, 3]


def test_npz_to_npz_is_the_same_file(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "copy.npz")
    assert (tmp_path / "copy.npz").read_bytes() == motion.read_bytes()


def test_the_133_points_of_wholebody_go_out_and_come_in(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "w.npy", order="133")
    array = np.load(tmp_path / "w.npy")
    assert array.shape == (6, 2, 133, 3)
    known = load_motion(motion)
    np.testing.assert_array_equal(array[3, 1], to_wholebody(known.keypoints[3, 1]))
    preprocess(tmp_path / "w.npy", output=tmp_path / "w.npz", size="128x96")
    others = [k for k in range(134) if k != 1]  # the neck is made anew of the shoulders
    found = load_motion(tmp_path / "w.npz")
    np.testing.assert_array_equal(found.keypoints[:, 0][:, others], known.keypoints[:, 0][:, others])


def test_a_skeleton_video_keeps_its_motion_beside_it_and_every_pixel(preprocess, motion, tmp_path):
    report = preprocess(motion, poses=tmp_path / "poses2.mp4").to_json()["poses"]
    assert (report["frames"], report["fps"]) == (6, "30000/1001")
    clip = open_clip(tmp_path / "poses2.mp4")
    assert clip.tag["sa.kind"] == "skeleton"
    known = load_motion(motion)
    for index, (_, picture) in enumerate(clip.frames()):
        np.testing.assert_array_equal(picture, draw_frame(known, index))
    assert (tmp_path / "poses2.npz").read_bytes() == motion.read_bytes()
    preprocess(tmp_path / "poses2.mp4", output=tmp_path / "again.json")
    preprocess(tmp_path / "again.json", output=tmp_path / "again.npz")
    same(load_motion(tmp_path / "again.npz"), known)


def test_pictures_of_skeletons_and_video_become_one_another_pixel_for_pixel(preprocess, motion, tmp_path):
    (tmp_path / "drawn").mkdir()  # an empty folder is as good as none
    preprocess(motion, output=tmp_path / "drawn", to="png")
    preprocess(tmp_path / "drawn", output=tmp_path / "video.mp4", fps="12")
    preprocess(tmp_path / "video.mp4", output=tmp_path / "drawn2", to="png")
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("drawn", "drawn2")
    )
    assert first == second
    assert sorted(first) == [f"frame_{index}.png" for index in range(6)]
    assert open_clip(tmp_path / "video.mp4").fps == 12
    plan = preprocess(tmp_path / "video.mp4", output=tmp_path / "o.mp4", fps="24", plan_only=True)
    assert plan.to_json()["frames"] == 12


def test_a_drawing_without_its_motion_says_that_points_are_lost(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "drawn", to="png")
    with pytest.raises(BadInput, match=r"drawn\.npz beside it"):
        preprocess(tmp_path / "drawn", output=tmp_path / "p.json")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("reference", Path("r.png")), ("person", "1"), ("people", 1), ("smooth", 2.0), ("preview", True)],
)
def test_drawings_without_their_motion_are_not_copied_where_points_are_asked_for(
    preprocess, motion, tmp_path, flag, value
):
    preprocess(motion, output=tmp_path / "drawn", to="png")
    if flag == "reference":
        value = tmp_path / value
        write_image(value, drawn.frame((40, 20, 80, 84)))
    with pytest.raises(BadInput, match=rf"drawn\.npz beside it for --{flag}"):
        preprocess(tmp_path / "drawn", poses=tmp_path / "p.mp4", **{flag: value})
    assert not (tmp_path / "p.mp4").exists()


def test_drawings_go_to_both_outputs(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "drawn", to="png")
    preprocess(tmp_path / "drawn", output=tmp_path / "o.mp4", poses=tmp_path / "p.mp4")
    assert open_clip(tmp_path / "o.mp4").count == open_clip(tmp_path / "p.mp4").count == 6


def test_a_plan_of_a_conversion_writes_nothing(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "drawn", to="png")
    for source, flags in ((motion, {"frames": "1:5"}), (tmp_path / "drawn", {"frames": "1:5"})):
        plan = preprocess(source, output=tmp_path / "out.mp4", plan_only=True, **flags).to_json()
        assert (plan["output"], plan["frames"]) == (str(tmp_path / "out.mp4"), 4)
    with pytest.raises(BadInput, match="is the same as the input"):
        preprocess(motion, output=motion, plan_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", motion.name]


def test_options_without_effect_are_named(preprocess, motion, tmp_path):
    heard = Heard()
    preprocess(motion, output=tmp_path / "out.json", gap=20, every=2, reporter=heard)
    video = drawn.write_video(tmp_path / "v.mp4", drawn.walk(3))
    preprocess(video, output=tmp_path / "clips", size="64x64", reporter=heard)
    preprocess(motion, output=tmp_path / "again.json", reporter=heard)
    preprocess(motion, output=tmp_path / "points.npz", to="png", order="133", size="64x64", reporter=heard)
    preprocess(motion, output=tmp_path / "points.npy", order="133", reporter=heard)
    preprocess(motion, output=tmp_path / "images", to="png", reporter=heard)
    width, height = load_motion(motion).size
    assert [text for text in heard.warnings if "no effect" in text] == [
        "--every, --gap: no effect on poses.npz, a motion, in which nothing is detected",
        "--size: no effect on v.mp4, which is no motion to convert",
        "--to, --order: no effect on points.npz",
        f"--size: no effect on poses.npz, which has a size of {width}x{height}",
    ]


def test_a_slice_a_rate_and_a_person_are_taken(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "part.npz", frames="1:5", person="3")
    part, known = load_motion(tmp_path / "part.npz"), load_motion(motion)
    assert part.track.tolist() == [3]
    np.testing.assert_array_equal(part.keypoints[:, 0], known.keypoints[1:5, 1])
    assert part.times == (known.times or ())[1:5]
    preprocess(motion, output=tmp_path / "slow.npz", fps="60000/1001")
    slow = load_motion(tmp_path / "slow.npz")
    assert len(slow) == 12
    np.testing.assert_array_equal(slow.keypoints[::2], known.keypoints)
    with pytest.raises(BadInput, match="no frame in the range"):
        preprocess(motion, output=tmp_path / "no.npz", frames="9:")


def test_the_largest_people_are_taken(preprocess, motion, tmp_path):
    for count, tracks in ((1, [0]), (2, [0, 3]), (9, [0, 3])):
        preprocess(motion, output=tmp_path / f"{count}.npz", people=count)
        assert load_motion(tmp_path / f"{count}.npz").track.tolist() == tracks
    with pytest.raises(ConfigError, match=r"--people: found 2, expected no --person all beside it"):
        preprocess(motion, output=tmp_path / "no.npz", people=2, person="all")
    with pytest.raises(ConfigError, match=r"--people: found 0, expected 1 to 64"):
        preprocess(motion, output=tmp_path / "no.npz", people=0)


def test_clips_of_older_versions_stay_finished():
    known = PreprocessConfig(inputs=(Path("a.mp4"),)).of_clip()
    assert "people" not in known
    assert PreprocessConfig(inputs=(Path("a.mp4"),), people=2).of_clip() == known | {"people": 2}


def test_a_range_from_the_end_of_a_video_without_a_length_is_refused(preprocess, tmp_path):
    path = make_video(tmp_path / "poses.mkv", skeletons(10, (128, 128)))
    with pytest.raises(ConfigError, match=r"frames: found '-3:', expected numbers from 0"):
        preprocess(path, output=tmp_path / "p", frames="-3:")


def test_smoothing_is_done_only_when_asked(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "smooth.npz", smooth=2.0)
    assert (load_motion(tmp_path / "smooth.npz").keypoints != load_motion(motion).keypoints).any()


def test_a_size_that_is_not_known_is_guessed_and_told(preprocess, motion, tmp_path):
    preprocess(motion, output=tmp_path / "p.npy")
    heard = Heard()
    preprocess(tmp_path / "p.npy", output=tmp_path / "q.npz", reporter=heard)
    assert "--size gives it" in heard.warnings[0]


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.zeros((3, 17, 3)), r"\[3, 17, 3\]"), (np.zeros((3, 1, 134, 3), int), "int64"), (np.zeros(4), r"\[4\]")],
)
def test_an_array_of_another_kind_is_refused(preprocess, tmp_path, array, words):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadInput, match=words):
        preprocess(tmp_path / "a.npy", output=tmp_path / "b.npz")


def test_pickled_arrays_are_refused(preprocess, tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(BadInput, match="an array of type"):
        preprocess(tmp_path / "a.npy", output=tmp_path / "b.npz")


def test_names_that_say_nothing_are_refused(preprocess, motion, tmp_path):
    with pytest.raises(ConfigError, match=r"\.npz, \.json, \.npy"):
        preprocess(motion, output=tmp_path / "p.txt")
    with pytest.raises(ConfigError, match="--output: found nothing"):
        preprocess(motion)
    with pytest.raises(BadInput, match="the output is the same as the input"):
        preprocess(motion, output=motion)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(BadInput, match="an existing path"):
        preprocess(motion, output=tmp_path / "full", to="png")


def test_what_is_a_motion_is_known_by_its_content(motion, tmp_path):
    assert is_motion([motion])
    assert not is_motion([motion, motion])
    write_image(tmp_path / "pictures" / "frame_0.png", drawn.frame((40, 20, 80, 84)))
    write_image(tmp_path / "pictures" / "frame_1.png", drawn.frame((44, 20, 84, 84)))
    assert not is_motion([tmp_path / "pictures"])
    assert not is_motion([drawn.write_video(tmp_path / "walk.mp4", drawn.walk(3))])


def test_json_beside_videos_is_no_motion(preprocess, motion, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    drawn.write_video(folder / "walk.mp4", drawn.walk(3))
    (folder / "walk.json").write_text("{}")  # a run record, or the metadata of a downloader
    assert not is_motion([folder])
    preprocess(motion, output=tmp_path / "points")
    drawn.write_video(tmp_path / "points" / "overlay.mp4", drawn.walk(3))  # as OpenPose's --write_video
    assert is_motion([tmp_path / "points"])
