"""One video to a skeleton video: sound, exact time, alignment."""

from __future__ import annotations

import dataclasses
import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.errors import BadInput, NoPerson
from stableanimator_cli.media import VideoWriter, open_clip
from stableanimator_cli.motion.motion_file import load_motion, staged_motion
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.preprocess import clip, poses
from stableanimator_cli.preprocess.poses import even_frames, write_poses
from stableanimator_cli.progress import NullReporter
from tests.conftest import largest_file
from tests.media_samples import beep, make_video
from tests.preprocess import drawn
from tests.preprocess.test_convert import Heard, two_people

NTSC = Fraction(30000, 1001)


def test_one_video_becomes_a_lossless_skeleton_video_and_its_motion(preprocess, tmp_path):
    video = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(20, missing=(7,)), fps=NTSC)
    out, heard = tmp_path / "poses.mp4", Heard()
    report = preprocess(video, poses=out, reporter=heard)
    assert (report.output, report.frames) == (out, 20)
    assert any("1 frames filled in 1 gaps" in note for note in heard.notes)
    clip, motion = open_clip(out), load_motion(tmp_path / "poses.npz")
    assert (clip.fps, clip.count, clip.size) == (NTSC, 20, drawn.SIZE)
    for index, (_, picture) in enumerate(clip.frames()):
        np.testing.assert_array_equal(picture, draw_frame(motion, index))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dance.mp4", "poses.mp4", "poses.npz"]


@pytest.mark.parametrize("failing", ["mp4", "npz"])
def test_a_skeleton_video_and_its_motion_appear_together_or_not_at_all(tmp_path, failing):
    few, many = two_people(), two_people()
    many.keypoints[..., 2] = np.random.default_rng(0).uniform(0.9, 1, many.keypoints.shape[:3])
    out, motion = tmp_path / "poses.mp4", many if failing == "npz" else few
    write_poses(out, motion, reporter=NullReporter())
    sizes = {path.suffix[1:]: path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes, key=sizes.__getitem__) == failing
    write_poses(out, few, fps=Fraction(5), reporter=NullReporter())
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(old) == ["poses.mp4", "poses.npz"]
    for _ in range(2):
        with (
            largest_file(max(sizes.values()) - 100),
            pytest.raises(BadInput, match=rf"poses\.{failing}.*: found no room left to write"),
        ):
            write_poses(out, motion, reporter=NullReporter())
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
        for path in tmp_path.iterdir():
            path.unlink()
        old = {}


def test_no_moment_leaves_a_skeleton_video_beside_the_motion_of_another(tmp_path, monkeypatch):
    out, beside = tmp_path / "poses.mp4", tmp_path / "poses.npz"
    write_poses(out, two_people(), reporter=NullReporter())
    old, other = (out.read_bytes(), beside.read_bytes()), two_people()
    other.keypoints[..., 0] += 7
    seen, replace = [], os.replace

    def note_after(source, target):
        replace(source, target)
        seen.append((out.read_bytes() if out.exists() else None, beside.read_bytes()))

    monkeypatch.setattr(os, "replace", note_after)
    write_poses(out, other, reporter=NullReporter())
    new = seen[-1]
    assert len(seen) > 1
    assert None not in new
    assert all(pair in (old, new, (None, old[1]), (None, new[1])) for pair in seen)


def test_a_motion_whose_video_cannot_appear_is_removed(preprocess, tmp_path, monkeypatch):
    video, out = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(3)), tmp_path / "poses.mp4"

    def stage_and_take_the_name(path, motion):
        out.write_text("another program's")
        return staged_motion(path, motion)

    monkeypatch.setattr(poses, "staged_motion", stage_and_take_the_name)
    with pytest.raises(BadInput, match="not written by sa"):
        preprocess(video, poses=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dance.mp4", "poses.mp4"]
    assert out.read_text() == "another program's"


def test_sound_goes_along(preprocess, tmp_path):
    frames = [drawn.frame(box) for box in drawn.walk(20)]
    video = make_video(tmp_path / "dance.mp4", frames, fps=10, sound=beep(2.0, 1.0))
    preprocess(video, poses=tmp_path / "poses.mp4", frames="4:")
    assert open_clip(tmp_path / "poses.mp4").audio


def test_the_report_of_poses_is_the_same_with_and_without_clips(preprocess, tmp_path):
    video = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(20, missing=(7,)), fps=NTSC)
    alone = preprocess(video, poses=tmp_path / "poses.mp4").to_json()["poses"]
    for _ in range(2):  # the second time the clip is found finished
        heard = Heard()
        report = preprocess(video, poses=tmp_path / "poses.mp4", output=tmp_path / "clips", reporter=heard)
        assert report.to_json()["poses"] == alone
        assert heard.notes.count("dance.mp4: 1 frames filled in 1 gaps, 0 points filled") == 1
    assert alone["repairs"]["frames"] == 1


def test_sound_that_cannot_be_decoded_is_reported(preprocess, tmp_path):
    video = make_video(tmp_path / "a.mkv", [drawn.frame(box) for box in drawn.walk(3)], sound=beep(0.3, 0))
    video.write_bytes(video.read_bytes().replace(b"A_AAC", b"A_AC9"))
    for given in ({}, {"output": tmp_path / "clips"}):
        heard = Heard()
        preprocess(video, poses=tmp_path / "poses.mp4", reporter=heard, **given)
        assert "a.mkv: its sound cannot be decoded: the skeleton video will have no sound" in heard.warnings
        assert not open_clip(tmp_path / "poses.mp4").audio


