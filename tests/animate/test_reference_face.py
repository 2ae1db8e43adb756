"""Face optimisation from the command's side: when it runs, on which boxes, and what it says when it cannot."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from stableanimator_cli.animate.identity_gate import STRIP, strip
from stableanimator_cli.animate.run import run
from stableanimator_cli.errors import CheckFailed, ConfigError, ModelMissing, NoFace
from stableanimator_cli.media import VideoWriter, open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.skeleton import draw_skeleton
from tests.animate.clips import Heard
from tests.waving import waving

FRAMES = 4


@pytest.fixture
def animate(tmp_path, seeing_model):
    """``sa animate`` with a model that takes a red rectangle for a face, on a picture that has one."""
    picture = np.full((128, 128, 3), 60, np.uint8)
    picture[30:90, 40:80] = (255, 0, 0)
    picture[50:60, 50:60] = (255, 120, 0)
    write_image(tmp_path / "face.png", picture)
    write_image(tmp_path / "nobody.png", np.full((128, 128, 3), 60, np.uint8))
    motion = waving(FRAMES, (96, 96))
    motion.face_boxes[1] = np.nan
    motion.keypoints[1, :, 24:92, 2] = 0
    motion.face_boxes[[0, 2, 3]] = (30, 10, 70, 60)
    save_motion(tmp_path / "poses.npz", motion)

    def go(picture="face.png", **flags):
        given = {
            "reference": tmp_path / picture,
            "motion": tmp_path / "poses.npz",
            "output": tmp_path / "out.mp4",
            "model": str(seeing_model),
            "size": "96x96",
            "steps": 3,
        }
        how = {"reporter": flags.pop("reporter")} if "reporter" in flags else {}
        report = run(flags=given | flags, **how)
        record = json.loads(report.record.read_text())
        return record, np.stack([frame for _, frame in open_clip(report.video).frames()])

    return go


def test_standard_refines_on_a_crop_and_fast_does_not(animate):
    record, standard = animate()
    assert [row["step"] for row in record["refined"]] == [2]  # 0.7:0.84 of three steps
    assert all(row["faces"] == FRAMES - 1 for row in record["refined"])  # frame 1 shows no face
    assert record["refined"][0]["after"] > record["refined"][0]["before"]
    assert record["calls"]["refine_crop"] > 0
    assert "refine_decode" not in record["calls"]
    assert record["face_optimization"] == "crop"
    record, fast = animate(preset="fast")
    assert record["refined"] == []
    assert record["face_optimization"] == "off"
    assert (standard != fast).any()


def test_presets_choose_and_flags_win(animate):
    record, _ = animate(preset="released", refine_iters=1)
    assert record["config"]["refine"]["face"] == "full"
    assert record["config"]["refine"]["iterations"] == 1
    assert record["calls"]["refine_decode"] > 0
    record, _ = animate(preset="paper", refine_iters=1, refine_face="crop")
    assert record["config"]["sampling"]["sampler"] == "heun"
    assert record["config"]["sampling"]["churn"] == 40
    assert record["config"]["refine"]["schedule"] == "constant"
    assert [row["step"] for row in record["refined"]] == [0, 1, 2]


def test_the_papers_sampler_takes_its_own_steps_unless_told(animate, tmp_path):
    """The small model's card says 10, at which Heun's method leaves noise."""
    with pytest.raises(NoFace):
        animate("nobody.png", steps=1)  # the fixture's files are there; what is asked for here is a plan only
    flags = {"reference": tmp_path / "face.png", "motion": tmp_path / "poses.npz", "output": tmp_path / "out.mp4"}
    flags |= {"model": "puppet", "size": "64x64", "allow_no_face": True}
    steps = {
        words: run(flags=flags | dict(words), plan_only=True).to_json()["steps"]
        for words in ((), (("preset", "paper"),), (("preset", "paper"), ("steps", 9)))
    }
    assert list(steps.values()) == [10, 25, 9]


def test_a_plan_tells_what_becomes_of_faces(animate, tmp_path, tiny_model):
    with pytest.raises(NoFace):
        animate("nobody.png", steps=1)  # the fixture's files are there
    flags = {"reference": tmp_path / "face.png", "motion": tmp_path / "poses.npz", "output": tmp_path / "out.mp4"}
    flags |= {"size": "64x64", "allow_no_face": True, "model": "puppet"}

    def plan(**more):
        return run(flags=flags | more, plan_only=True)

    assert "faces      not optimised" in plan(preset="fast").summary()
    assert plan(preset="fast").to_json()["face_optimization"] == "off"
    told = plan(preset="standard", steps=10, refine_steps="2:6").summary()
    assert "faces      optimised (crop) in steps 2:6, 2 iterations each, if a face is found" in told
    assert plan(model=str(tiny_model), preset="standard").to_json()["face_optimization"] == "off"
    with pytest.raises(ModelMissing, match="no face recogniser, which --refine-face full needs"):
        plan(model=str(tiny_model), refine_face="full")
    with pytest.raises(ConfigError, match=r"--refine-steps: found '7:9', expected a range that holds one of 3 steps"):
        plan(refine_steps="7:9", steps=3)


def test_steps_are_half_open(animate):
    record, _ = animate(refine_steps="1:2")
    assert [row["step"] for row in record["refined"]] == [1]


def test_without_a_recogniser_auto_goes_on_and_full_says_so(animate, tiny_model, tmp_path):
    vector = tmp_path / "face.npy"
    np.save(vector, np.ones(512, np.float32))
    record, _ = animate(model=str(tiny_model), face_embedding=vector)
    assert record["refined"] == []
    with pytest.raises(ModelMissing, match="no face recogniser, which --refine-face full needs"):
        animate(model=str(tiny_model), face_embedding=vector, refine_face="full")


def test_without_a_face_auto_goes_on_and_crop_says_so(animate):
    record, _ = animate("nobody.png", allow_no_face=True)
    assert record["refined"] == []
    with pytest.raises(NoFace, match="which --refine-face crop needs"):
        animate("nobody.png", allow_no_face=True, refine_face="crop")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"refine_steps": "2:2"}, "--refine-steps"),
        ({"refine_steps": "7:9"}, "--refine-steps"),
        ({"refine_steps": "two"}, "--refine-steps"),
        ({"refine_iters": -1}, "--refine-iters"),
        ({"refine_lr": 0.0}, "--refine-lr"),
        ({"preset": "swift"}, "--preset"),
    ],
)
def test_bad_settings_name_the_flag(animate, flags, words):
    with pytest.raises(ConfigError, match=words):
        animate(**flags)


def test_zero_iterations_are_none(animate):
    record, none = animate(refine_iters=0)
    assert record["refined"] == []
    _, fast = animate(preset="fast")
    assert (none == fast).all()


def test_boxes_are_found_where_only_pictures_are_known(animate, tmp_path):
    """A skeleton video has no boxes: faces are looked for in the decoded estimate."""
    motion = waving(FRAMES, (96, 96))
    with VideoWriter(tmp_path / "poses.mp4", (96, 96), Fraction(25), lossless=True) as video:
        for index in range(FRAMES):
            video.write(draw_skeleton(motion.keypoints[index], (96, 96)))
    record, _ = animate(motion=tmp_path / "poses.mp4", motion_kind="skeleton")
    assert record["calls"]["refine_decode"] >= 1  # crop alone decodes no whole frame: this is the look


def test_the_gate_draws_failing_windows_again_and_says_so(animate, tmp_path):
    with pytest.raises(CheckFailed, match=r"below 0\.999 in \d of 1 window\(s\) after 2 retries") as caught:
        animate(min_csim=0.999, redraw=2, preset="fast")
    assert caught.value.exit_code == 8
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["redrawn_windows"] == [[0], [0]]
    assert record["identity"]["frames_with_face"] >= 1
    assert len(record["identity"]["similarity"]) == FRAMES
    assert (tmp_path / "out.mp4").is_file()


def test_a_gate_that_holds_draws_once(animate):
    record, gated = animate(min_csim=-1.0, redraw=3, preset="fast")
    assert record["redrawn_windows"] == []
    _, free = animate(preset="fast")
    assert (gated == free).all()


def test_the_preview_shows_the_curve(animate, tmp_path):
    record, _ = animate(preview=True, preset="fast")
    assert open_clip(tmp_path / "out.preview.mp4").size == (3 * 96, 96 + STRIP)
    assert len(record["identity"]["similarity"]) == FRAMES


def test_a_strip_draws_what_is_known_so_far():
    empty, half, whole = (strip([values], 8, 64) for values in ([], [0.5] * 4, [0.5] * 8))
    ink = [np.any(picture[..., 2] < picture[..., 0], axis=0) for picture in (empty, half, whole)]
    assert not ink[0].any()
    assert ink[1][:20].all()
    assert not ink[1][40:].any()
    assert ink[2].all()
    gap = (strip([[0.5, np.nan, np.nan, np.nan, np.nan, 0.5]], 6, 64)[..., 2] == 0).any(axis=0)
    assert gap.any()
    two = strip([[0.9] * 8, [0.2] * 8], 8, 64)  # a curve per person, of different colours
    np.testing.assert_array_equal(two[:16], strip([[0.9] * 8], 8, 64)[:16])
    assert (two[16:31, :, 2] > two[16:31, :, 0]).any()


@pytest.mark.parametrize(
    "flags", [{"redraw": 1}, {"redraw": 1, "min_csim": 0.5, "noise": "repeat"}, {"min_csim": 2.0}, {"redraw": -1}]
)
def test_gates_that_cannot_be(animate, flags):
    with pytest.raises(ConfigError, match=r"--gate-retries|--min-csim"):
        animate(**flags)


@pytest.mark.parametrize("box", [(200, 20, 260, 60), (-90, -90, -20, -20), (40, 40, 40, 40), (70, 60, 30, 10)])
def test_boxes_that_show_no_face_are_said(animate, tmp_path, box):
    """Outside of the picture, of one pixel, with its corners swapped: refining nothing must not look like refining."""
    motion = waving(FRAMES, (96, 96))
    motion.face_boxes[:] = box
    save_motion(tmp_path / "poses.npz", motion)
    reporter = Heard()
    record, _ = animate(refine_face="crop", reporter=reporter)
    assert record["refined"] == []
    assert any("no face box is in the frame with 8 pixels per side or more" in said for said in reporter.warnings)


def test_a_gate_without_a_face_is_refused_before_anything_is_sampled(animate, monkeypatch):
    monkeypatch.setattr("stableanimator_cli.animate.pipeline.sample", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(NoFace, match="no face found, which --min-csim compares with"):
        animate("nobody.png", allow_no_face=True, min_csim=0.5)


def test_a_hidden_reference_face_leaves_the_face_to_its_vector(animate, tmp_path):
    np.save(tmp_path / "other.npy", np.random.default_rng(3).normal(size=512).astype(np.float32))
    flags = {"preset": "fast", "face_embedding": tmp_path / "other.npy"}
    _, plain = animate(**flags)
    record, hidden = animate(**flags, hide_reference_face=True, output=tmp_path / "hidden.mp4")
    assert record["config"]["hide_reference_face"] == "all"
    assert (plain != hidden).any()


def test_hiding_needs_a_detector_and_a_plan_says_so(animate, tiny_model, tmp_path):
    """A given embedding needs none; without one, nobody looked for a face where none was found."""
    np.save(tmp_path / "other.npy", np.ones(512, np.float32))
    flags = {"reference": tmp_path / "face.png", "motion": tmp_path / "poses.npz", "output": tmp_path / "out.mp4"}
    flags |= {"model": str(tiny_model), "hide_reference_face": True}
    for more in ({"face_embedding": tmp_path / "other.npy"}, {"allow_no_face": True}):
        for plan_only in (True, False):
            with pytest.raises(ModelMissing, match="has no face detector, which --hide-reference-face needs"):
                run(flags=flags | more, plan_only=plan_only)


def test_faces_are_not_optimised_towards_one_that_is_hidden(animate, tmp_path):
    np.save(tmp_path / "other.npy", np.random.default_rng(3).normal(size=512).astype(np.float32))
    flags = {"face_embedding": tmp_path / "other.npy", "hide_reference_face": True}
    heard = Heard()
    record, _ = animate(reporter=heard, **flags)
    assert (record["face_optimization"], record["refined"]) == ("off", [])
    assert "no face is optimised: that would be towards the hidden one of face.png" in heard.notes
    for asked in ({"refine_face": "crop"}, {"preset": "paper"}):
        with pytest.raises(ConfigError, match=r"--refine-face: found '(crop|full)', expected auto or off with --hide"):
            animate(**flags, **asked)
    assert animate(**flags, preset="released", refine_face="off")[0]["refined"] == []


def test_hiding_needs_a_face_before_the_motion_is_read(animate, tmp_path, monkeypatch):
    monkeypatch.setattr("stableanimator_cli.animate.prepare.open_driving", lambda *_, **__: pytest.fail("read"))
    np.save(tmp_path / "other.npy", np.ones(512, np.float32))
    for flags in ({"face_embedding": tmp_path / "other.npy"}, {"allow_no_face": True}):
        with pytest.raises(NoFace, match=r"nobody\.png: no face found to hide"):
            animate("nobody.png", preset="fast", hide_reference_face=True, **flags)
