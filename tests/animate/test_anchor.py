"""``--anchor reference``: the reference's own pose in front of every window, and not in the output."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stableanimator_cli.animate.run import run
from stableanimator_cli.errors import ModelMissing, NoPerson
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from tests import onnx_samples
from tests.random_model import TINY, write_model
from tests.waving import waving

FRAMES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model whose person detector sees a red rectangle, a picture with one, and a motion."""
    place = tmp_path_factory.mktemp("anchor")
    write_model(place / "model", TINY, dtype=torch.float32)
    onnx_samples.yolox(place / "model" / "person.onnx")
    onnx_samples.simcc(place / "model" / "pose.onnx")
    card = place / "model" / "model.toml"
    parts = (("person_detector", "person.onnx"), ("pose_detector", "pose.onnx"))
    card.write_text(card.read_text() + "".join(f'\n[components.{role}]\nfile = "{file}"\n' for role, file in parts))
    picture = np.full((96, 96, 3), 90, np.uint8)
    picture[20:80, 30:60] = (255, 0, 0)
    write_image(place / "person.png", picture)
    write_image(place / "nobody.png", np.full((96, 96, 3), 90, np.uint8))
    save_motion(place / "poses.npz", waving(FRAMES))
    np.save(place / "face.npy", np.random.default_rng(0).standard_normal(512).astype(np.float32))
    return place


def animate(folder, picture="person.png", **more):
    flags = {
        "reference": folder / picture,
        "motion": folder / "poses.npz",
        "output": folder / "out.mp4",
        "model": str(folder / "model"),
        "face_embedding": folder / "face.npy",
        "window": 4,
    }
    report = run(flags=flags | more)
    return report, np.stack([frame for _, frame in open_clip(report.video).frames()])


def test_the_anchor_is_in_every_window_and_not_in_the_output(folder):
    plan = run(
        flags={
            "reference": folder / "person.png",
            "motion": folder / "poses.npz",
            "output": folder / "out.mp4",
            "model": str(folder / "model"),
            "face_embedding": folder / "face.npy",
            "anchor": "reference",
            "window": 4,
        },
        plan_only=True,
    )
    assert plan.data["frames"] == FRAMES
    assert all(window[0] == 0 for window in plan.data["windows"])
    assert max(window[-1] for window in plan.data["windows"]) == FRAMES  # one frame more than the output has
    report, frames = animate(folder, anchor="reference")
    assert report.frames == len(frames) == FRAMES


def test_the_anchor_changes_what_is_made(folder):
    _, first = animate(folder, anchor="first")
    _, reference = animate(folder, anchor="reference")
    assert (first != reference).any()


def test_nobody_in_the_picture(folder):
    with pytest.raises(NoPerson, match=r"nobody\.png: no person found") as caught:
        animate(folder, "nobody.png", anchor="reference")
    assert caught.value.exit_code == 4


def test_a_model_without_pose_detector(folder, tmp_path):
    write_model(tmp_path / "bare", TINY, dtype=torch.float32)
    with pytest.raises(ModelMissing, match=r"no person_detector and no pose_detector.*, which --anchor"):
        animate(folder, anchor="reference", model=str(tmp_path / "bare"))
