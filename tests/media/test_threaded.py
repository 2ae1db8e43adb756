"""A video written by a thread is the one that is written plainly; and whole or not there, whoever fails."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli import media
from stableanimator_cli.errors import BadInput
from tests.conftest import largest_file
from tests.media_samples import beep, make_video, noise, numbered

SIZE = (64, 48)


def behind(path: Path, frames: list[np.ndarray], ahead: int = 2, **settings) -> Path:
    with media.WriterBehind(media.VideoWriter(path, SIZE, Fraction(10), **settings), ahead) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Encoding waits for this event before each frame."""
    go, write = threading.Event(), media.VideoWriter.write

    def wait(self, frame):
        assert go.wait(30)
        write(self, frame)

    monkeypatch.setattr(media.VideoWriter, "write", wait)
    return go


@pytest.mark.parametrize("sound", [False, True])
def test_its_bytes_are_those_of_the_plain_writer(tmp_path, sound):
    settings = {"tag": {"sa.kind": "animation"}}
    if sound:
        settings["audio_from"] = make_video(tmp_path / "s.mp4", numbered(20), sound=beep(2.0, 1.0))
    frames = noise(20, SIZE)
    with media.VideoWriter(tmp_path / "plain.mp4", SIZE, 10, **settings) as writer:
        for frame in frames:
            writer.write(frame)
    for ahead in (1, 30):
        assert behind(tmp_path / "b.mp4", frames, ahead, **settings).read_bytes() == writer.path.read_bytes()


def test_frames_are_made_while_others_are_encoded_and_only_a_few_wait(tmp_path, slow):
    made: list[int] = []

    def make() -> None:
        with media.WriterBehind(media.VideoWriter(tmp_path / "out.mp4", SIZE, 10), 3) as writer:
            for index, frame in enumerate(numbered(12)):
                made.append(index)
                writer.write(frame)

    maker = threading.Thread(target=make)
    maker.start()
    limit = time.monotonic() + 30
    while len(made) < 5 and time.monotonic() < limit:
        time.sleep(0.01)
    maker.join(0.2)
    assert len(made) == 5  # one is encoded, three stand in line, the fifth waits for room
    slow.set()
    maker.join(30)
    assert media.open_clip(tmp_path / "out.mp4").count == len(made) == 12


@pytest.mark.parametrize("room", [300, 60_000])
def test_a_full_disk_is_said_as_by_the_plain_writer(tmp_path, room):
    """Before the first frame, and in the middle: the thread's error is the block's."""
    with largest_file(room), pytest.raises(BadInput, match=r"out\.mp4.*no room left to write") as caught:
        behind(tmp_path / "out.mp4", noise(40, SIZE))
    assert "free some space" in str(caught.value.hint)
    assert names(tmp_path) == []


def test_a_failure_ends_who_makes_frames_and_does_not_wait_for_the_last(tmp_path):
    made: list[int] = []
    wrong = np.zeros((4, 4, 3), np.uint8)
    with (  # noqa: PT012
        pytest.raises(ValueError, match="a frame of 4x4 in a video of 64x48"),
        media.WriterBehind(media.VideoWriter(tmp_path / "out.mp4", SIZE, 10), 2) as writer,
    ):
        for index in range(10_000):
            made.append(index)
            writer.write(wrong)
    assert len(made) < 10_000
    assert names(tmp_path) == []


def test_a_failure_at_the_last_frame_is_not_lost(tmp_path):
    with pytest.raises(ValueError, match="a frame of 4x4"):
        behind(tmp_path / "out.mp4", [*numbered(3), np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(BadInput, match="no frame to write"):
        behind(tmp_path / "out.mp4", [])
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_left_by_an_error_it_drops_what_waits_and_leaves_nothing(tmp_path, error, slow):
    writer = media.WriterBehind(media.VideoWriter(tmp_path / "out.mp4", SIZE, 10), 8)
    with pytest.raises(error), writer:  # noqa: PT012
        for frame in numbered(5):
            writer.write(frame)
        slow.set()
        raise error
    assert names(tmp_path) == []
    assert writer._writer.frames <= 5


def test_interrupted_while_the_last_frames_are_encoded_nothing_appears(tmp_path, monkeypatch):
    """Ctrl-C in the end of the block, where the thread is waited for."""
    join, joins = threading.Thread.join, 0

    def interrupted(self, timeout=None):
        nonlocal joins
        joins += 1
        if joins == 1:
            raise KeyboardInterrupt
        join(self, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            behind(tmp_path / "out.mp4", numbered(5), 8)
    assert joins == 2
    assert names(tmp_path) == []
