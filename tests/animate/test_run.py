"""``sa animate`` from flags to files: every length and form of motion, exact rates, sound, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.run import run
from stableanimator_cli.engine.decoder import Decoder
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing, NoFace, OutOfMemory, SaError
from stableanimator_cli.files import MARK, carries_mark
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.progress import Reporter
from tests.animate.clips import FORMS, Heard, clip_of, frames_of, in_form, plain_picture, skeleton_video
from tests.magic_models import write_magic
from tests.media_samples import beep, heard, make_video, noise, onset
from tests.tiny import skeletons, waving


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a picture (96x96) and a motion of six frames."""
    plain_picture(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", waving(6))
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def animate(place: Path, tiny_model: Path):
    """Run with the tiny model, windows of 4 and no face, unless told otherwise."""

    def go(reporter: Reporter | None = None, **flags: Any) -> Animation:
        usual = {
            "reference": place / "person.png",
            "motion": place / "poses.npz",
            "output": place / "out" / "out.mp4",
            "model": str(tiny_model),
            "window": 4,
            "allow_no_face": True,
            "device": "cpu",
        }
        report = run(flags=usual | flags, reporter=reporter)
        assert isinstance(report, Animation)
        return report

    return go


def written(place: Path) -> list[str]:
    return sorted(file.name for file in (place / "out").iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 40])
def test_every_length_comes_out_whole(place, animate, frames):
    save_motion(place / "poses.npz", waving(frames))
    report = animate(window=16, steps=1, guidance=1.0)
    clip = open_clip(report.video)
    assert report.frames == clip.count == frames == sum(1 for _ in clip.frames())
    assert (clip.size, clip.fps, report.fps) == ((64, 64), 30, "30")
    assert clip.tag["sa.kind"] == "animation"
    assert written(place) == ["out.json", "out.mp4"]
    assert report.calls["unet"] == {1: 1, 2: 1, 15: 1, 16: 1, 17: 2, 40: 4}[frames]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_is_written_by_its_suffix_and_replays(place, animate, suffix):
    output = place / "out" / f"out{suffix}"
    report = animate(output=output, steps=1, preview=True, fps=10)
    assert written(place) == sorted([output.name, "out.json", "out.preview.mp4"])
    with Image.open(output) as opened:
        opened.load()
        assert (opened.n_frames, opened.size, opened.info["duration"]) == (report.frames, (64, 64), 100)
    assert carries_mark(output)
    before = sha256(output)
    animate(output=output, steps=1, preview=True, fps=10)  # ours, so it is replaced
    assert sha256(output) == before


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_motion_gives_its_frames(place, animate, form):
    report = animate(motion=in_form(form, place, 5), steps=1)
    assert len(frames_of(report.video)) == 5


def test_a_window_alone_brings_an_overlap_that_fits(place, animate):
    assert animate(window=3).frames == 6
    config = json.loads((place / "out" / "out.json").read_text())["config"]
    assert config["windows"] == {"length": 3, "overlap": 0, "blend": "smooth", "anchor": "first"}
    animate(window=None, decode_chunk=1)
    assert json.loads((place / "out" / "out.json").read_text())["config"]["windows"]["overlap"] == 4


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_smallest_windows_work_with_the_references_blend_too(animate, window):
    assert animate(window=window, blend="upstream", steps=1).frames == 6


def test_no_guidance_is_half_the_work_and_another_video(animate):
    guided = animate(guidance=3.0)
    video = sha256(guided.video)
    plain = animate(guidance=1.0)
    assert guided.calls["unet"] == 2 * plain.calls["unet"]
    assert sha256(plain.video) != video


def test_the_rate_of_a_skeleton_video_is_kept_exactly(place, animate):
    ntsc = Fraction(30000, 1001)
    report = animate(motion=skeleton_video(place / "poses.mp4", 5, fps=ntsc), steps=1)
    assert open_clip(report.video).fps == ntsc
    assert report.fps == "30000/1001"
    times = [time for time, _ in open_clip(report.video).frames()]
    assert times == [index / ntsc for index in range(5)]


