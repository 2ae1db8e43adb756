"""Keypoints are compared with the motion's frame that each output frame shows, which the run record tells."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.animate.driving import Driving, open_driving
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.evaluate.driving_points import Unmatched, indices_shown
from stableanimator_cli.evaluate.run import run
from stableanimator_cli.evaluate.scores import Scores
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.records import Motion
from tests.evaluate.samples import drawn, write
from tests.waving import waving

FRAMES = 20
IRREGULAR = tuple(Fraction(tick, 30) for tick in (0, 1, 2, 6, 7, 8, *range(20, 34)))


def _motion(path: Path, times: tuple[Fraction, ...] | None = None) -> Path:
    moving = waving(FRAMES, (64, 64), fps=Fraction(30))
    return save_motion(path, moving if times is None else replace(moving, times=times))


def _driven(path: Path, fps: Fraction | None, frames: tuple[int | None, int | None] | None) -> Driving:
    config = AnimateConfig(reference=path, motion=path, output=Path("o.mp4"), frames=frames, fps=fps, size=(64, 64))
    return open_driving(config, NullReporter())


def _record(driving: Driving, path: Path, **config: Any) -> dict[str, Any]:
    times = driving.motion_times
    return {
        "stableanimator-cli": "0", "config": {"resize": "crop", **config},
        "output": {"frames": len(driving.skeletons), "fps": str(driving.fps)},
        "inputs": {"motion": {"path": str(path), "sha256": sha256_of(path)}},
        "motion": {
            "frames": list(driving.motion_frames),
            "times": None if times is None else [str(time) for time in times],
        },
    }  # fmt: skip


class _Perfect:
    """Detectors that find in every frame exactly what drove it; frames are known by their pixels."""

    def __init__(self, motion: Motion, order: tuple[int, ...], images: list[np.ndarray]) -> None:
        self.found = [motion.keypoints[index] for index in order]
        self.images = np.stack(images).astype(np.int16)
        self.people = self.points = self

    def detect(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        return [np.array([[0, 0, 64, 64, 1]], np.float32) for _ in frames]

    def estimate(self, frames: list[np.ndarray], boxes: Any) -> list[np.ndarray]:
        return [self.found[int(np.abs(self.images - frame).sum((1, 2, 3)).argmin())] for frame in frames]


@pytest.mark.parametrize(
    ("fps", "frames", "times"),
    [
        (None, None, None), (Fraction(12), None, None), (Fraction(60), None, None), (None, (-7, None), None),
        (None, (-9, -2), None), (None, None, IRREGULAR), (Fraction(25), (4, None), IRREGULAR),
    ],
)  # fmt: skip
def test_a_perfect_video_is_perfect_whatever_chose_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fps: Any, frames: Any, times: Any
) -> None:
    poses = _motion(tmp_path / "poses.npz", times)
    driving = _driven(poses, fps, frames)
    count = len(driving.skeletons)
    still = drawn(0, frames=1)[0]
    images = [np.roll(still, k % 60, axis=1) for k in range(count)]
    video = write(tmp_path / "made.mp4", images, fps=8)
    video.with_suffix(".json").write_text(json.dumps(_record(driving, poses)))
    truth = write(tmp_path / "truth.mp4", [still] * count)
    perfect = _Perfect(load_motion(poses), driving.motion_frames, images)
    monkeypatch.setattr(Detectors, "open", lambda *given, **more: perfect)
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    given = {"inputs": [video, truth], "output": tmp_path / "out", "model": "puppet", "poses": poses}
    scores = run(flags=given, animate=lambda flags, settings: None)
    assert isinstance(scores, Scores)
    assert scores.videos[0].values["keypoint_error"] == pytest.approx(0, abs=1e-6)
    assert scores.videos[0].values["keypoint_pck"] == 1


def _shown(path: Path, record: Any, count: int, rate: int | None = 30) -> list[int]:
    times = [None if rate is None else Fraction(index, rate) for index in range(count)]
    return indices_shown(path, load_motion(path), record, times)


def test_another_file_of_the_motion_is_matched_by_its_times(tmp_path: Path) -> None:
    driving = _driven(_motion(tmp_path / "a.npz"), Fraction(15), (4, None))
    record = _record(driving, tmp_path / "a.npz")
    fine = save_motion(tmp_path / "fine.npz", waving(2 * FRAMES, (64, 64), fps=Fraction(60)))
    assert _shown(fine, record, len(driving.skeletons)) == [2 * index for index in driving.motion_frames]
    short = save_motion(tmp_path / "short.npz", waving(5, (64, 64)))
    with pytest.raises(Unmatched, match="which the motion does not have"):
        _shown(short, record, len(driving.skeletons))


def test_an_older_record_works_where_nothing_was_repeated(tmp_path: Path) -> None:
    poses = _motion(tmp_path / "a.npz")
    for frames, expected in (("-7:", range(13, 20)), ("3:9", range(3, 9)), (":", range(20))):
        bounds = tuple(int(side) if side else None for side in frames.split(":"))
        record = _record(_driven(poses, None, bounds), poses, frames=frames)  # type: ignore[arg-type]
        del record["motion"]
        assert _shown(poses, record, len(expected)) == list(expected)
    record = _record(_driven(poses, Fraction(15), None), poses, fps="15")
    del record["motion"]
    with pytest.raises(Unmatched, match="too old to show"):
        _shown(poses, record, 10)
    irregular = _motion(tmp_path / "b.npz", IRREGULAR)
    record = _record(_driven(irregular, None, None), irregular)
    del record["motion"]
    with pytest.raises(Unmatched, match="too old to show"):
        _shown(irregular, record, record["output"]["frames"])


def test_without_a_record_clocks_decide(tmp_path: Path) -> None:
    poses = _motion(tmp_path / "a.npz")
    assert _shown(poses, None, FRAMES, rate=None) == list(range(FRAMES))
    assert _shown(poses, None, 1, rate=8) == [0]
    with pytest.raises(Unmatched, match="has no times"):  # which five of the twenty is not known
        _shown(poses, None, 5, rate=None)
    assert _shown(poses, None, 5, rate=15) == [0, 2, 4, 6, 8]
    assert _shown(poses, None, FRAMES, rate=8) == list(range(FRAMES))
    with pytest.raises(Unmatched):
        _shown(poses, None, 12, rate=15)
    with pytest.raises(Unmatched, match="no run record"):
        _shown(poses, None, 21, rate=None)


@pytest.mark.parametrize(
    "motion",
    [
        {"frames": [0, 1], "times": None}, {"frames": [0, -1, 2], "times": None}, {"frames": [0, "1", 2]},
        {"frames": [0, 1, 99], "times": None}, {"frames": [0, True, 2]}, 
        {"frames": [0, 1, 2], "times": ["x", "1", "2"]}, {"frames": [0, 1, 2], "times": ["1e999999999", "1", "2"]},
        {"frames": [0, 1, 2], "times": ["0", "1/0", "2"]}, {"frames": [0, 1, 2], "times": ["0", "1"]},
        {"frames": [0, 1, 2], "times": 7}, {"frames": [0, 1, 2], "times": ["0", "1e400", "2"]},
    ],
)  # fmt: skip
def test_a_damaged_record_is_a_reason_and_no_error(tmp_path: Path, motion: Any) -> None:
    poses = _motion(tmp_path / "a.npz")
    record = {"stableanimator-cli": "0", "config": {}, "output": {"frames": 3, "fps": "30"}, "motion": motion}
    with pytest.raises(Unmatched):
        _shown(poses, record, 3)


def test_a_motion_that_cannot_be_matched_is_missing_with_its_reason(tmp_path: Path) -> None:
    video = write(tmp_path / "made.mp4", drawn(0))
    poses = _motion(tmp_path / "poses.npz")
    record = {"stableanimator-cli": "0", "config": {"fps": "8"}, "output": {"frames": 12, "fps": "8"}}
    video.with_suffix(".json").write_text(json.dumps(record))
    given = {"inputs": [video, video], "output": tmp_path / "out", "model": "puppet", "poses": poses}
    scores = run(flags=given, animate=lambda flags, settings: None)
    assert isinstance(scores, Scores)
    assert "keypoint_error" not in scores.rows
    assert any("too old to show" in note for note in scores.videos[0].notes)
    assert any("too old" in one.reason for one in scores.missing if one.metric == "keypoint_error")
    assert next(iter(open_clip(video).frames()))[1].shape == (64, 64, 3)
