"""`sa evaluate out.mp4 --reference-picture ref.png`: videos of any system, without a ground truth.

Faces and points are planted instead of detected, so that their numbers are known and no network runs.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from stableanimator_cli import __main__ as entry
from stableanimator_cli.cli import console
from stableanimator_cli.errors import BadInput, ModelMissing, NoFace
from stableanimator_cli.evaluate.detections import VideoDetections, VideoDetector
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.media import write_animation, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.records import Clip
from tests.evaluate.samples import drawn, write
from tests.waving import waving

FRAMES = 40
SIDE = (64, 64)


def _vector(similarity: float) -> np.ndarray:
    """A face whose cosine with the reference's is ``similarity``; NaN: no face."""
    vector = np.zeros(512, np.float32)
    vector[:2] = similarity, np.sqrt(1 - similarity**2)
    return vector


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Similarities per frame by the name of a video (else .8), and points; ``reference``: whether it shows a face."""
    planted: dict[str, Any] = {"reference": True, "points": None}

    def start(self: VideoDetector, clip: Clip, *, sha256: str) -> Any:
        count = sum(1 for _ in clip.frames())
        values = planted.get(clip.path.stem, [0.8] * count)
        own = np.stack([_vector(value) for value in values]).astype(np.float32)
        points = np.zeros((count, 134, 3), np.float32) if planted["points"] is None else planted["points"]
        found = VideoDetections(own=own, judge=own * 2, points=points, size=clip.size)
        return SimpleNamespace(clip=clip, finish=lambda: found)

    reference = {True: _vector(1.0), False: np.full(512, np.nan, np.float32)}
    monkeypatch.setattr(VideoDetector, "start", start)
    monkeypatch.setattr(VideoDetector, "embed_largest_face", lambda self, image: (reference[planted["reference"]],) * 2)
    return planted


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return drawn(0, frames=FRAMES)


@pytest.fixture
def things(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    write_image(tmp_path / "ref.png", frames[0][:, :48])
    write(tmp_path / "out.mp4", frames)
    return tmp_path


def _never(flags: Any, settings: Any) -> None:
    raise AssertionError("nothing is animated here")


def _scored(things: Path, made: str = "out.mp4", **flags: Any) -> Scores:
    given = {"inputs": [things / made], "output": things / "scores", "model": "puppet", **flags}
    scores = run(flags={"reference_picture": things / "ref.png", **given}, animate=_never)
    assert isinstance(scores, Scores)
    return scores


def test_the_curve_its_drift_and_its_worst_window(plant: dict[str, Any], things: Path) -> None:
    plant["out"] = [0.9] * 20 + [0.3] * 16 + [np.nan] * 2 + [0.6] * 2
    scores = _scored(things)
    (video,) = scores.videos
    assert video.values["face_rate"] == pytest.approx(38 / 40)
    assert video.values["csim_ref"] == pytest.approx((20 * 0.9 + 16 * 0.3 + 2 * 0.6) / 38)
    assert video.values["csim_ref_judge"] == pytest.approx(video.values["csim_ref"])
    assert video.values["identity_worst"] == pytest.approx(0.3)
    assert video.values["identity_drift"] == pytest.approx((5 * 0.3 + 2 * 0.6) / 7 - 0.9)
    assert video.worst_window == (20, 36)
    assert video.curves["csim_ref"][36:39] == [None, None, pytest.approx(0.6)]
    assert np.isfinite(video.values["flicker"])
    assert (scores.exit_code, scores.failure) == (0, None)
    told = json.loads((things / "scores" / "scores.json").read_text())
    assert told["videos"][0]["worst_window"] == [20, 36]
    assert told["videos"][0]["truth"] is None
    assert not {"lpips_alex", "psnr", "fvd_stylegan_v"} & {one["metric"] for one in told["missing"]}
    title, columns, rows = scores.tables[0]
    assert title == "videos"
    shown = dict(zip(columns, rows[0], strict=True))
    assert (shown["with a face"], shown["worst frames"]) == ("95%", "20 to 35")


def test_the_page_shows_the_curve_and_the_worst_frames_beside_the_reference(
    plant: dict[str, Any], things: Path
) -> None:
    plant["out"] = [0.9] * 10 + [0.2] + [0.8] * 9 + [0.3, 0.31] + [0.8] * 9 + [0.4] + [0.8] * 7 + [np.nan]
    scores = _scored(things)
    page = (scores.output / "report.html").read_text()
    for text in ("frame 10: least like", "frame 20: next least like", "frame 31: next", "frame 39: no face found"):
        assert text in page
    assert "frame 21: " not in page  # beside frame 20
    names = sorted(path.name for path in (scores.output / "pictures").iterdir())
    assert names == [
        "out.csim_ref-2.jpg", "out.csim_ref-3.jpg", "out.csim_ref.jpg", "out.no-face.jpg", "out.poster.jpg"
    ]  # fmt: skip
    assert "<span>prediction</span><span>reference</span>" in page
    assert "similarity to the reference" in page
    assert "least like the reference in frames" in page


def test_hands_and_face_are_compared_with_the_poses(plant: dict[str, Any], things: Path) -> None:
    motion = waving(FRAMES, SIDE)
    save_motion(things / "poses.npz", motion)
    plant["points"] = motion.keypoints[:, 0].copy()
    exact = _scored(things, poses=things / "poses.npz").videos[0]
    assert exact.values["keypoint_error"] == exact.values["hand_error"] == 0
    assert exact.values["hand_pck"] == exact.values["landmark_pck"] == 1
    plant["points"][:, 92:, 0] += 100
    moved = _scored(things, poses=things / "poses.npz").videos[0]
    assert moved.values["keypoint_error"] == 0 < moved.values["hand_error"]
    assert moved.values["hand_pck"] == 0


def test_points_that_were_not_scored_are_listed_as_missing(plant: dict[str, Any], things: Path) -> None:
    """Hands that the motion lacks have no value at all; hands that no frame shows have no error alone."""
    motion = waving(FRAMES, SIDE)
    save_motion(things / "poses.npz", motion)
    plant["points"] = motion.keypoints[:, 0].copy()
    plant["points"][:, 92:, 2] = 0
    scores = _scored(things, poses=things / "poses.npz")
    missing = {one.metric: one.reason for one in scores.missing}
    assert "hand points that drove the videos is found in them" in missing["hand_error"]
    assert not {"hand_pck", "hand_found", "landmark_error", "keypoint_error"} & set(missing)
    motion.keypoints[:, :, 92:, 2] = 0
    save_motion(things / "poses.npz", motion)
    scores = _scored(things, poses=things / "poses.npz")
    missing = {one.metric: one.reason for one in scores.missing if one.metric.startswith("hand")}
    assert missing == dict.fromkeys(
        ("hand_error", "hand_pck", "hand_found"), "what drove the videos shows too few hand points"
    )
    (line,) = [row for title, _, rows in scores.shown() if title == "not computed" for row in rows if "hand" in row[0]]
    assert line == ["hand_error, hand_pck, hand_found", missing["hand_error"], "--poses MOTION"]


def test_what_any_system_wrote_is_read(plant: dict[str, Any], things: Path, frames: list[np.ndarray]) -> None:
    made = things / "made"
    made.mkdir()
    write(made / "a.mp4", frames[:6])
    write_animation(made / "b.gif", frames[:5], Fraction(8))
    with av.open(str(made / "c.webm"), "w") as file:
        stream: Any = file.add_stream("libvpx-vp9", rate=8)
        stream.width, stream.height, stream.pix_fmt = *SIDE, "yuv420p"
        for frame in frames[:4]:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    (made / "d").mkdir()
    for index, frame in enumerate(frames[:3]):
        write_image(made / "d" / f"{index}.png", frame)
    scores = _scored(things, "made")
    assert [(video.name, video.frames) for video in scores.videos] == [("a", 6), ("b", 5), ("c", 4), ("d", 3)]
    assert scores.rows["csim_ref"].shown == pytest.approx(0.8)
    assert [video.frames for video in _scored(things, "made/d").videos] == [3]


def test_a_video_below_the_mark_ends_with_8(plant: dict[str, Any], things: Path) -> None:
    plant["out"] = [0.5] * FRAMES
    assert _scored(things, min_csim=0.5).exit_code == 0
    failed = _scored(things, min_csim=0.6)
    assert failed.exit_code == 8
    assert str(failed.failure) == f"{things / 'out.mp4'}: csim_ref is 0.5, --min-csim is 0.6"
    told = json.loads((things / "scores" / "scores.json").read_text())
    assert told["identity_check"] == {"min_csim": 0.6, "result": "failed", "failed_videos": ["out"]}
    assert (told["error"], told["exit_code"]) == ("check-failed", 8)
    assert (things / "scores" / "report.html").is_file()


def test_of_several_the_lowest_is_named_and_one_without_a_face_fails(
    plant: dict[str, Any], things: Path, frames: list[np.ndarray]
) -> None:
    for name in ("a", "b", "c"):
        write(things / "made" / f"{name}.mp4", frames[:4])
    plant |= {"a": [0.5] * 4, "b": [0.4] * 4, "c": [np.nan] * 4}
    failed = _scored(things, "made", min_csim=0.45)
    assert str(failed.failure).endswith("b.mp4: csim_ref is 0.4, --min-csim is 0.45; 2 of 3 videos do not reach it")
    assert failed.about["identity_check"]["failed_videos"] == ["b", "c"]
    assert _scored(things, "made").exit_code == 0  # told in its row
    assert [row[2] for row in failed.tables[0][2]] == ["100%", "100%", "no face in any frame"]


def test_a_video_without_any_face_has_a_row_and_ends_with_4(plant: dict[str, Any], things: Path) -> None:
    plant["out"] = [np.nan] * FRAMES
    scores = _scored(things)
    assert scores.exit_code == 4
    assert str(scores.failure) == f"{things / 'out.mp4'}: no frame shows a face, identity is not measured"
    (video,) = json.loads((things / "scores" / "scores.json").read_text())["videos"]
    assert (video["values"]["csim_ref"], video["values"]["face_rate"], video["worst_window"]) == (None, 0, None)
    assert video["values"]["flicker"] > 0
    assert (things / "scores" / "pictures" / "out.no-face.jpg").is_file()
    assert "no frame shows a face" in str(_scored(things, min_csim=0.1).failure)
    assert _scored(things, min_csim=0.1).exit_code == 8


def test_a_reference_without_a_face_is_refused_before_anything_is_written(plant: dict[str, Any], things: Path) -> None:
    plant["reference"] = False
    with pytest.raises(NoFace, match=r"ref\.png: no face found, which the videos are compared with"):
        _scored(things)
    assert not (things / "scores").exists()


def test_without_a_recogniser_the_mark_cannot_be_measured(things: Path) -> None:
    with pytest.raises(ModelMissing, match="--min-csim: found no model with a face recogniser"):
        _scored(things, model=None, min_csim=0.5)
    scores = _scored(things, model=None)
    assert (scores.exit_code, scores.tables[0][2][0][2]) == (0, "–")
    assert "flicker" in scores.rows


def test_references_are_found_by_name(plant: dict[str, Any], things: Path, frames: list[np.ndarray]) -> None:
    for name in ("a", "b"):
        write(things / "made" / f"{name}.mp4", frames[:4])
    (things / "refs").mkdir()
    write_image(things / "refs" / "a.png", frames[0])
    with pytest.raises(BadInput, match="no image named b"):
        _scored(things, "made", reference_picture=things / "refs")


def test_the_command_ends_with_one_line(
    plant: dict[str, Any], things: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant["out"] = [0.5] * FRAMES
    monkeypatch.chdir(things)
    line = "sa evaluate out.mp4 --reference-picture ref.png --model puppet --min-csim 0.6"
    for more in ("--progress none", "--json --quiet"):
        monkeypatch.setattr(sys, "argv", [*line.split(), *more.split()])
        with pytest.raises(SystemExit) as left:
            entry.main()
        console.configure()
        assert left.value.code == 8
        said = capsys.readouterr()
        if "--json" in more:
            assert json.loads(said.out)["message"] == "out.mp4: csim_ref is 0.5, --min-csim is 0.6"
            assert not said.err
        else:
            assert said.out == "scores/out/scores.json\n"
            assert said.err.splitlines()[-2:] == [
                "sa: out.mp4: csim_ref is 0.5, --min-csim is 0.6",
                "hint: the scores were written; report.html shows the worst frames",
            ]