@pytest.mark.parametrize(("fps", "frames"), [("15", 3), ("29.97", 6), ("60", 12)])
def test_another_rate_keeps_the_duration(animate, fps, frames):
    report = animate(fps=fps, steps=1)
    clip = open_clip(report.video)
    assert clip.count == frames
    assert abs(frames / clip.fps - Fraction(6, 30)) <= 1 / clip.fps


def test_varying_times_become_a_constant_rate(place, animate):
    times = tuple(Fraction(tick, 10) for tick in (0, 1, 5, 6))
    save_motion(place / "poses.npz", waving(4, times=times))
    assert animate(fps=10, steps=1).frames == 8


def test_a_range_of_frames_is_that_part_of_the_motion(place, animate):
    """Noise belongs to the output's frame, so the part is what a motion of these frames alone would give."""
    part = frames_of(animate(frames="2:5").video)
    motion = waving(6)
    motion.keypoints[:3] = motion.keypoints[2:5]
    save_motion(place / "poses.npz", motion)
    np.testing.assert_array_equal(part, frames_of(animate(frames="0:3").video))


def test_the_motion_moves_the_video(place, animate):
    one = frames_of(animate().video)
    motion = waving(6)
    motion.keypoints[..., 0] += 30
    save_motion(place / "poses.npz", motion)
    assert (frames_of(animate().video) != one).mean() > 0.01


def test_the_same_seed_gives_the_same_bytes_wherever_they_are_written(place, animate):
    (place / "elsewhere").mkdir()
    one, again = animate(), animate(output=place / "elsewhere" / "b.mp4")
    assert sha256(one.video) == sha256(again.video)
    records = [json.loads(report.record.read_text()) for report in (one, again)]
    assert records[0]["output"]["sha256"] == records[1]["output"]["sha256"]
    assert sha256(animate(seed=1).video) != sha256(again.video)


def test_the_references_layout_gives_the_same_bytes(animate, upstream_model):
    settings = {"size": "64x64", "steps": 2}
    ours = sha256(animate(**settings).video)
    assert sha256(animate(model=str(upstream_model), **settings).video) == ours


@pytest.mark.parametrize("audio", ["keep", "none"])
def test_sound_of_a_skeleton_video_is_kept_unless_refused(place, animate, audio):
    motion = make_video(place / "poses.mp4", skeletons(20), fps=10, sound=beep(2.0, 1.0))
    report = animate(motion=motion, motion_kind="skeleton", steps=1, guidance=1.0, audio=audio, window=16)
    assert open_clip(report.video).audio == (audio == "keep")
    if audio == "keep":
        _, times, levels = heard(report.video)
        assert onset(times, levels) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("first", "frames", "begins"), [(0, None, 1.0), (0, "5:20", 0.5), (4, None, 0.6)])
def test_sound_of_a_clip_folder_is_that_of_its_video(place, animate, first, frames, begins):
    video = make_video(place / "dance.mp4", skeletons(24), fps=10, sound=beep(2.4, 1.0))
    clip = clip_of(place / "clip", video, 20, first=first)
    report = animate(motion=clip, steps=1, guidance=1.0, frames=frames, window=16)
    _, times, levels = heard(report.video)
    assert onset(times, levels) == pytest.approx(begins, abs=0.05)
    video.unlink()
    reporter = Heard()
    report = animate(motion=clip, steps=1, guidance=1.0, window=16, reporter=reporter)
    assert not open_clip(report.video).audio
    assert any("will have no sound" in warning for warning in reporter.warnings)