def test_a_varying_rate_lasts_as_long_and_npz_keeps_the_times(preprocess, tmp_path):
    times = [0, 1, 2, 3, 8, 9, 10, 11]  # tenths of a second
    frames = [drawn.frame(box) for box in drawn.walk(8)]
    video = make_video(tmp_path / "vfr.mp4", frames, fps=10, ticks=times, time_base=Fraction(1, 10))
    preprocess(video, poses=tmp_path / "poses.mp4")
    motion, clip = load_motion(tmp_path / "poses.npz"), open_clip(tmp_path / "poses.mp4")
    assert [round(float(t), 2) for t in motion.times or ()] == [t / 10 for t in times]
    assert clip.count is not None
    assert clip.fps is not None
    assert abs(clip.count / clip.fps - Fraction(11 * 8, 70)) < 1 / clip.fps


def test_aligned_to_a_picture_and_the_distance_told(preprocess, tmp_path):
    video = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(6, step=0))
    reference = drawn.write_reference(tmp_path / "ref.png", (80, 8, 120, 72))
    heard = Heard()
    flags = {"reference": reference, "poses": tmp_path / "poses.mp4", "reporter": heard}
    told = preprocess(video, **flags).to_json()["poses"]["alignment"]
    assert told["mode"] == "none"
    assert told["before"]["number"] == told["after"]["number"] > 1
    assert "misalignment" in heard.notes[-1]
    assert not any("the first is used" in note for note in heard.notes)
    with Image.open(reference) as image:
        image.save(tmp_path / "ref.gif", save_all=True, append_images=[image.rotate(180)])
    preprocess(video, **flags | {"reference": tmp_path / "ref.gif"}, output=tmp_path / "clips")
    assert heard.notes.count("ref.gif has 2 frames; the first is used") == 1
    for mode in ("affine", "upstream", "similarity", "bones"):
        done = preprocess(video, align=mode, preview=True, **flags).to_json()["poses"]
        assert done["alignment"]["after"]["number"] < 0.05, mode
    points = load_motion(tmp_path / "poses.npz").keypoints[0, 0]
    assert points[:, 0].mean() > 80
    assert open_clip(tmp_path / "poses.preview.png").size[0] >= 512


def test_a_reference_without_anybody_is_named(preprocess, tmp_path):
    video = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(3))
    drawn.write_image(tmp_path / "ref.png", drawn.frame(None))
    with pytest.raises(NoPerson, match=r"ref\.png: no person found"):
        preprocess(video, poses=tmp_path / "poses.mp4", reference=tmp_path / "ref.png")
    assert not (tmp_path / "poses.mp4").exists()


def test_with_an_output_too_nothing_is_detected_twice(preprocess, tmp_path):
    video = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(6))
    report = preprocess(video, poses=tmp_path / "poses.mp4", output=tmp_path / "clips").to_json()
    assert report["poses"]["frames"] == 6
    assert (tmp_path / "clips" / "dance" / "motion.npz").read_bytes() == (tmp_path / "poses.npz").read_bytes()


def test_odd_sizes_rotation_and_ten_bits_come_through(preprocess, tmp_path):
    with VideoWriter(tmp_path / "odd.mp4", (161, 121), 8, lossless=True) as video:
        for box in drawn.walk(4):
            video.write(drawn.frame(box, (161, 121)))
    frames = [drawn.frame(box) for box in drawn.walk(4)]
    make_video(tmp_path / "turned.mp4", frames, fps=8, rotation=90)
    make_video(tmp_path / "deep.mp4", frames, fps=8, codec="libx265", pix_fmt="yuv420p10le")
    for name, size in (("odd", (161, 121)), ("turned", (120, 160)), ("deep", drawn.SIZE)):
        preprocess(tmp_path / f"{name}.mp4", poses=tmp_path / "poses.mp4")
        motion = load_motion(tmp_path / "poses.npz")
        assert (motion.size, motion.present.sum()) == (size, 4), name


@pytest.mark.parametrize("module", [poses, clip])
def test_numbers_of_several_people_that_begin_late_are_reported(preprocess, tmp_path, monkeypatch, module):
    video = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(8))
    output = {"poses": tmp_path / "poses.mp4"} if module is poses else {"output": tmp_path / "clips"}
    words = (
        "dance.mp4: people are numbered as they appear from frame 5 on; `sa animate --frames` uses the numbers of the "
        "full video"
    )

    def notes(frames):
        heard = Heard()
        preprocess(video, frames=frames, reporter=heard, **output)
        return [note for note in heard.notes if "people are numbered" in note]

    assert notes("5:7") == []  # one person alone
    real = module.extract_motion

    def with_another(*args, **kwargs):
        capture = real(*args, **kwargs)
        return dataclasses.replace(capture, found=capture.found + 1)

    monkeypatch.setattr(module, "extract_motion", with_another)
    assert [notes(frames) for frames in (":3", "5:", "-3:")] == [[], [words], [words]]
    if module is clip:  # one note, however many videos
        drawn.write_video(tmp_path / "more" / "a.mp4", drawn.walk(8))
        heard = Heard()
        preprocess(video, tmp_path / "more", frames="4:", output=tmp_path / "clips", reporter=heard)
        assert [note for note in heard.notes if "people are" in note] == [
            words.replace("dance.mp4", "2 videos").replace("frame 5", "frame 4")
        ]


def test_ticks_of_a_constant_rate():
    motion = two_people()
    assert even_frames(motion) == (list(range(6)), NTSC)
    assert even_frames(motion, NTSC / 2)[0] == [0, 2, 4]
