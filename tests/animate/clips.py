"""Driving motions on disk in every form, and what a run says while it works."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.media import VideoWriter, open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.openpose import save_openpose
from stableanimator_cli.progress import NullReporter
from tests.tiny import skeletons, waving


class Heard(NullReporter):
    """Remembers notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        self.notes.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def face_picture(path: Path) -> None:
    """A picture that shows a face to the tests' detector: a red rectangle with an orange one in it."""
    picture = np.full((96, 96, 3), 60, np.uint8)
    picture[20:70, 30:60] = (255, 0, 0)
    picture[35:45, 40:50] = (255, 120, 0)
    write_image(path, picture)


def skeleton_video(path: Path, frames: int, *, fps: Fraction | int = 30, tag: bool = True, **more: Any) -> Path:
    """A lossless video of the waving person at 128x128."""
    with VideoWriter(
        path, (128, 128), Fraction(fps), lossless=True, tag={"sa.kind": "skeleton"} if tag else {}, **more
    ) as writer:
        for picture in skeletons(frames):
            writer.write(picture)
    return path


def in_form(form: str, folder: Path, frames: int) -> Path:
    """The waving person as ``video``, ``pictures`` (frame_0.png ...), ``npz``, ``clip folder`` (as preprocessing leaves
    it), ``json folder`` or ``json file``."""
    if form == "video":
        return skeleton_video(folder / "poses.mp4", frames)
    if form == "npz":
        return save_motion(folder / "poses.npz", waving(frames))
    if form == "clip folder":
        skeleton_video(folder / "clip" / "source.mp4", frames)
        save_motion(folder / "clip" / "motion.npz", waving(frames))
        (folder / "clip" / "clip.json").write_text("{}", encoding="utf-8")
        return folder / "clip"
    if form.startswith("json"):
        return save_openpose(folder / ("poses.json" if form == "json file" else "poses"), waving(frames, fps=None))
    for index, picture in enumerate(skeletons(frames)):
        write_image(folder / "poses" / f"frame_{index}.png", picture)
    return folder / "poses"


def clip_of(folder: Path, source: Path, frames: int, *, fps: int = 10, first: int = 0) -> Path:
    """A clip folder of ``frames`` frames of ``source``, from ``first`` on, which has sound."""
    folder.mkdir()
    (folder / f"source{source.suffix}").symlink_to(source)
    times = tuple(Fraction(first + index, fps) for index in range(frames))
    save_motion(folder / "motion.npz", dataclasses.replace(waving(frames), times=times))
    record = {
        "format": 1, "name": folder.name, "frames": frames, "size": [128, 128], "fps": str(fps), "audio": True,
        "source": {"path": str(source), "sha256": "0" * 64}, "options": {"frames": None, "fps": None}, "key": "0" * 64,
    }  # fmt: skip
    (folder / "clip.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


FORMS = ("video", "pictures", "npz", "clip folder", "json folder", "json file")


def plain_picture(path: Path, size: tuple[int, int] = (96, 96), red: Sequence[int] | None = None) -> Path:
    """Grey noise; ``red`` (x0, y0, x1, y1) is the rectangle that the tests' detectors call a face and a person."""
    rng = np.random.default_rng(4)
    picture = np.repeat(rng.integers(60, 90, (size[1], size[0], 1), dtype=np.uint8), 3, axis=2)
    if red is not None:
        x0, y0, x1, y1 = red
        picture[y0:y1, x0:x1] = (250, 20, 20)
    write_image(path, picture)
    return path


def frames_of(path: Path) -> np.ndarray:
    return np.stack([picture for _, picture in open_clip(path).frames()])
