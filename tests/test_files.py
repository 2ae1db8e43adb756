"""Locks of outputs, which files may be replaced, and outputs apart from inputs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.files import (
    MARK,
    atomic_write,
    carries_mark,
    check_apart,
    check_replaceable,
    exclusive_lock,
    json_text,
    locked_output,
    require_file,
    sha256_of,
)
from tests.conftest import ROOT, largest_file

HOLD = """
import sys, time
from pathlib import Path
from stableanimator_cli.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1])) as free:
    print(free, flush=True)
    time.sleep(60)
"""


def test_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with exclusive_lock(lock) as free:
        assert free
        with exclusive_lock(lock) as second:
            assert not second
        assert lock.exists()  # who was turned away takes nothing with it
        with exclusive_lock(tmp_path / ".other") as elsewhere:
            assert elsewhere
    assert not list(tmp_path.iterdir())
    with exclusive_lock(lock) as free:
        assert free


def test_who_was_killed_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        with exclusive_lock(lock) as free:
            assert not free
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert lock.exists()
    with exclusive_lock(lock) as free:
        assert free
    assert not lock.exists()


def test_an_output_held_by_another_process_is_refused(tmp_path: Path) -> None:
    output, run = tmp_path / "out.mp4", tmp_path / "run"
    with (
        locked_output(output, "sa animate"),
        pytest.raises(BadInput, match=r"out\.mp4: it is being written by another `sa animate`"),
        locked_output(output, "sa animate"),
    ):
        raise AssertionError("both hold it")
    with (
        locked_output(run, "sa train", folder=True),
        pytest.raises(BadInput, match="`sa train`"),
        locked_output(run, "sa train", folder=True),
    ):
        raise AssertionError("both hold it")
    assert not list(tmp_path.iterdir())  # a folder that stayed empty goes too


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3 * 2**20, 0), (0, 3 * 2**20), (2**20 - 5, 100)])
def test_the_mark_is_found_at_both_ends_of_a_file(tmp_path: Path, before: int, after: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\0" * before + MARK.encode() + b"\0" * after)
    assert carries_mark(path)
    check_replaceable(path)


def test_only_files_with_the_mark_are_replaceable(tmp_path: Path) -> None:
    foreign, folder, link = tmp_path / "out.png", tmp_path / "folder", tmp_path / "link"
    foreign.write_bytes(b"a painting" * 300_000)
    folder.mkdir()
    link.symlink_to(foreign)
    (tmp_path / "empty").touch()
    check_replaceable(tmp_path / "missing", tmp_path / "empty")
    for path, problem in [(foreign, "was not written by sa"), (folder, "a folder"), (link, "a link")]:
        with pytest.raises(BadInput, match=problem):
            check_replaceable(tmp_path / "missing", path)


def test_an_output_is_apart_from_every_input(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(videos)
    check_apart(tmp_path / "videos.clips", [videos])
    check_apart(tmp_path / "out.mp4", [videos, tmp_path / "in.mp4"])
    for output, relation in [
        (videos, "is the same as"),
        (tmp_path / "link", "is the same as"),
        (tmp_path / "link" / "clips", "is inside"),
        (videos / "deep" / "clips", "is inside"),
        (tmp_path, "contains"),
    ]:
        with pytest.raises(BadInput, match=relation):
            check_apart(output, [tmp_path / "other", videos])


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "loop", "long", "null", "below a file"])
def test_only_regular_files_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("dance.mp4")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "long":
        path = Path("n" * 5000)
    elif kind == "null":
        path = Path("dance\0.mp4")
    elif kind == "below a file":
        Path("file").write_text("x")
        path = Path("file/dance.mp4")
    with pytest.raises(BadInput) as caught:
        require_file(path, "a video")
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()
    if kind in ("pipe", "device", "socket"):
        assert f"found a {kind}, expected a video" in caught.value.message


def test_json_of_names_that_are_not_utf8() -> None:
    text = json_text({"path": "d\udcffnce/ü.mp4"})
    assert text == '{"path": "d\\udcffnce/ü.mp4"}\n'
    assert json.loads(text.encode()) == {"path": "d\udcffnce/ü.mp4"}


def test_a_digest_of_what_has_no_end_is_refused() -> None:
    with pytest.raises(BadInput, match="/dev/zero: it is not a regular file"):
        sha256_of(Path("/dev/zero"))


def test_a_file_that_vanished_is_not_reported_as_a_failed_write(tmp_path: Path) -> None:
    for read in (sha256_of, carries_mark):
        with pytest.raises(BadInput, match=r"gone\.png: it cannot be read \(no such file or directory\)"):
            read(tmp_path / "gone.png")


def test_a_full_disk_names_the_file_that_was_written(tmp_path: Path) -> None:
    """The system's error names none, as if standard output were full."""
    with (
        pytest.raises(BadInput, match=r"out\.json: found no room left to write"),
        atomic_write(tmp_path / "out.json") as temp,
        largest_file(4000),
    ):
        temp.write_text("x" * 9000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["notes", "pipe", "link"])
def test_what_has_the_name_of_a_lock_is_neither_waited_for_nor_removed(tmp_path: Path, kind: str) -> None:
    lock = tmp_path / ".out.mp4.lock"
    if kind == "notes":
        lock.write_text("mine", encoding="utf-8")
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(BadInput, match=r"lock: it is in the place of a lock"),
        locked_output(tmp_path / "out.mp4", "sa"),
    ):
        pass
    assert os.path.lexists(lock)
    assert not (tmp_path / "elsewhere").exists()


def test_an_output_without_a_name_can_be_locked_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with locked_output(Path(), "sa"):
        assert (tmp_path / ".here.lock").exists()
    with pytest.raises(BadInput, match="no name for an output"), locked_output(Path("/"), "sa"):
        pass


@pytest.mark.parametrize("letter", ["x", "日"])
def test_a_name_too_long_for_the_files_beside_it_is_refused_before_the_work(tmp_path: Path, letter: str) -> None:
    output = tmp_path / (letter * (240 // len(letter.encode())) + ".mp4")
    with pytest.raises(BadInput, match=r"it has 244 bytes, at most 220 are possible"), locked_output(output, "sa x"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_to_nothing_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "person.png").symlink_to("gone.png")
    with pytest.raises(BadInput, match=r"person\.png: found a link to gone\.png, which does not exist") as caught:
        require_file(tmp_path / "person.png", "an image")
    assert caught.value.hint == "mend the link, or name another file"


def test_an_error_in_a_temporary_folder_names_the_folder_that_it_becomes(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught, atomic_write(tmp_path / "out", folder=True) as temp:
        raise BadInput(temp / "f_1.png", "no room", "some", frame=1)
    assert caught.value.message == f"{tmp_path}/out/f_1.png, frame 1: found no room, expected some"
    assert caught.value.path == tmp_path / "out" / "f_1.png"
    with pytest.raises(SaError, match="no room"), atomic_write(tmp_path / "out.mp4"):
        raise SaError.from_json(BadInput("a.mp4", "no room", "some").to_json())  # of another process
