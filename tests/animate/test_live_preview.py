"""``--preview live``: an image that is replaced while the run works, of which the video knows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stableanimator_cli.animate import live_preview
from stableanimator_cli.animate.live_preview import strip
from stableanimator_cli.animate.run import run
from stableanimator_cli.engine import render
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import carries_mark
from stableanimator_cli.motion.motion_file import save_motion
from tests.animate.clips import Heard, plain_picture
from tests.tiny import waving


@pytest.fixture
def animate(tmp_path: Path, tiny_model: Path):
    """Five steps of six frames with the tiny model."""
    plain_picture(tmp_path / "person.png")
    save_motion(tmp_path / "poses.npz", waving(6))

    def go(name: str = "out", reporter: Heard | None = None, **flags: Any) -> Any:
        usual = {
            "reference": tmp_path / "person.png", "motion": tmp_path / "poses.npz", "output": tmp_path / f"{name}.mp4",
            "model": str(tiny_model), "window": 4, "steps": 5, "allow_no_face": True, "device": "cpu",
        }  # fmt: skip
        return run(flags=usual | flags, reporter=reporter)

    return go


@pytest.fixture
def shown(monkeypatch) -> list[tuple[int, tuple[int, int]]]:
    """The step and size of every image that was written."""
    rows: list[tuple[int, tuple[int, int]]] = []
    save, show = live_preview.save_image, live_preview.LivePreview._show

    def saved(path: Path, image: Image.Image, kind: str) -> None:
        save(path, image, kind)
        with Image.open(path) as read:
            assert carries_mark(path)
            rows[-1] = (rows[-1][0], read.size)

    def step_of(self: Any, denoised: Any, step: Any) -> None:
        rows.append((step.index, (0, 0)))
        show(self, denoised, step)

    monkeypatch.setattr(live_preview, "save_image", saved)
    monkeypatch.setattr(live_preview.LivePreview, "_show", step_of)
    return rows


@pytest.mark.parametrize("more", [{}, {"offload": "model"}, {"sampler": "heun", "churn": 5}])
def test_the_video_is_the_same_to_the_byte_and_the_image_is_removed(animate, shown, tmp_path, more):
    plain = animate("plain", **more)
    assert shown == []
    watched = animate("watched", preview="live", preview_every=2, **more)
    assert shown == [(step, (4 * 64, 64)) for step in (1, 3, 4)]
    assert watched.video.read_bytes() == plain.video.read_bytes()
    assert watched.preview is None
    records = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "watched")]
    assert records[0]["calls"] == records[1]["calls"]
    assert (records[0]["config"]["preview"], records[1]["config"]["preview"]) == (False, "live")
    assert not list(tmp_path.glob("*.live.png"))


def test_both_previews(animate, shown, tmp_path):
    assert animate(preview="both").preview == tmp_path / "out.preview.mp4"
    assert [step for step, _ in shown] == [0, 1, 2, 3, 4]  # a fifth of five steps


def test_an_interrupted_run_keeps_its_image_and_goes_on_with_it(animate, monkeypatch, tmp_path):
    animate("whole")
    monkeypatch.setattr("stableanimator_cli.animate.checkpoint.INTERVAL", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("stableanimator_cli.animate.pipeline.write_video", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            animate(preview="live")
    assert (tmp_path / "out.live.png").is_file()
    result = animate(preview="live", preview_every=3)  # says nothing about pixels: the run may resume
    assert json.loads(result.record.read_text())["resumed"] == 1
    assert result.video.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not (tmp_path / "out.live.png").exists()


def test_a_picture_of_someone_else_is_refused_before_any_work(animate, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "out.live.png")
    content = (tmp_path / "out.live.png").read_bytes()
    with pytest.raises(BadInput, match=r"out\.live\.png: it exists and was not written by sa"):
        animate(preview="live")
    animate()  # without a live preview the name is free
    assert (tmp_path / "out.live.png").read_bytes() == content


def test_a_preview_that_fails_is_a_warning(animate, tmp_path, monkeypatch):
    def full(path: Path, *_: Any) -> None:
        raise BadInput.because(path, "no room left to write")

    monkeypatch.setattr(live_preview, "save_image", full)
    heard = Heard()
    assert animate(reporter=heard, preview="live").video.is_file()
    assert [text for text in heard.warnings if "live preview" in text] == [
        f"no live preview: {tmp_path / 'out.live.png'}: no room left to write"
    ]


def test_the_last_image_shows_frames_of_the_video(animate, monkeypatch, tmp_path):
    """In the last step the estimate is the result; at this size the strip is decoded frame by frame in full."""
    strips: list[np.ndarray] = []
    monkeypatch.setattr(live_preview, "strip", lambda *args: strips.append(strip(*args)) or strips[-1])
    frames: list[np.ndarray] = []
    decode = render.decode
    monkeypatch.setattr(
        "stableanimator_cli.animate.video.decode", lambda *args: (frames.append(f) or f for f in decode(*args))
    )
    animate(preview="live", decode_chunk=1)
    assert np.array_equal(strips[-1], np.concatenate([frames[index] for index in (0, 2, 3, 5)], axis=1))
