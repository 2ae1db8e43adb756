"""A frame that is missing in a folder moves all later ones up, which is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from stableanimator_cli.media.numbering import missing_numbers


def folder(path: Path, names: Sequence[str]) -> Path:
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png", "4.png", "5.png"], "f: after the file of number 2 comes that of 4; frames are taken"),
        ([f"a1_{n:03d}.JPG" for n in (7, 8, 9, 12, 13, 20, 21)], "of number 9 comes that of 12 and at 1 more places;"),
        ([f"v_{n:012d}_keypoints.json" for n in (0, 1, 2, 4)], "after the file of number 2 comes that of 4;"),
        (["0.png", "2.png", "3.png"], "after the file of number 0 comes that of 2;"),
        (["0.png", "2.png", "4.png", "8.png", ".5.png", "notes.txt"], "after the file of number 4 comes that of 8;"),
    ],
)
def test_a_jump_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    found = missing_numbers(folder(tmp_path / "f", names))
    assert found is not None
    assert message in found


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["7.png"],
        ["3.png", "4.png"],
        ["0.png", "5.png", "10.png"],
        ["9.png", "10.png", "11.png"],
        ["front.png", "side.png"],
        ["a1.png", "b9.png", "a2.png"],  # two series
        ["a1.png", "a2.json", "a9.png"],
    ],
)
def test_numbers_in_equal_steps_and_other_names_are_no_jump(tmp_path: Path, names: list[str]) -> None:
    assert missing_numbers(folder(tmp_path / "f", names)) is None


def test_a_file_has_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert missing_numbers(tmp_path / "a.mp4") is None
