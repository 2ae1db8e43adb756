"""A driving motion in every form the user may have: frames, rate, sound, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.animate import driving_frames, driving_video
from stableanimator_cli.animate.driving import open_driving
from stableanimator_cli.animate.driving_frames import Driving
from stableanimator_cli.animate.inputs import check_motion
from stableanimator_cli.catalogue import open_model
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing, NoPerson
from stableanimator_cli.media import VideoWriter, write_image
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.keypoints import face_box
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.openpose import save_openpose
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.records import ModelFolder
from tests.animate.clips import FORMS, Heard, clip_of, in_form, skeleton_video
from tests.media_samples import beep, make_video, noise, numbered
from tests.preprocess import drawn
from tests.tiny import skeletons, waving

NTSC = Fraction(30000, 1001)


def driven(path: Path, *, size: tuple[int, int] = (128, 128), reporter: Heard | None = None, **changes: Any) -> Driving:
    given = {name: changes.pop(name) for name in ("detectors", "reference", "count_only") if name in changes}
    config = AnimateConfig(reference=Path("a.png"), motion=path, output=Path("o.mp4"), size=size, **changes)
    return open_driving(config, reporter or Heard(), **given)


def opener(model: ModelFolder) -> Callable[[], Detectors]:
    return lambda: Detectors.open(model, "cpu", faces=False)


def pictures(driving: Driving) -> np.ndarray:
    return np.stack([driving.skeletons.frame(index) for index in range(len(driving.skeletons))])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_skeletons(tmp_path, form):
    driving = driven(in_form(form, tmp_path, 12))
    assert driving.fps == 30
    assert driving.source_size == (128, 128)
    found, expected = pictures(driving), np.stack(skeletons(12))
    assert found.shape == expected.shape
    if form.startswith("json"):  # coordinates are rounded in the text
        assert np.abs(found.astype(int) - expected).mean() < 1
        assert all(np.abs(found[k].astype(int) - expected).mean((1, 2, 3)).argmin() == k for k in range(4))
    else:
        np.testing.assert_array_equal(found, expected)


def test_a_range_from_the_end_of_a_video_without_a_length_is_refused(tmp_path):
    path = make_video(tmp_path / "ten.mkv", numbered(10, (128, 128)))
    with pytest.raises(ConfigError, match=r"frames: found '-3:', expected numbers from 0"):
        driven(path, frames=(-3, None))


def test_files_come_in_natural_order_and_others_are_left_aside(tmp_path):
    path = in_form("pictures", tmp_path, 11)  # frame_10 after frame_9, not after frame_1
    (path / "notes.txt").write_text("hello")
    (path / "poses.json").write_text("{}")
    np.testing.assert_array_equal(pictures(driven(path)), np.stack(skeletons(11)))


@pytest.mark.parametrize("form", ["pictures", "json folder"])
def test_a_file_that_is_missing_between_others_is_named(tmp_path, form):
    path, heard = in_form(form, tmp_path, 4), Heard()
    driven(path, reporter=heard)
    assert not any("comes that of" in line for line in heard.warnings)
    sorted(path.iterdir())[1].unlink()
    driven(path, reporter=heard)
    assert "poses: after the file of number 0 comes that of 2; frames are taken as consecutive" in heard.warnings


@pytest.mark.parametrize("frames", [(2, 5), (None, 3), (7, None), (-2, None), (0, 10)])
@pytest.mark.parametrize("form", ["video", "npz", "pictures"])
def test_a_range_is_a_slice_of_the_frames(tmp_path, form, frames):
    driving = driven(in_form(form, tmp_path, 9), frames=frames)
    np.testing.assert_array_equal(pictures(driving), np.stack(skeletons(9))[slice(*frames)])
    assert driving.fps == 30


@pytest.mark.parametrize("form", FORMS)
def test_a_range_without_frames_is_refused(tmp_path, form):
    with pytest.raises(BadInput, match=r"expected frames in 20:30"):
        driven(in_form(form, tmp_path, 9), frames=(20, 30))


def test_ntsc_rates_stay_exact(tmp_path):
    assert driven(skeleton_video(tmp_path / "a.mp4", 5, fps=NTSC)).fps == NTSC
    assert driven(save_motion(tmp_path / "a.npz", waving(5, fps=NTSC))).fps == NTSC


@pytest.mark.parametrize("form", ["video", "npz"])
@pytest.mark.parametrize("fps", [Fraction(15), Fraction(25), NTSC, Fraction(60)])
def test_another_rate_keeps_the_duration(tmp_path, form, fps):
    driving = driven(in_form(form, tmp_path, 30), fps=fps)
    assert driving.fps == fps
    assert abs(len(driving.skeletons) / fps - 1) <= 1 / fps
    if fps == 15:
        np.testing.assert_array_equal(pictures(driving), np.stack(skeletons(30))[::2])


def test_what_has_no_clock_is_given_one_without_changing_frames(tmp_path):
    path = in_form("pictures", tmp_path, 4)
    assert driven(path).fps == 30
    driving = driven(path, fps=Fraction(12))
    assert (driving.fps, len(driving.skeletons)) == (12, 4)


def test_varying_times_become_a_constant_rate(tmp_path):
    """Shown at 0, 0.1, 0.5 and 0.6 s: the second picture fills the pause, the last stays for the mean of 0.2 s."""
    times = tuple(Fraction(tick, 10) for tick in (0, 1, 5, 6))
    driving = driven(save_motion(tmp_path / "vfr.npz", waving(4, times=times)), fps=Fraction(10))
    np.testing.assert_array_equal(pictures(driving), np.stack(skeletons(4))[[0, 1, 1, 1, 1, 2, 3, 3]])


def test_frames_that_the_next_one_hides_are_counted(tmp_path):
    motion, heard = waving(12), Heard()
    times = [Fraction(index, 8) for index in range(12)]
    times[2:5] = [times[4]] * 3
    path = save_motion(tmp_path / "poses.npz", replace(motion, times=tuple(times)))
    shown = driven(path, reporter=heard).motion_frames
    assert not {2, 3} & set(shown)
    assert heard.warnings == ["poses.npz: 2 of 12 frames have the time of the next one, which is shown instead"]
    driven(save_motion(path, replace(motion, times=tuple(Fraction(index, 8) for index in range(12)))), reporter=heard)
    assert len(heard.warnings) == 1


def test_a_video_of_varying_rate_keeps_its_duration(tmp_path):
    path = make_video(
        tmp_path / "vfr.mkv", skeletons(4), codec="ffv1", pix_fmt="bgr0", ticks=[0, 100, 500, 600], fps=10
    )
    driving = driven(path, fps=Fraction(10), motion_kind="skeleton")
    np.testing.assert_array_equal(pictures(driving), np.stack(skeletons(4))[[0, 1, 1, 1, 1, 2, 3]])


def test_each_frame_says_which_motion_frame_it_shows(tmp_path):
    """Whatever chose it: a range from the end, another rate, varying times."""
    untimed = driven(in_form("pictures", tmp_path, 9), frames=(-4, -1))
    assert (untimed.motion_frames, untimed.motion_times) == ((5, 6, 7), None)
    times = tuple(Fraction(tick, 10) for tick in (0, 1, 5, 6))
    varying = driven(save_motion(tmp_path / "vfr.npz", waving(4, times=times)), fps=Fraction(10))
    assert varying.motion_frames == (0, 1, 1, 1, 1, 2, 3, 3)
    assert varying.motion_times == tuple(times[index] for index in varying.motion_frames)
    for form in ("video", "npz"):
        half = driven(in_form(form, tmp_path, 12), frames=(-8, None), fps=Fraction(15))
        assert half.motion_frames == (4, 6, 8, 10)
        assert half.motion_times == tuple(Fraction(index, 30) for index in half.motion_frames)


def test_sound_is_known_with_the_seconds_that_the_frames_cover(tmp_path):
    path = make_video(tmp_path / "sound.mp4", skeletons(20), fps=10, sound=beep(2.0, 1.0))
    whole, part = driven(path), driven(path, frames=(5, 12))
    assert whole.audio == (path, 0, 2)
    assert part.audio == (path, Fraction(1, 2), Fraction(12, 10))
    assert driven(skeleton_video(tmp_path / "mute.mp4", 3)).audio is None


def test_sound_that_cannot_be_decoded_is_reported(tmp_path):
    path = make_video(tmp_path / "a.mkv", skeletons(3), sound=beep(0.3, 0))
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_AC9"))
    heard = Heard()
    assert driven(path, motion_kind="skeleton", reporter=heard).audio is None
    assert heard.warnings == ["a.mkv: its sound cannot be decoded: the video will have no sound"]
    assert driven(path, motion_kind="skeleton", audio="none", reporter=heard).audio is None
    assert len(heard.warnings) == 1


def test_a_plain_video_without_detectors_is_refused_and_says_what_may_be_given(tmp_path):
    path = make_video(tmp_path / "dance.mp4", noise(5, (128, 128)))
    heard = Heard()
    with pytest.raises(ModelMissing, match=r"dance\.mp4: found a plain video, and no model was given") as caught:
        driven(path, reporter=heard)
    assert caught.value.exit_code == 5
    assert "--motion-kind skeleton" in str(caught.value.hint)
    assert heard.notes == ["dance.mp4: read as a plain video (not black like a skeleton)"]


def test_auto_knows_skeletons_by_tag_and_by_blackness(tmp_path):
    for tag, why in ((True, "by its tag"), (False, "black except its limbs")):
        heard = Heard()
        driven(skeleton_video(tmp_path / "poses.mp4", 3, tag=tag), reporter=heard)
        assert heard.notes == [f"poses.mp4: read as a skeleton video ({why})"]


def test_who_says_the_kind_is_believed(tmp_path):
    path = make_video(tmp_path / "dance.mp4", noise(3, (128, 128)))
    assert len(driven(path, motion_kind="skeleton").skeletons) == 3
    with pytest.raises(ModelMissing, match="a plain video"):
        driven(skeleton_video(tmp_path / "poses.mp4", 3), motion_kind="video")


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_model(drawn.write_model(tmp_path_factory.mktemp("detectors") / "model"))


def test_a_plain_video_is_detected_and_drawn_and_its_distance_from_the_reference_said(tmp_path, detectors):
    boxes = drawn.walk(9, missing=[4])
    path, heard = drawn.write_video(tmp_path / "dance.mp4", boxes, fps=NTSC), Heard()
    size = drawn.SIZE
    person = drawn.frame((60, 30, 100, 94))
    found = driven(path, size=size, reporter=heard, detectors=opener(detectors), reference=person)
    assert (found.fps, len(found.skeletons), found.source_size) == (NTSC, 9, size)
    lit = [np.flatnonzero(picture.any(axis=(0, 2))) for picture in pictures(found)]
    starts = np.array([columns.min() for columns in lit])
    assert starts[-1] - starts[0] == pytest.approx(16, abs=3)  # it walks two pixels a frame
    said = " ".join(heard.notes)
    assert "1 frames filled in 1 gaps" in said
    assert "misalignment" in said
    assert "--align affine" in said
    assert "the largest" not in said


def test_the_distance_of_several_people_says_who_is_compared(monkeypatch):
    """The largest of each: they need not be one person."""
    motion = waving(3, size=(64, 64))
    several = replace(
        motion, track=np.array([0, 1]), **{
            name: np.repeat(getattr(motion, name), 2, axis=1) for name in ("keypoints", "present", "face_boxes")
        },
    )  # fmt: skip
    capture = SimpleNamespace(motion=several, found=np.array([2]), repairs=SimpleNamespace(frames=0, points=0, gaps=0))
    monkeypatch.setattr(driving_video, "extract_motion", lambda *given, **more: capture)
    monkeypatch.setattr(driving_video, "pose_of", lambda image, detectors: motion.keypoints[0, 0])
    heard, clip = Heard(), SimpleNamespace(path=Path("v.mp4"))
    driving_video.detect_motion(clip, (0, 1), None, np.zeros((64, 64, 3), np.uint8), heard)
    assert any(
        note.startswith("v.mp4, the largest person against the largest of the image: misalignment")
        for note in heard.notes
    )


def test_a_range_and_a_rate_are_those_of_the_plain_video(tmp_path, detectors):
    path = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(12), fps=12)
    part = driven(path, size=drawn.SIZE, detectors=opener(detectors), frames=(2, 8), fps=Fraction(24))
    assert (part.fps, len(part.skeletons)) == (24, 12)


def test_a_plan_counts_a_plain_video_and_detects_nothing(tmp_path):
    path = drawn.write_video(tmp_path / "dance.mp4", drawn.walk(12), fps=12)
    plan = driven(path, size=drawn.SIZE, count_only=True)
    assert (plan.fps, len(plan.skeletons)) == (12, 12)


@pytest.mark.parametrize("form", ["npz", "clip folder", "json file"])
def test_a_plan_of_keypoints_draws_nothing(tmp_path, form, monkeypatch):
    path = in_form(form, tmp_path, 12)
    run = driven(path, fps=Fraction(20))
    monkeypatch.setattr(driving_frames, "SKELETONS", {})
    plan = driven(path, fps=Fraction(20), count_only=True)
    assert (plan.fps, len(plan.skeletons)) == (run.fps, len(run.skeletons))
    assert (plan.motion_frames, plan.numbers) == (run.motion_frames, run.numbers)
    np.testing.assert_array_equal(plan.faces, run.faces)
    assert not pictures(plan).any()


def test_times_that_a_container_rounded_leave_the_rate_of_the_video(tmp_path, detectors):
    """Matroska has milliseconds: the mean of ten frames' times is 30 per second, the stream says 30000/1001."""
    boxes = drawn.walk(10)
    path = make_video(tmp_path / "dance.mkv", [drawn.frame(box) for box in boxes], fps=NTSC)
    plan = driven(path, size=drawn.SIZE, count_only=True)
    run = driven(path, size=drawn.SIZE, detectors=opener(detectors))
    assert (run.fps, len(run.skeletons)) == (plan.fps, len(plan.skeletons)) == (NTSC, 10)
    folder = clip_of(tmp_path / "clip", path, 10)
    record = json.loads((folder / "clip.json").read_text()) | {"fps": "30000/1001", "audio": False}
    (folder / "clip.json").write_text(json.dumps(record))
    times = tuple(Fraction(round(1000 * index / NTSC), 1000) for index in range(10))
    save_motion(folder / "motion.npz", waving(10, times=times))
    assert driven(folder).fps == NTSC


