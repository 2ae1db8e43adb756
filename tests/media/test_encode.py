"""Writing videos: colours, rates, sound and tags survive; and a file is whole or not there."""

from __future__ import annotations

import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stableanimator_cli import media
from stableanimator_cli.errors import BadInput, ConfigError
from tests.media_samples import beep, heard, make_video, noise, number_of, numbered, onset

COLOURS = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 150, 120), (250, 240, 10),
]  # fmt: skip


def written(path: Path, frames: list[np.ndarray], fps: Fraction | int = 10, **settings) -> Path:
    size = (frames[0].shape[1], frames[0].shape[0])
    with media.VideoWriter(path, size, fps, **settings) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def images(path: Path) -> list[np.ndarray]:
    return [image for _, image in media.open_clip(path).frames()]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_flat_colours_survive(tmp_path):
    frames = [np.full((48, 64, 3), colour, np.uint8) for colour in COLOURS]
    path = written(tmp_path / "c.mp4", frames)
    for seen, frame in zip(images(path), frames, strict=True):
        assert np.abs(seen.astype(int) - frame).max() <= 2
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        assert tags == (1, 1, 1, 1), "BT.709, limited range"
        assert context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (1, 1), (5, 8)])
def test_lossless_is_bit_equal_at_any_size(tmp_path, size):
    frames = noise(6, size)
    path = written(tmp_path / "l.mp4", frames, lossless=True)
    assert all(np.array_equal(seen, frame) for seen, frame in zip(images(path), frames, strict=True))


@pytest.mark.parametrize(
    "fps", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25, 2), Fraction(1), Fraction(120)]
)
@pytest.mark.parametrize("lossless", [False, True])
def test_rate_and_times_are_exact(tmp_path, fps, lossless):
    clip = media.open_clip(written(tmp_path / "r.mp4", numbered(7), fps, lossless=lossless))
    assert (clip.fps, clip.count) == (fps, 7)
    assert [time for time, _ in clip.frames()] == [index / fps for index in range(7)]


def test_one_frame(tmp_path):
    clip = media.open_clip(written(tmp_path / "one.mp4", numbered(1), Fraction(30000, 1001)))
    assert (clip.count, clip.fps) == (1, Fraction(30000, 1001))


def test_tags_come_back(tmp_path):
    config = '{"prompt": "ä=;#\\\\ \\"two\\"\\nlines", "list": [' + ", ".join(["0.25"] * 5000) + "]}"
    tag = {"sa.kind": "skeleton", "sa.Config": config, "title": "a walk"}
    clip = media.open_clip(written(tmp_path / "t.mp4", numbered(2), tag=tag))
    assert {key: clip.tag[key] for key in tag} == tag


def test_the_same_frames_are_the_same_bytes(tmp_path):
    frames = noise(12, (64, 48))
    a, b = written(tmp_path / "a.mp4", frames), written(tmp_path / "b.mp4", frames)
    assert a.read_bytes() == b.read_bytes()


def test_the_index_is_in_front(tmp_path):
    data = written(tmp_path / "f.mp4", numbered(3)).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [
        ("s.mp4", "aac", "aac"),
        ("s.mkv", "libmp3lame", "mp3"),
        ("s.mkv", "libopus", "aac"),
        ("s.mov", "pcm_s16le", "aac"),
    ],
)
@pytest.mark.parametrize("cut", [None, (0.5, 1.4)])
def test_sound_stays_in_sync(tmp_path, name, codec, kept, cut):
    rate = 48000 if codec == "libopus" else 44100
    source = make_video(
        tmp_path / name, numbered(20), sound=beep(2.0, 1.0, rate=rate, channels=2), sound_codec=codec, sound_rate=rate
    )
    before = onset(*heard(source)[1:])
    start, frames = (0.0, 20) if cut is None else (cut[0], 9)
    path = written(tmp_path / "out.mp4", numbered(frames), audio_from=source, audio_range=cut)
    found, times, levels = heard(path)
    assert found == kept
    assert onset(times, levels) == pytest.approx(before - start, abs=0.002)
    assert times[-1] == pytest.approx(frames / 10, abs=0.06)
    assert media.open_clip(path).audio
    assert [number_of(image) for image in images(path)] == list(range(frames))


def test_sound_is_measured_from_the_first_frame_of_its_source(tmp_path):
    source = make_video(
        tmp_path / "late.mkv", numbered(10), ticks=[500 + 100 * index for index in range(10)], sound=beep(2.0, 1.0)
    )
    assert onset(*heard(source)[1:]) == pytest.approx(0.5, abs=0.03)
    path = written(tmp_path / "out.mp4", numbered(10), audio_from=source)
    assert onset(*heard(path)[1:]) == pytest.approx(onset(*heard(source)[1:]), abs=0.002)


def test_sound_ends_with_the_picture(tmp_path):
    source = make_video(tmp_path / "s.mp4", numbered(30), sound=beep(3.0, 0.0))
    _, times, _ = heard(written(tmp_path / "out.mp4", numbered(5), audio_from=source))
    assert times[-1] == pytest.approx(0.5, abs=0.06)


def test_sound_is_interleaved_with_the_picture(tmp_path):
    source = make_video(tmp_path / "s.mp4", numbered(30), sound=beep(3.0, 0.0))
    path = written(tmp_path / "out.mp4", noise(30, (64, 48)), audio_from=source)
    with av.open(str(path)) as container:
        order = [packet.stream.type[0] for packet in container.demux() if packet.size]
    assert order.index("a") < 15
    assert "v" in order[-40:]
    assert "v" * 28 not in "".join(order)