def test_sound_is_cut_with_the_frames(place, animate):
    motion = make_video(place / "poses.mp4", skeletons(20), fps=10, sound=beep(2.0, 1.0))
    report = animate(motion=motion, motion_kind="skeleton", steps=1, guidance=1.0, frames="5:20", window=16)
    _, times, levels = heard(report.video)
    assert onset(times, levels) == pytest.approx(0.5, abs=0.05)


def test_a_preview_shows_reference_motion_and_result_side_by_side(place, animate):
    report = animate(preview=True)
    assert report.preview == place / "out" / "out.preview.mp4"
    assert written(place) == ["out.json", "out.mp4", "out.preview.mp4"]
    preview, result = frames_of(report.preview), frames_of(report.video)
    assert preview.shape == (6, 64, 192, 3)
    assert np.abs(preview[:, :, 128:].astype(int) - result).mean() < 8  # both are compressed
    reference, pose = preview[:, :, :64].astype(int), preview[:, :, 64:128].astype(int)
    assert np.abs(reference - reference[:1]).mean() < 2
    assert 60 < reference.mean() < 90
    drawn = np.stack(skeletons(6, (64, 64)))
    assert [int(np.abs(pose[k] - drawn).mean((1, 2, 3)).argmin()) for k in range(6)] == list(range(6))


def test_dtype_and_offload_run(animate):
    plain = frames_of(animate().video)
    np.testing.assert_array_equal(plain, frames_of(animate(offload="model").video))
    assert (frames_of(animate(dtype="bfloat16").video) != plain).any()


def test_churn_with_heun_runs_and_keeps_to_its_seed(animate):
    one = sha256(animate(sampler="heun", churn=10.0).video)
    assert sha256(animate(sampler="heun", churn=10.0).video) == one
    assert sha256(animate(sampler="heun").video) != one


