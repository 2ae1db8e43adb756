"""Reading videos: what a decoder gives must come out as it is meant to be seen, at the time it is meant to be seen."""

from __future__ import annotations

import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stableanimator_cli import media
from stableanimator_cli.errors import BadInput
from tests.media_samples import beep, corner_names, corners, make_video, noise, number_of, numbered


def images(clip) -> list[np.ndarray]:
    return [image for _, image in clip.frames()]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "count"),
    [
        ("a.mp4", "libx264", "yuv420p", 9),
        ("a.mkv", "libx264", "yuv420p", None),
        ("a.avi", "mpeg4", "yuv420p", None),
        ("a.webm", "libvpx-vp9", "yuv420p", None),
        ("a.ts", "libx264", "yuv420p", None),
        ("a.mp4", "libx265", "yuv420p10le", 9),
        ("a.mp4", "libx264", "yuv444p", 9),
        ("a.mov", "prores_ks", "yuv422p10le", 9),
        ("a.mkv", "ffv1", "gray", None),
        ("a.gif", "gif", "gray", 9),
    ],
)
def test_all_frames_of_common_codecs_in_order(tmp_path, name, codec, pix_fmt, count):
    path = make_video(tmp_path / name, numbered(9), codec=codec, pix_fmt=pix_fmt)
    clip = media.open_clip(path)
    assert (clip.size, clip.count, clip.fps, clip.audio) == ((64, 48), count, 10, False)
    times, frames = zip(*clip.frames(), strict=True)
    assert [number_of(frame) for frame in frames] == list(range(9))
    assert [round(float(time), 6) for time in times] == pytest.approx([index / 10 for index in range(9)], abs=1e-3)
    assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in frames)
    assert len(images(clip)) == 9, "a clip can be read again"


@pytest.mark.parametrize(
    ("rotation", "mirrored", "seen"),
    [(0, False, "rgbk"), (90, False, "gkrb"), (180, False, "kbgr"), (-90, False, "brkg"), (0, True, "grkb")],
)
def test_display_rotation_is_applied(tmp_path, rotation, mirrored, seen):
    path = make_video(tmp_path / "r.mp4", [corners()] * 2, rotation=rotation, mirrored=mirrored)
    clip = media.open_clip(path)
    turned = images(clip)[0]
    assert corner_names(turned) == seen
    assert clip.size == turned.shape[1::-1] == ((64, 48) if rotation in (0, 180) else (48, 64))


def test_varying_rate_keeps_exact_timestamps(tmp_path):
    ticks = [0, 33, 100, 400, 1000]
    path = make_video(tmp_path / "v.mkv", numbered(5), ticks=ticks)
    assert [time for time, _ in media.open_clip(path).frames()] == [Fraction(tick, 1000) for tick in ticks]


def test_times_start_at_the_first_frame(tmp_path):
    path = make_video(tmp_path / "late.mkv", numbered(3), ticks=[2500, 2600, 2750])
    assert [time for time, _ in media.open_clip(path).frames()] == [0, Fraction(1, 10), Fraction(1, 4)]


@pytest.mark.parametrize(("codec", "pix_fmt", "tolerance"), [("libx264", "yuv444p", 6), ("ffv1", "bgr0", 0)])
def test_odd_sizes(tmp_path, codec, pix_fmt, tolerance):
    frame = corners((63, 47))
    path = make_video(tmp_path / "odd.mkv", [frame] * 2, codec=codec, pix_fmt=pix_fmt)
    clip = media.open_clip(path)
    assert clip.size == (63, 47)
    inner = np.abs(images(clip)[0].astype(int) - frame)[8:-8:12, 8:-8:12]
    assert inner.max() <= tolerance


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "tolerance"),
    [("a.mov", "png", "rgba", 0), ("a.mov", "prores_ks", "yuva444p10le", 3), ("a.webm", "libvpx-vp9", "yuva420p", 4)],
)
def test_alpha_is_composited_on_black(tmp_path, name, codec, pix_fmt, tolerance):
    frame = np.full((48, 64, 4), 200, np.uint8)
    frame[:, :20, 3], frame[:, 20:40, 3], frame[:, 40:, 3] = 0, 128, 255
    path = make_video(tmp_path / name, [frame] * 3, codec=codec, pix_fmt=pix_fmt, source_format="rgba")
    seen = images(media.open_clip(path))[1].astype(int)
    for x, expected in ((10, 0), (30, 100), (52, 200)):
        assert np.abs(seen[24, x] - expected).max() <= tolerance


