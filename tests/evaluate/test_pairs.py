"""Which video goes with which, and what is said where none does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.pairs import Pair, find_images, find_videos, match, match_files
from stableanimator_cli.media import write_image


def _files(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def _frames(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for n in range(count):
        write_image(folder / f"{n}.png", np.zeros((16, 16, 3), np.uint8))
    return folder


def test_videos_come_in_natural_order_without_previews_and_hidden_files(tmp_path: Path) -> None:
    folder = _files(tmp_path / "a", "v10.mp4", "v9.mov", "v10.preview.mp4", ".v1.mp4", "notes.txt", "v10.json")
    _files(folder, "v11.ts", "v12.WMV")
    _frames(folder / "v2")
    assert list(find_videos(folder)) == ["v2", "v9", "v10", "v11", "v12"]


def test_a_folder_of_pictures_is_one_video(tmp_path: Path) -> None:
    assert find_videos(_frames(tmp_path / "clip")) == {"clip": tmp_path / "clip"}


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"v\.mp4: found a second video named v, beside v\.mov"):
        find_videos(_files(tmp_path / "a", "v.mp4", "v.mov"))


def test_an_empty_folder_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder without videos"):
        find_videos(_files(tmp_path / "empty"))
    with pytest.raises(BadInput, match="no such file"):
        find_videos(tmp_path / "nowhere.mp4")


def test_one_and_one_are_a_pair_whatever_their_names(tmp_path: Path) -> None:
    folder = _files(tmp_path / "a", "made.mp4", "truth.mp4")
    (pair,) = match(folder / "made.mp4", folder / "truth.mp4")
    assert (pair.name, pair.target) == ("made", folder / "truth.mp4")


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    made = _files(tmp_path / "made", "b.mp4", "a.mp4")
    true = _files(tmp_path / "true", "a.mov")
    _frames(true / "b")
    assert [(p.name, p.target) for p in match(made, true)] == [("a", true / "a.mov"), ("b", true / "b")]


@pytest.mark.parametrize(("ours", "theirs"), [(("a", "b", "c"), ("a", "b")), (("a", "b"), ("a", "b", "c"))])
def test_a_video_without_its_partner_is_refused(tmp_path: Path, ours: tuple, theirs: tuple) -> None:
    made = _files(tmp_path / "made", *(f"{name}.mp4" for name in ours))
    true = _files(tmp_path / "true", *(f"{name}.mp4" for name in theirs))
    with pytest.raises(BadInput, match="found no video named c, expected one for each of the 3"):
        match(made, true)


def test_one_picture_serves_all_and_a_folder_must_have_all(tmp_path: Path) -> None:
    pairs = [Pair(name=name, predicted=tmp_path) for name in ("a", "b")]
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_image(folder / "a.png", np.zeros((16, 16, 3), np.uint8))
    one = folder / "a.png"
    assert match_files(pairs, one, "image", find_images(one)) == {"a": one, "b": one}
    with pytest.raises(BadInput, match="no image named b"):
        match_files(pairs, folder, "image", find_images(folder))