def refused(place: Path, animate, error: type[SaError], code: int, words: str, **flags: Any) -> SaError:
    """The run ends in this error with a message of one line, and nothing was written or changed."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(error, match=words) as caught:
        animate(**flags)
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.message
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    return caught.value


@pytest.mark.parametrize("size", ["100x64", "64x100", "32x64", "8x8"])
def test_a_size_that_the_network_cannot_have_is_refused(place, animate, size):
    error = refused(place, animate, ConfigError, 2, rf"--size: found '{size}', expected .* multiples of 8", size=size)
    assert "try " in str(error.hint)
    animate(size=str(error.hint).removeprefix("try "), steps=1, guidance=1.0, frames=":1")  # the hint is right


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("missing/out.mp4", "folder that exists"),
        ("person.png/out.mp4", r"in a folder, which \S+person\.png is not"),
        ("out", "not a folder"),
        ("out/out.avi", r"ending in \.mp4"),
        ("out/out", r"ending in \.mp4"),
    ],
)
def test_an_output_that_cannot_be_is_refused(place, animate, output, words):
    refused(place, animate, ConfigError, 2, words, output=place / output)


def test_an_output_never_takes_the_place_of_an_input(place, animate):
    video = skeleton_video(place / "poses.mp4", 3)
    refused(place, animate, BadInput, 3, "is the same as the input", motion=video, output=video)
    link = place / "out" / "link.mp4"
    link.symlink_to(video)
    refused(place, animate, BadInput, 3, "is the same as the input", motion=video, output=link)


def test_a_record_or_preview_never_takes_the_place_of_an_input(place, animate):
    motion = in_form("json file", place, 3)
    refused(place, animate, BadInput, 3, "is the same as the input", motion=motion, output=motion.with_suffix(".mp4"))
    video = skeleton_video(place / "a.preview.mp4", 3)
    words = r"a\.preview\.mp4: the output is the same as the input"
    refused(place, animate, BadInput, 3, words, motion=video, output=place / "a.mp4", preview=True)
    assert animate(motion=video, output=place / "a.mp4", steps=1).frames == 3


def test_an_output_does_not_go_among_the_frames_of_its_motion(place, animate):
    for form in ("pictures", "json folder"):
        folder = in_form(form, place / form.replace(" ", ""), 3)
        refused(place, animate, BadInput, 3, "is inside the input", motion=folder, output=folder / "out.mp4")
    video = skeleton_video(place / "dance.mp4", 3)
    clip = clip_of(place / "clip", video, 3)
    for motion in (clip, clip / "motion.npz"):
        refused(place, animate, BadInput, 3, "is inside the input", motion=motion, output=clip / "out.mp4")
    refused(place, animate, BadInput, 3, "is the same as the input", motion=clip, output=video)


@pytest.mark.parametrize("name", ["out.mp4", "out.json", "out.preview.mp4"])
def test_a_file_of_others_is_not_replaced(place, animate, name):
    (place / "out" / name).write_text('{"mine": 1}', encoding="utf-8")
    refused(place, animate, BadInput, 3, "exists and was not written by sa", preview=True)


def test_a_video_of_a_version_before_the_mark_is_known_by_its_record(place, animate):
    report = animate(steps=1)
    data = report.video.read_bytes()
    assert carries_mark(report.video)
    report.video.write_bytes(data.replace(MARK.encode(), b"-" * len(MARK)))
    record = json.loads(report.record.read_text(encoding="utf-8"))
    refused(place, animate, BadInput, 3, "was not written by sa")
    record["output"]["sha256"] = sha256(report.video)
    report.record.write_text(json.dumps(record), encoding="utf-8")
    assert sha256(animate(steps=1).video) == hashlib.sha256(data).hexdigest()


def test_churn_without_heun_is_refused(place, animate):
    refused(place, animate, ConfigError, 2, "--churn: found 5.0, expected 0 with --sampler euler", churn=5.0)


def test_a_reference_of_one_pixel_is_refused(place, animate):
    Image.new("RGB", (1, 1)).save(place / "dot.png")
    refused(place, animate, BadInput, 3, r"dot\.png: found 1x1 pixels", reference=place / "dot.png")


def test_a_missing_reference_or_model_is_refused(place, animate):
    refused(place, animate, BadInput, 3, r"nobody\.png: found no such file", reference=place / "nobody.png")
    refused(place, animate, ModelMissing, 5, "no such model folder", model=str(place / "no" / "model"))


def test_a_plain_video_needs_a_model_with_detectors(place, animate):
    video = make_video(place / "dance.mp4", noise(4, (128, 128)))
    refused(
        place,
        animate,
        ModelMissing,
        5,
        r"dance\.mp4: found a plain video, and model .* no person_detector",
        motion=video,
    )


def test_unknown_flags_and_broken_config_files_are_refused(place, animate, tiny_model):
    refused(place, animate, ConfigError, 2, "--stesp", stesp=3)
    file = place / "run.toml"
    for text in ("windows = 3", "model = 5", "[windows]\nlenght = 3", "[sampling"):
        file.write_text(text)
        flags = {"reference": place / "person.png", "motion": place / "poses.npz", "output": place / "out" / "out.mp4"}
        with pytest.raises(ConfigError):
            run(flags=flags, config_file=file)
    assert written(place) == []


def test_a_picture_without_a_face_is_refused_unless_allowed(place, animate, seeing_model):
    error = refused(
        place, animate, NoFace, 4, r"person\.png: no face found", model=str(seeing_model), allow_no_face=None
    )
    assert "--allow-no-face" in str(error.hint)
    report = animate(model=str(seeing_model))
    assert json.loads(report.record.read_text())["face"] is False


def test_a_face_that_is_found_or_given_is_used(place, animate, seeing_model, tiny_model):
    """The vector that the detector's recogniser makes, given by hand to the model without one: the same video."""
    from stableanimator_cli.detect.face import FaceReader
    from stableanimator_cli.media import read_image

    picture = plain_picture(place / "face.png", red=(20, 20, 70, 70))
    (face,) = FaceReader(seeing_model / "faces").faces(read_image(picture))
    np.save(place / "face.npy", face.embedding)
    found = animate(reference=picture, model=str(seeing_model), allow_no_face=None, refine_face="off")
    assert json.loads(found.record.read_text())["face"] is True
    video = sha256(found.video)
    given = animate(reference=picture, face_embedding=place / "face.npy", allow_no_face=None)
    assert sha256(given.video) == video
    record = json.loads(given.record.read_text())
    assert record["inputs"]["face_embedding"]["sha256"] == sha256(place / "face.npy")
    assert sha256(animate(reference=picture).video) != video  # without a face: another video
    assert sha256(animate(reference=picture, id_adapter="off", face_embedding=place / "face.npy").video) != video