def test_a_source_without_sound_is_fine(tmp_path):
    source = make_video(tmp_path / "mute.mp4", numbered(3))
    assert not media.open_clip(written(tmp_path / "out.mp4", numbered(3), audio_from=source)).audio


def test_sound_that_cannot_be_decoded_is_left_out(tmp_path):
    source = make_video(tmp_path / "s.mkv", numbered(3), sound=beep(0.3, 0.0))
    source.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_AC9"))
    assert not media.open_clip(source).audio
    assert not media.open_clip(written(tmp_path / "out.mp4", numbered(3), audio_from=source)).audio


def test_a_missing_source_of_sound_leaves_nothing(tmp_path):
    with pytest.raises(BadInput, match=r"none\.mp4: found no such file"):
        written(tmp_path / "out.mp4", numbered(3), audio_from=tmp_path / "none.mp4")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_nothing(tmp_path, error):
    with pytest.raises(error), media.VideoWriter(tmp_path / "out.mp4", (64, 48), 10) as writer:  # noqa: PT012
        writer.write(numbered(1)[0])
        assert names(tmp_path) != ["out.mp4"], "only the temporary file"
        raise error
    assert names(tmp_path) == []


def test_an_error_about_another_file_is_not_blamed_on_the_video(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights"), media.VideoWriter(tmp_path / "out.mp4", (64, 48), 10):
        (tmp_path / "weights").read_bytes()
    assert names(tmp_path) == []


def test_an_old_video_stays_until_the_new_one_is_whole(tmp_path):
    path = written(tmp_path / "out.mp4", numbered(5))
    old = path.read_bytes()
    with pytest.raises(BadInput, match="no frame to write"), media.VideoWriter(path, (64, 48), 10):
        pass
    assert path.read_bytes() == old
    written(path, numbered(2))
    assert media.open_clip(path).count == 2
    assert names(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("room", [300, 60_000])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, room):
    """A limit on the size of files stands for the full disk: both come as an ``OSError`` out of FFmpeg."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(BadInput, match=r"out\.mp4.*no room left to write") as caught:
            written(tmp_path / "out.mp4", noise(40, (64, 48)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in caught.value.hint
    assert names(tmp_path) == []


def test_missing_folders_are_made_and_files_are_not_folders(tmp_path):
    assert written(tmp_path / "a" / "b" / "out.mp4", numbered(1)).exists()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="in the place of a folder"):
        written(tmp_path / "file" / "out.mp4", numbered(1))
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(BadInput, match="found a folder, expected a name for a file"):
        written(tmp_path / "taken.mp4", numbered(1))


@pytest.mark.parametrize(
    ("name", "size", "fps", "settings", "message"),
    [
        ("o.mp4", (63, 48), 10, {}, "size: found '63x48', expected an even width and height"),
        ("o.mp4", (64, 47), 10, {}, "size: found '64x47'"),
        ("o.mp4", (0, 48), 10, {"lossless": True}, "size: found '0x48'"),
        ("o.mp4", (64, 48), 0, {}, "fps: found '0'"),
        ("o.avi", (64, 48), 10, {}, r"found 'o\.avi', expected a name ending in \.mp4"),
        ("o.mp4", (64, 48), 10, {"audio_range": (2, 1)}, r"audio range: found \(2, 1\)"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, name, size, fps, settings, message):
    with pytest.raises(ConfigError, match=message):
        media.VideoWriter(tmp_path / name, size, fps, **settings)
    assert names(tmp_path) == []


def test_odd_size_hint_names_the_next_even_one(tmp_path):
    with pytest.raises(ConfigError) as caught:
        media.VideoWriter(tmp_path / "o.mp4", (63, 47), 10)
    assert caught.value.hint == "use 64x48, or write lossless"


def test_frames_of_another_shape_are_a_bug_of_the_caller(tmp_path):
    for wrong in (np.zeros((47, 64, 3), np.uint8), np.zeros((48, 64, 3), np.float32), np.zeros((48, 64), np.uint8)):
        with pytest.raises(ValueError, match="frame"):
            written_one(tmp_path / "o.mp4", wrong)
    assert names(tmp_path) == []


def written_one(path: Path, frame: np.ndarray) -> None:
    with media.VideoWriter(path, (64, 48), 10) as writer:
        writer.write(frame)


def test_the_same_frames_give_the_same_bytes_whatever_memory_held_before(tmp_path):
    """Frames that have little to do with one another, where x264's macroblock tree took leftovers for costs."""
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8).astype(np.float64)
    soft = [gaussian_filter(frame, (2, 2, 0)) for frame in noisy]
    frames = [np.clip((frame - 128) * 4 + 128, 0, 255).astype(np.uint8) for frame in soft]
    files = set()
    for _ in range(20):
        with media.VideoWriter(tmp_path / "out.mp4", (64, 64), 30) as writer:
            for frame in frames:
                leftovers = [rng.integers(0, 256, rng.integers(1, 200_000), dtype=np.uint8) for _ in range(20)]
                del leftovers
                writer.write(frame)
        files.add((tmp_path / "out.mp4").read_bytes())
    assert len(files) == 1
