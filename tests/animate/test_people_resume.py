"""An interrupted run of several people is resumed only with the same people and faces."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.animate import checkpoint, fingerprint
from stableanimator_cli.animate.checkpoint import Checkpoint, CheckpointManager, SamplingState
from stableanimator_cli.animate.run import run
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError, Interrupted
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.puppets.scene import sample_scene


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for level, name in enumerate(("ref.png", "a.png", "b.png")):
        write_image(tmp_path / name, np.full((64, 64, 3), 50 * level, np.uint8))
    (tmp_path / "m.npz").write_bytes(b"a motion")  # only its digest counts here
    return tmp_path


def opened(**people: Any) -> CheckpointManager:
    flags = {"reference": "ref.png", "motion": "m.npz", "output": "o.mp4", "device": "cpu", "size": "64x64", **people}
    config = resolve(AnimateConfig, flags)
    model = catalogue.open_animator("puppet")
    return CheckpointManager(config, model, DevicePlan.of(config.device), NullReporter())


def interrupted(**people: Any) -> None:
    state = SamplingState(latents=torch.zeros(2, 4, 8, 8), step=1)
    opened(**people).save(Checkpoint(state=state, calls=Counter()))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"pair": "0:1,1:0"}),
        ({"pair": "0:1,1:0"}, {"pair": "0:0,1:1"}),
        ({"pair": "none"}, {}),
        ({"person": "0,1"}, {"person": "1,0"}),
        ({"face_of": ["0=a.png"]}, {"face_of": ["1=a.png"]}),
        ({"face_of": ["0=a.png"]}, {"face_of": ["0=b.png"]}),
        ({"face_of": ["0=a.png", "1=b.png"]}, {"face_of": ["0=b.png", "1=a.png"]}),
        ({"face_of": ["0=a.png"]}, {}),
    ],
)
def test_other_people_or_faces_are_refused(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    interrupted(**before)
    with pytest.raises(ConfigError, match=r"--output: found 'o.mp4', expected the settings of the unfinished run"):
        opened(**now)
    assert opened(**before).restored is not None


def test_an_image_of_a_face_may_move(folder: Path) -> None:
    interrupted(face_of=["1=a.png"])
    shutil.move("a.png", "moved.png")
    assert opened(face_of=["1=moved.png"]).restored is not None


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start or resume a run of two or one drawn people; ``stop`` interrupts it after its first step."""
    for count, name in ((2, "two"), (1, "one")):
        scene = sample_scene("test", 0, people=count, framing="portrait", size=(64, 64), frames=2)
        write_image(tmp_path / f"{name}.png", scene.reference((192, 192)).image)
        save_motion(tmp_path / f"{name}.npz", scene.motion())
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITE_RATIO", 0)
    save = CheckpointManager.save

    def interrupt(self: CheckpointManager, saved: Checkpoint) -> None:
        save(self, saved)
        raise KeyboardInterrupt

    def go(reference: str, motion: str, *, stop: bool = False, **flags: Any) -> Any:
        monkeypatch.setattr(CheckpointManager, "save", interrupt if stop else save)
        usual = {"model": "puppet", "size": "64x64", "steps": 2, "preset": "fast", "device": "cpu"}
        given = {"reference": tmp_path / reference, "motion": tmp_path / motion, "output": tmp_path / "o.mp4"}
        return run(flags=usual | given | flags)

    return go


def without_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints as they were before they held who has which face."""
    monkeypatch.setattr(fingerprint, "people", lambda *_: {})


def test_detected_people_and_faces_are_compared(stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    """No option changes here: the same command finds another pairing than the run began with."""
    with pytest.raises(Interrupted):
        stopped("two.png", "two.npz", stop=True)
    with monkeypatch.context() as patch:
        patch.setattr("stableanimator_cli.animate.people.left_to_right", lambda faces: list(faces)[::-1])
        patch.setattr("stableanimator_cli.animate.people.people_left_to_right", lambda motion, people: people[::-1])
        with pytest.raises(ConfigError, match=r"after 1 steps: face of person 0 face 0 of \w{12} \(now face 1 of"):
            stopped("two.png", "two.npz")
    report = stopped("two.png", "two.npz")
    assert json.loads(report.record.read_text())["resumed"] == 1


def test_an_older_checkpoint_of_several_faces_is_refused(stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        without_people(patch)
        with pytest.raises(Interrupted):
            stopped("two.png", "two.npz", stop=True)
    with pytest.raises(ConfigError, match="that records who has which face; this one began with one face or an"):
        stopped("two.png", "two.npz")


@pytest.mark.parametrize(
    ("reference", "motion"), [("one.png", "one.npz"), ("one.png", "two.npz"), ("two.png", "one.npz")]
)
def test_an_older_checkpoint_of_one_face_resumes(
    stopped, reference: str, motion: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One person, or one face for everybody; the bytes are those of an unbroken run."""
    unbroken = stopped(reference, motion, output=tmp_path / "unbroken.mp4").video.read_bytes()
    with monkeypatch.context() as patch:
        without_people(patch)
        with pytest.raises(Interrupted):
            stopped(reference, motion, stop=True)
    report = stopped(reference, motion)
    assert json.loads(report.record.read_text())["resumed"] == 1
    assert report.video.read_bytes() == unbroken
