"""Face optimisation of a motion that does not say where faces are: found in the estimates, reported, and resumed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stableanimator_cli.animate import checkpoint
from stableanimator_cli.animate.identity_gate import FaceSimilarity
from stableanimator_cli.animate.result import Animation
from stableanimator_cli.animate.run import run
from stableanimator_cli.cli import console
from stableanimator_cli.errors import Interrupted
from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.puppets.scene import sample_scene
from tests.animate.clips import Heard, face_picture, in_form
from tests.waving import waving

FRAMES, STEPS = 5, 4
BOX = np.float32((16, 16, 48, 48))
HIDDEN = np.full(4, np.nan, np.float32)


class Detections:
    """Stands for ``engine.faces._largest``: frame by frame, in the order of the search, a box or none."""

    def __init__(self, *visible: bool) -> None:
        self.visible = list(visible)

    def __call__(self, engine: object, frame: np.ndarray) -> np.ndarray:
        return BOX if self.visible.pop(0) else HIDDEN


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A picture with a face for the tests' detector, and five skeleton pictures."""
    face_picture(tmp_path / "face.png")
    in_form("pictures", tmp_path, FRAMES)
    return tmp_path


@pytest.fixture
def animate(place: Path, seeing_model: Path, monkeypatch: pytest.MonkeyPatch):
    """With ``visible``: what the detector sees, search by search. A state is written after each step."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITE_RATIO", 0)

    def go(output: str = "out.mp4", visible: Detections | None = None, reporter: Any = None, **flags: Any) -> Animation:
        if visible is not None:
            monkeypatch.setattr("stableanimator_cli.engine.face_optimization._largest", visible)
        usual = {
            "reference": place / "face.png",
            "motion": place / "poses",
            "output": place / output,
            "model": str(seeing_model),
            "steps": STEPS,
            "refine_steps": "0:",
            "window": 4,
            "refine_iters": 2,
            "decode_chunk": 2,
            "device": "cpu",
        }
        return run(flags=usual | flags, reporter=reporter)  # type: ignore[return-value]

    return go


def recorded(report: Animation) -> dict[str, Any]:
    return json.loads(report.record.read_text())


def rows(record: dict[str, Any]) -> list[tuple[int, int]]:
    return [(row["step"], row["frames"]) for row in record["refined"]]


NOTHING = [False] * FRAMES
LATE = [*NOTHING, *NOTHING, False, True, True, False, False, True, False, False]
"""Nothing in steps 0 and 1; frames 1 and 2 in step 2; frame 0 of those left in step 3."""


@pytest.mark.parametrize(("mode", "window"), [("crop", 4), ("full", 16)])
def test_a_face_that_shows_late_is_optimised_from_there(animate, mode, window):
    visible, reporter = Detections(*LATE), Heard()
    report = animate(visible=visible, reporter=reporter, refine_face=mode, window=window)
    record = recorded(report)
    assert rows(record) == [(2, 2), (3, 3)]
    assert visible.visible == []
    faces = {"frames": 3, "total": FRAMES, "steps": 2, "requested": STEPS}
    assert record["faces_refined"] == report.to_json()["faces_refined"] == faces
    assert "faces optimised in 3 of 5 frames, in 2 of 4 denoising steps" in reporter.notes
    assert reporter.warnings == record["warnings"] == report.to_json()["warnings"] == []


def test_no_face_in_any_step_is_a_warning_on_stderr_and_in_the_record(animate, capsys):
    report = animate(visible=Detections(*NOTHING * STEPS), reporter=console.get())
    words = "no face was optimised: the detector found none in the estimates of 4 denoising steps"
    assert f"warning: {words}" in capsys.readouterr().err
    record = recorded(report)
    assert (record["refined"], record["faces_refined"]["steps"], record["faces_refined"]["frames"]) == ([], 0, 0)
    assert len(record["warnings"]) == len(report.to_json()["warnings"]) == 1
    assert record["warnings"][0].startswith(words)


@pytest.mark.parametrize("broken_after", [1, 3])
def test_a_run_that_is_interrupted_ends_in_the_same_bytes(place, animate, monkeypatch, broken_after):
    """Frames seen before the break keep their boxes, the others are searched again after it."""
    whole = animate("whole.mp4", Detections(*LATE))
    save, kept = checkpoint.CheckpointManager.save, []

    def break_after(self: checkpoint.CheckpointManager, saved: checkpoint.Checkpoint) -> None:
        save(self, saved)
        kept.append(saved.state.step)
        if len(kept) == broken_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.CheckpointManager, "save", break_after)
    visible = Detections(*LATE)
    with pytest.raises(Interrupted):
        animate(visible=visible)
    resumed = animate(visible=visible)
    assert hashlib.sha256(resumed.video.read_bytes()).digest() == hashlib.sha256(whole.video.read_bytes()).digest()
    assert recorded(resumed)["refined"] == recorded(whole)["refined"]
    assert recorded(resumed)["faces_refined"] == recorded(whole)["faces_refined"]
    assert visible.visible == []


def test_each_drawing_of_the_gate_is_searched_by_itself(animate, monkeypatch):
    scripted = iter([0.1, 0.9])

    def measured(*_: object) -> FaceSimilarity:
        return FaceSimilarity(similarity=np.full(FRAMES, next(scripted)))

    monkeypatch.setattr("stableanimator_cli.animate.pipeline._measure_identity", measured)
    visible = Detections(*[True] * FRAMES, *NOTHING * 3, *[True] * FRAMES)
    record = recorded(animate(visible=visible, min_csim=0.5, redraw=1))
    assert len(record["redrawn_windows"]) == 1
    assert rows(record) == [(3, FRAMES)]
    assert visible.visible == []


def test_points_without_faces_are_no_reason_to_leave_faces_alone(place, animate):
    """A motion of bodies only (no points of a face) has no boxes: faces are found in the estimates."""
    motion = waving(FRAMES, (64, 64))
    motion.keypoints[:, :, 24:92, 2] = 0
    motion.face_boxes[:] = np.nan
    save_motion(place / "body.npz", motion)
    reporter = Heard()
    record = recorded(animate(motion=place / "body.npz", visible=Detections(*[True] * FRAMES), reporter=reporter))
    assert rows(record) == [(step, FRAMES) for step in range(STEPS)]
    assert "body.npz: no frame has points of a face; faces are detected in the denoised estimates" in reporter.notes


def test_two_processes_find_the_faces_of_one(place, animate):
    one = animate("one.mp4", Detections(*LATE))
    two = animate("two.mp4", Detections(*LATE), gpus=2)
    assert two.video.read_bytes() == one.video.read_bytes()
    assert recorded(two)["refined"] == recorded(one)["refined"] != []


def test_a_drawn_person_on_skeleton_pictures_is_optimised_once_the_face_shows(tmp_path):
    """The shipped model and its detector, nothing replaced."""
    scene = sample_scene("test", 3, size=(72, 72), frames=4)
    motion = scene.motion()
    write_image(tmp_path / "person.png", scene.reference((256, 256)).image)
    for index in range(4):
        picture = draw_skeleton(motion.keypoints[index][motion.present[index]], (72, 72))
        write_image(tmp_path / "poses" / f"frame_{index}.png", picture)
    flags = {"reference": tmp_path / "person.png", "motion": tmp_path / "poses", "output": tmp_path / "out.mp4"}
    flags |= {
        "model": "puppet",
        "size": "72x72",
        "steps": 6,
        "refine_steps": "0:",
        "preset": "standard",
        "refine_iters": 2,
        "device": "cpu",
    }
    record = recorded(run(flags=flags))  # type: ignore[arg-type]
    assert record["refined"]
    # from the step on in which the detector finds the face in the estimate: which one depends on the weights
    first = record["refined"][0]["step"]
    assert [row["step"] for row in record["refined"]] == list(range(first, 6))
    assert record["faces_refined"]["steps"] == 6 - first
    assert record["faces_refined"]["requested"] == 6
    assert all(row["after"] > row["before"] for row in record["refined"])