def test_a_plain_video_without_anybody_names_the_file(tmp_path, detectors):
    path = drawn.write_video(tmp_path / "empty.mp4", [None] * 3)
    with pytest.raises(NoPerson, match=r"empty\.mp4: no person found in any of 3 frames"):
        driven(path, size=drawn.SIZE, detectors=opener(detectors))


def test_another_shape_is_cut_and_says_so_or_padded(tmp_path):
    path, heard = in_form("npz", tmp_path, 2), Heard()
    cut = driven(path, size=(64, 128), reporter=heard)
    assert cut.skeletons.frame(0).shape == (128, 64, 3)
    assert heard.notes == ["poses.npz: 50% of the image is cropped; --resize pad keeps all of it"]
    padded = driven(path, size=(64, 128), resize="pad").skeletons.frame(0)
    assert padded[32:96].any()
    assert not padded[:30].any()
    heard = Heard()
    driven(path, size=(64, 128), resize="stretch", reporter=heard)
    assert heard.notes == ["poses.npz: stretched by 2.00 on one side by --resize"]


def test_points_without_a_frame_size_are_guessed_and_said(tmp_path):
    path = save_openpose(tmp_path / "poses.json", waving(2, fps=None))
    path.write_text(path.read_text().replace("canvas_width", "w").replace("canvas_height", "h"))
    heard = Heard()
    driving = driven(path, reporter=heard)
    (warning,) = heard.warnings
    assert "estimated from the points" in warning
    assert "{}x{}".format(*driving.source_size) in warning