def test_a_model_without_face_detector_asks_for_leave(place, animate):
    error = refused(place, animate, ModelMissing, 5, "no face detector", allow_no_face=None)
    assert "--face-embedding" in str(error.hint)


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(place, animate, monkeypatch, error):
    pixels = Decoder.pixels

    def fails(self, latents):
        if self._calls["vae_decode"]:
            raise error
        return pixels(self, latents)

    monkeypatch.setattr(Decoder, "pixels", fails)
    with pytest.raises(OutOfMemory if isinstance(error, MemoryError) else type(error)):
        animate(preview=True, decode_chunk=2)
    assert written(place) == []


def test_a_failure_keeps_the_video_of_before(place, animate, monkeypatch):
    video = animate().video
    before = sha256(video), sha256(video.with_suffix(".json"))
    monkeypatch.setattr(Decoder, "pixels", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        animate(seed=3)
    assert (sha256(video), sha256(video.with_suffix(".json"))) == before
    assert written(place) == ["out.json", "out.mp4"]


def test_a_plan_writes_nothing_and_counts_what_the_run_then_does(place, animate, tiny_model):
    flags = {
        "reference": place / "person.png",
        "motion": place / "poses.npz",
        "output": place / "out" / "out.mp4",
        "model": str(tiny_model),
        "window": 4,
        "allow_no_face": True,
    }
    plan = run(flags=flags, plan_only=True)
    assert isinstance(plan, AnimationPlan)
    assert written(place) == []
    data = plan.to_json()
    report = animate()
    counted = {name: count for name, count in data["calls"].items() if name != "windows"}
    assert {name: report.calls[name] for name in counted} == counted
    assert (data["frames"], data["fps"], data["size"]) == (6, "30", [64, 64])
    assert [len(window) for window in data["windows"]] == [4, 4]
    assert f"{data['calls']['unet']} UNet calls" in plan.summary()


def test_what_is_done_is_said(place, tiny_model):
    reporter = Heard()
    flags = {"reference": place / "person.png", "motion": place / "poses.npz", "output": place / "out" / "out.mp4"}
    run(
        flags=flags | {"model": str(tiny_model), "allow_no_face": True, "window": 4, "device": "cpu"}, reporter=reporter
    )
    assert any("6 frames of 64x64, 2 window(s), 2 steps on cpu, float32" in note for note in reporter.notes)
    assert any("without a face, as allowed" in warning for warning in reporter.warnings)


def test_without_a_window_it_is_the_longest_of_the_motion_modules(place, animate):
    """Of this model 8 frames, where the default of the option is 16."""
    flags = {"model": str(write_magic(place / "magic")), "window": None, "steps": 1, "guidance": "1"}
    told = Heard()
    animate(reporter=told, **flags)
    windows = json.loads((place / "out" / "out.json").read_text())["config"]["windows"]
    assert (windows["length"], windows["overlap"]) == (8, 2)
    assert "--window 8: the motion modules of magic know no more frames" in told.notes
    animate(reporter=(told := Heard()), **flags | {"window": 6})
    assert not any("motion modules" in note for note in told.notes)
    with pytest.raises(ConfigError, match=r"--window: found 16, expected at most 8, the frames that"):
        animate(**flags | {"window": 16})
