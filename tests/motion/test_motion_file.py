from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from tests.motion.motions import assert_equal, random_motion


@pytest.mark.parametrize(("frames", "people", "timed"), [(3, 2, True), (1, 1, False), (0, 0, True), (2, 0, False)])
def test_a_motion_comes_back_as_it_was(tmp_path: Path, frames, people, timed):
    motion = random_motion(frames=frames, people=people, timed=timed)
    path = save_motion(tmp_path / "new folder" / "poses.npz", motion)
    assert_equal(load_motion(path), motion)
    assert [p.name for p in path.parent.iterdir()] == ["poses.npz"]


def test_the_same_motion_gives_the_same_bytes(tmp_path: Path):
    motion = random_motion()
    first, second = (save_motion(tmp_path / name, motion).read_bytes() for name in ("a.npz", "b.npz"))
    assert first == second


def test_the_name_is_kept_whatever_its_ending(tmp_path: Path):
    assert save_motion(tmp_path / "poses", random_motion()).read_bytes()[:2] == b"PK"
    assert [p.name for p in tmp_path.iterdir()] == ["poses"]


def stored(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": np.int64(2)}, "found version 2, expected version 1"),
        ({"version": None}, "expected a motion file with a version"),
        ({"track": None}, "found no array 'track'"),
        ({"keypoints": np.zeros((3, 2, 133, 3), np.float32)}, r"keypoints\[3, 2, 133, 3\] .* expected keypoints\[t,p"),
        ({"present": np.ones((4, 2), bool)}, r"present\[4, 2\] of bool, expected present\[t,p\] with t = 3, p = 2"),
        ({"present": np.ones((3, 2))}, "present.* of float64"),
        ({"times": np.zeros((2, 2), np.int64)}, r"times\[2, 2\]"),
        ({"times": np.zeros((3, 2), np.int64)}, "poses.npz, frame 0: found the time 0/0"),
        ({"times": np.array([[1, 8]] * 3)}, r"npz, frame 1: found the time 0.125 s, 0 s after .* times that rise"),
        ({"times": np.array([[2, 8], [1, 8], [0, 8]])}, r"frame 1: found the time 0.125 s, -0.125 s after the frame"),
        ({"size": np.array([0, 5])}, "size 0x5"),
        ({"keypoints": np.full((3, 2, 134, 3), np.nan, np.float32)}, "poses.npz, frame 0: .*not finite"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_right_says_so(tmp_path: Path, change, message):
    path = save_motion(tmp_path / "poses.npz", random_motion())
    arrays = {name: array for name, array in (stored(path) | change).items() if array is not None}
    np.savez(path, **arrays)
    with pytest.raises(BadInput, match=message) as caught:
        load_motion(path)
    assert "\n" not in caught.value.message


def test_a_file_may_repeat_single_times_and_its_errors_do_not_mention_a_video(tmp_path: Path):
    path = save_motion(
        tmp_path / "poses.npz",
        dataclasses.replace(random_motion(), times=(Fraction(0), Fraction(1, 8), Fraction(1, 8))),
    )
    assert load_motion(path).times == (0, Fraction(1, 8), Fraction(1, 8))
    for times in ((Fraction(0), Fraction(0), Fraction(0)), (Fraction(0), Fraction(1), Fraction(62))):
        save_motion(path, dataclasses.replace(random_motion(), times=times))
        with pytest.raises(BadInput, match="times that rise") as caught:
            load_motion(path)
        assert caught.value.hint == "write it again with other times, or without them for 30 frames per second"


def test_damaged_missing_and_foreign_files(tmp_path: Path):
    path = save_motion(tmp_path / "poses.npz", random_motion())
    whole = path.read_bytes()
    for content in (
        b"",
        b"hello",
        whole[: len(whole) // 2],
        whole[:-40] + b"0123456789" * 4,
        whole[:300] + b"x" * 50 + whole[350:],
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=re.escape(str(path))) as caught:
            load_motion(path)
        assert "\n" not in caught.value.message
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", allow_pickle=True, version=np.array([{}], dtype=object))
    for name, found in (
        ("one.npy", "not a zip file"),
        ("pickle.npz", r"an array of type '\|O'"),
        ("none.npz", "no such file"),
        (".", "it is a folder"),
    ):
        with pytest.raises(BadInput, match=found):
            load_motion(tmp_path / name)


def test_a_place_that_cannot_be_written_is_named_and_left_clean(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"poses\.npz: found a file in the place of a folder"):
        save_motion(tmp_path / "file" / "poses.npz", random_motion())
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="found a folder, expected a name for a file"):
        save_motion(tmp_path / "folder", random_motion())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