def test_a_motion_in_which_nobody_is_seen_is_refused(tmp_path):
    motion = waving(4)
    motion.present[:] = False
    with pytest.raises(BadInput, match="no person in any frame"):
        driven(save_motion(tmp_path / "empty.npz", motion))


@pytest.mark.parametrize("name", ["missing.mp4", "missing.npz", "missing.json", "missing"])
def test_what_is_not_there_is_named(tmp_path, name):
    with pytest.raises(BadInput, match=name) as caught:
        driven(tmp_path / name)
    assert caught.value.exit_code == 3


def test_pictures_of_different_sizes_name_the_one_that_differs(tmp_path):
    path = in_form("pictures", tmp_path, 3)
    write_image(path / "frame_1.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(BadInput, match=r"frame_1\.png|frame 1"):
        driven(path, motion_kind="skeleton")


def test_our_skeleton_video_has_its_face_boxes_beside_it(tmp_path):
    """``sa preprocess --poses`` writes poses.npz beside poses.mp4; another motion of that name is not taken for it."""
    motion, path = waving(6), tmp_path / "poses.mp4"
    save_motion(tmp_path / "poses.npz", motion)
    with VideoWriter(path, motion.size, 25, lossless=True, tag={"sa.kind": "skeleton"}) as video:
        for index in range(6):
            video.write(draw_frame(motion, index))
    whole = driven(path, size=(64, 64), resize="stretch").faces
    there = resize_transform(motion.size, (64, 64), "stretch").transform_motion(motion)
    known = np.where(np.isfinite(there.face_boxes), there.face_boxes, face_box(there.keypoints))
    assert whole.shape == (6, 1, 4)
    np.testing.assert_allclose(whole, known, atol=1e-4)
    np.testing.assert_array_equal(driven(path, size=(64, 64), resize="stretch", frames=(2, 5)).faces, whole[2:5])
    twice = driven(path, size=(64, 64), resize="stretch", fps=Fraction(50)).faces
    np.testing.assert_array_equal(twice, np.repeat(whole, 2, axis=0))
    save_motion(tmp_path / "poses.npz", waving(5))
    assert driven(path).faces is None


def test_a_folder_of_clips_is_no_motion_and_one_of_them_is_named(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        (tmp_path / "clips" / name / "clip.json").write_text("{}")
    (tmp_path / "clips/report.json").write_text("{}")
    with pytest.raises(BadInput, match=r"clips: found a folder of 2 clip\(s\), expected one motion") as caught:
        check_motion(tmp_path / "clips")
    assert caught.value.hint == f"name one of them: {tmp_path / 'clips/a'}"