@pytest.mark.parametrize(("height", "matrix"), [(48, "ITU601"), (720, "ITU709")])
def test_untagged_video_is_read_with_the_matrix_of_its_size(tmp_path, height, matrix):
    from av.video.reformatter import ColorRange, Colorspace

    colour = np.broadcast_to(np.uint8([200, 40, 90]), (height, 64, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(colour), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace[matrix], dst_color_range=ColorRange.MPEG)
    frame.colorspace = 2
    path = tmp_path / "u.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    seen = images(media.open_clip(path))[0].astype(int)
    assert np.abs(seen - colour).max() <= 3


def test_pixels_that_are_not_square_are_stretched_to_square_ones(tmp_path):
    path = make_video(tmp_path / "wide.mp4", [corners()] * 2, aspect=Fraction(4, 3))
    clip = media.open_clip(path)
    assert clip.size == (85, 48)
    assert corner_names(images(clip)[0]) == "rgbk"


def test_sound_is_noticed_and_not_in_the_way(tmp_path):
    path = make_video(tmp_path / "s.mp4", numbered(10), sound=beep(1.0, 0.0, channels=2))
    clip = media.open_clip(path)
    assert clip.audio
    assert len(images(clip)) == clip.count == 10


def whole(tmp_path: Path, name: str) -> bytes:
    return make_video(tmp_path / name, noise(20, (64, 48)), movflags="faststart").read_bytes()


@pytest.mark.parametrize("name", ["t.mp4", "t.mkv"])
def test_truncated_video_names_the_first_missing_frame(tmp_path, name):
    data = whole(tmp_path, name)
    path = tmp_path / f"cut-{name}"
    path.write_bytes(data[: len(data) * 6 // 10])
    good = []
    with pytest.raises(BadInput) as caught:
        good.extend(media.open_clip(path).frames())
    assert 5 < len(good) < 20
    assert caught.value.frame == len(good)
    assert f"frame {len(good)}" in caught.value.message
    assert f"0:{len(good)}" in caught.value.hint
    used = media.take(media.open_clip(path), 0, len(good))
    assert len(images(used)) == len(good), "the hint of the error works"


@pytest.mark.parametrize("number", range(2, 18))
def test_a_damaged_frame_is_named_and_the_frames_behind_it_do_not_move_up(tmp_path, number):
    """FFmpeg reports the damage of some frames, and drops others without an error."""
    path = make_video(tmp_path / "whole.mp4", numbered(20))
    expected = images(media.open_clip(path))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        order = sorted(packet.pts for packet in packets)
        start, size, shown = packets[number].pos, packets[number].size, order.index(packets[number].pts)
    data = bytearray(path.read_bytes())
    data[start + 5 : start + size] = bytes(value ^ 0x5A for value in data[start + 5 : start + size])
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    good = []
    with pytest.raises(BadInput, match="cannot be decoded") as caught:
        good.extend(pixels for _, pixels in media.open_clip(damaged).frames())
    assert caught.value.frame == len(good) <= shown
    for one, other in zip(good, expected, strict=False):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mkv", "mpeg2video")])
def test_a_frame_that_the_decoder_painted_over_is_named(tmp_path, name, codec):
    path = make_video(tmp_path / name, noise(12, (64, 48)), codec=codec)
    good = images(media.open_clip(path))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start, size = packets[6].pos, packets[6].size
    data = bytearray(path.read_bytes())
    data[start + size // 2 : start + size] = bytes(size - size // 2)
    path.write_bytes(data)
    shown = []
    with pytest.raises(BadInput, match="a damaged frame") as caught:
        shown.extend(pixels for _, pixels in media.open_clip(path).frames())
    assert caught.value.frame == len(shown) == 6
    for one, other in zip(shown, good, strict=False):
        np.testing.assert_array_equal(one, other)


def test_truncation_between_two_frames_is_noticed(tmp_path):
    data = whole(tmp_path, "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "between.mp4"
    path.write_bytes(data[: sum(packets[9])])
    with pytest.raises(BadInput, match="after 10 of 20 frames") as caught:
        images(media.open_clip(path))
    assert caught.value.frame == 10


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("t.wmv", "wmv2", "yuv420p"), ("t.avi", "mpeg4", "yuv420p"), ("t.gif", "gif", "rgb8")],
)
def test_containers_that_ffmpeg_reads_to_a_cut_without_an_error(tmp_path, name, codec, pix_fmt):
    path = make_video(tmp_path / name, noise(20, (64, 48)), codec=codec, pix_fmt=pix_fmt)
    data, expected = path.read_bytes(), images(media.open_clip(path))
    assert len(expected) == 20
    refused = 0
    for tenths in range(5, 10):
        path.write_bytes(data[: len(data) * tenths // 10])
        good = []
        with pytest.raises(BadInput, match=r"a cut-off frame|a damaged frame|the end of the data") as caught:
            good.extend(pixels for _, pixels in media.open_clip(path).frames())
        assert caught.value.frame == len(good) <= 20
        refused += "damaged" not in caught.value.message
        for one, other in zip(good, expected, strict=False):
            np.testing.assert_array_equal(one, other)
    assert refused, "some cuts leave no damage"


def test_a_gif_without_its_trailer_is_whole(tmp_path):
    path = make_video(tmp_path / "t.gif", noise(5, (64, 48)), codec="gif", pix_fmt="rgb8")
    assert path.read_bytes().endswith(b";")
    path.write_bytes(path.read_bytes()[:-1])
    assert len(images(media.open_clip(path))) == 5


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_an_avi_whose_size_was_never_written_is_read_to_its_end(tmp_path, size):
    path = make_video(tmp_path / "t.avi", noise(5, (64, 48)), codec="mpeg4")
    data = bytearray(path.read_bytes())
    data[4:8] = size.to_bytes(4, "little")
    path.write_bytes(data)
    assert len(images(media.open_clip(path))) == 5


def test_garbage_in_the_middle_is_an_error_with_its_frame(tmp_path):
    data = bytearray(whole(tmp_path, "g.mp4"))
    middle = len(data) * 6 // 10
    data[middle : middle + 20000] = bytes(20000)
    path = tmp_path / "garbage.mp4"
    path.write_bytes(data)
    with pytest.raises(BadInput) as caught:
        images(media.open_clip(path))
    assert caught.value.frame is not None
    assert caught.value.frame > 3


def test_moov_cut_off_is_refused_at_once(tmp_path):
    data = make_video(tmp_path / "m.mp4", noise(10, (64, 48))).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"cut\.mp4.*no video or image"):
        media.open_clip(path)


def test_text_called_video(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("shopping list\n" * 40)
    with pytest.raises(BadInput, match=r"notes\.mp4: found data that is no video.*expected a video") as caught:
        media.open_clip(path)
    assert caught.value.hint


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "song.wav"
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(8000))
    with pytest.raises(BadInput, match=r"without video \(it holds audio\)"):
        media.open_clip(path)


@pytest.mark.parametrize("name", ["none.mkv", "none.mp4"])
def test_header_without_frames(tmp_path, name):
    path = tmp_path / name
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    with pytest.raises(BadInput, match=rf"{name}: found .*, expected (a video|at least one frame)"):
        media.open_clip(path)


def test_not_one_frame_decodes(tmp_path):
    data = whole(tmp_path, "d.mp4")
    start = data.index(b"mdat") + 4
    path = tmp_path / "zeros.mp4"
    path.write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(BadInput, match=r"zeros\.mp4, frame 0: found .*, expected at least one frame"):
        media.open_clip(path)


def test_a_colon_in_the_name_is_no_protocol(tmp_path):
    path = make_video(tmp_path / "plain.mp4", numbered(2)).rename(tmp_path / "take:1 100%.mp4")
    assert media.open_clip(path).count == 2


PROGRAM = """
import resource, sys
from stableanimator_cli import media
frames = iter(media.resample(media.open_clip(sys.argv[1]), 30).frames())
for _ in range(100):
    next(frames)
early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rest = sum(1 for _ in frames)
print(rest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early) // 1024)
"""


def test_memory_does_not_grow_with_length(tmp_path):
    """600 frames of 320x240 are 132 MiB as arrays; a whole pass may not need a fifth of that more than 100 frames did.

    The peak is taken of a process of its own, native memory included; kilobytes on Linux, where it is measured.
    """
    path = make_video(tmp_path / "long.mp4", [corners((320, 240))] * 600, codec="mpeg4", fps=30)
    ran = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True)
    rest, grown = map(int, ran.stdout.split())
    assert rest == 500
    assert grown < 26
