"""Every writer of single files: the mark, equal bytes for equal content, and no file of others replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.clip_folder import FaceTable, load_faces, save_faces
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import MARK, carries_mark
from stableanimator_cli.media import VideoWriter, open_clip, read_image, write_image
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from stableanimator_cli.motion.openpose import load_openpose, save_openpose
from tests.tiny import waving

GREY = np.full((64, 64, 3), 90, np.uint8)


def video(path: Path) -> None:
    with VideoWriter(path, (64, 64), 8) as writer:
        for _ in range(3):
            writer.write(GREY)


WRITERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "v.mp4": (video, lambda path: len(list(open_clip(path).frames()))),
    "v.mov": (video, lambda path: len(list(open_clip(path).frames()))),
    "v.m4v": (video, lambda path: len(list(open_clip(path).frames()))),
    "p.png": (lambda path: write_image(path, GREY), lambda path: read_image(path).shape),
    "p.jpg": (lambda path: write_image(path, GREY), lambda path: read_image(path).shape),
    "m.npz": (lambda path: save_motion(path, waving(3)), lambda path: len(load_motion(path))),
    "f.npz": (lambda path: save_faces(path, FaceTable.of([], "rgb")), lambda path: load_faces(path).channel_order),
    "o.json": (lambda path: save_openpose(path, waving(3)), lambda path: len(load_openpose(path).motion)),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_file_carries_the_mark_and_replaces_only_files_that_do(tmp_path: Path, name: str) -> None:
    write, read = WRITERS[name]
    path = tmp_path / name
    path.write_bytes(b"a file of somebody else's")
    with pytest.raises(BadInput, match="it exists and was not written by sa"):
        write(path)
    assert path.read_bytes() == b"a file of somebody else's"
    path.unlink()
    write(path)
    first = path.read_bytes()
    assert carries_mark(path)
    assert read(path) == {"v": 3, "p": (64, 64, 3), "m": 3, "f": "rgb", "o": 3}[name[0]]
    write(path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_the_mark_of_a_video_is_at_its_end_however_long_it_is(tmp_path: Path) -> None:
    video(tmp_path / "v.mp4")
    assert (tmp_path / "v.mp4").read_bytes().endswith(b"free" + MARK.encode())


def test_a_file_that_appears_while_ours_is_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    writer = VideoWriter(path, (64, 64), 8)

    def write() -> None:
        with writer:
            writer.write(GREY)
            path.write_bytes(b"a file of somebody else's")

    with pytest.raises(BadInput, match="was not written by sa"):
        write()
    assert path.read_bytes() == b"a file of somebody else's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]
