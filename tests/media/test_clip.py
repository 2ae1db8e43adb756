"""The front door of the media room: slices, rates, descriptions, and what a user types wrong."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from stableanimator_cli import media
from stableanimator_cli.errors import BadInput, ConfigError
from tests.media_samples import make_video, number_of, numbered


def numbers(clip) -> list[int]:
    return [number_of(image) for _, image in clip.frames()]


@pytest.fixture
def clip(tmp_path):
    return media.open_clip(make_video(tmp_path / "ten.mp4", numbered(10)))


@pytest.fixture
def uncounted(tmp_path):
    return media.open_clip(make_video(tmp_path / "ten.mkv", numbered(10)))


@pytest.mark.parametrize(
    ("start", "stop"), [(None, None), (2, 5), (None, 3), (7, None), (-3, None), (None, -8), (-4, -2), (8, 99), (0, 1)]
)
def test_take_is_a_python_slice(clip, start, stop):
    taken = media.take(clip, start, stop)
    assert numbers(taken) == list(range(10))[start:stop]
    assert taken.count == len(range(10)[start:stop])


def test_take_keeps_the_times_of_the_source(clip):
    assert [time for time, _ in media.take(clip, 3, 5).frames()] == [Fraction(3, 10), Fraction(4, 10)]


def test_take_without_a_known_count(uncounted):
    assert numbers(media.take(uncounted, 4, 6)) == [4, 5]
    assert numbers(media.take(uncounted, 8)) == [8, 9]
    assert media.take(uncounted, 4, 6).count is None
    with pytest.raises(ConfigError, match=r"frames: found '-3:'.*numbers from 0"):
        media.take(uncounted, -3)


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (6, 2), (10, None), (40, 50)])
def test_an_empty_slice_is_an_error(clip, uncounted, start, stop):
    with pytest.raises(BadInput, match="10 frames, expected frames in"):
        media.take(clip, start, stop)
    with pytest.raises(BadInput, match="no frame in the range"):
        list(media.take(uncounted, start, stop).frames())


@pytest.mark.parametrize(("fps", "shown"), [(10, 10), (5, 5), (20, 20), (Fraction(24000, 1001), 24), (7, 7)])
def test_resample_keeps_the_duration(clip, fps, shown):
    again = media.resample(clip, fps)
    times, images = zip(*again.frames(), strict=True)
    assert len(times) == shown
    assert list(times) == [index / Fraction(fps) for index in range(shown)]
    assert [number_of(image) for image in images] == [int(time * 10 + Fraction(1, 100)) for time in times]


def test_resample_of_a_varying_rate_shows_the_frame_of_the_moment(tmp_path):
    path = make_video(tmp_path / "v.mp4", numbered(4), ticks=[0, 100, 500, 600], time_base=Fraction(1, 1000))
    assert numbers(media.resample(media.open_clip(path), 10))[:7] == [0, 1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("fps", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)])
def test_resample_to_the_same_rate_drops_and_doubles_nothing(tmp_path, fps):
    """Matroska rounds times to milliseconds, 0.067 for 2/30: later than the tick of the new clock."""
    path = make_video(tmp_path / "r.mkv", numbered(25), fps=fps)
    assert numbers(media.resample(media.open_clip(path), fps)) == list(range(25))


def test_resample_after_take_starts_at_the_first_frame_taken(clip):
    taken = media.resample(media.take(clip, 4, 8), 5)
    assert [(time, number_of(image)) for time, image in taken.frames()] == [
        (Fraction(2, 5), 4),
        (Fraction(3, 5), 6),
    ]


def test_resample_gives_a_folder_a_clock(tmp_path):
    for index, image in enumerate(numbered(3)):
        media.write_image(tmp_path / f"{index}.png", image)
    clip = media.resample(media.open_clip(tmp_path), 25)
    assert [time for time, _ in clip.frames()] == [0, Fraction(1, 25), Fraction(2, 25)]
    assert (clip.fps, clip.count) == (25, 3)


@pytest.mark.parametrize("fps", [0, -5])
def test_resample_refuses_a_rate_that_is_none(clip, fps):
    with pytest.raises(ConfigError, match=f"fps: found '{fps}'"):
        media.resample(clip, fps)


def test_missing_file_suggests_its_neighbour(clip):
    with pytest.raises(BadInput, match="no such file") as caught:
        media.open_clip(clip.path.with_name("tem.mp4"))
    assert caught.value.hint == f"did you mean {clip.path}?"


def test_missing_folder_is_said(tmp_path):
    with pytest.raises(BadInput) as caught:
        media.open_clip(tmp_path / "nowhere" / "a.mp4")
    assert str(tmp_path / "nowhere") in caught.value.hint


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(BadInput, match=rf"{name}: found an empty file"):
        media.open_clip(tmp_path / name)


def test_import_is_free_of_the_heavy_libraries():
    program = (
        "import sys, stableanimator_cli.media; print(*{'torch', 'cv2', 'onnxruntime', 'scipy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_frames_belong_to_the_caller(clip):
    """A caller may draw on a frame: the next pass sees the file, not the drawing."""
    for _, image in clip.frames():
        assert image.flags.c_contiguous
        image[:] = 255
    assert np.array_equal(numbers(clip), range(10))
