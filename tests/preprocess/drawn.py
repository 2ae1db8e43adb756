"""Videos in which a red rectangle is a person and his face, and a model that finds it: networks of the real contracts
without training. Where the rectangle is not, nobody is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.media import VideoWriter, write_image
from tests import onnx_samples

SIZE = (160, 120)
CARD = """\
name = "rectangles"
summary = "Finds red rectangles"
task = "pose"
licence = "Apache-2.0"
source = "made by the tests"
face_channel_order = "bgr"

[components.person_detector]
file = "person.onnx"

[components.pose_detector]
file = "pose.onnx"

[components.face]
file = "face"
"""

Box = tuple[int, int, int, int]


def write_model(folder: Path) -> Path:
    """A model folder; its detectors see one person a frame at most."""
    (folder / "face").mkdir(parents=True)
    onnx_samples.yolox(folder / "person.onnx", batch="b")
    onnx_samples.simcc(folder / "pose.onnx")
    onnx_samples.faces(folder / "face")
    (folder / "model.toml").write_text(CARD, encoding="utf-8")
    return folder


def frame(box: Box | None, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Grey checks, and a red rectangle at ``box`` (x0, y0, x1, y1, whole pixels)."""
    width, height = size
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[::8] += 40
    picture[:, ::8] += 40
    if box is not None:
        x0, y0, x1, y1 = box
        picture[y0:y1, x0:x1] = (250, 10, 10)
    return picture


def walk(count: int, missing: Sequence[int] = (), step: int = 2) -> list[Box | None]:
    """A rectangle of 40 x 64 that goes right by ``step`` pixels a frame; in the frames ``missing`` it is not there."""
    places = [(10 + step * t % 100, 30, 50 + step * t % 100, 94) for t in range(count)]
    return [None if t in missing else place for t, place in enumerate(places)]


def write_video(path: Path, boxes: Iterable[Box | None], fps: Fraction | int = 8, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, size, fps, crf=1, preset="ultrafast") as video:
        for box in boxes:
            video.write(frame(box, size))
    return path


def write_reference(path: Path, box: Box = (40, 20, 80, 84), size: tuple[int, int] = SIZE) -> Path:
    write_image(path, frame(box, size))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file at or below a folder by its relative name; links by where they point."""
    return {
        str(file.relative_to(folder)): str(file.readlink()).encode() if file.is_symlink() else file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_symlink() or file.is_file()
    }


def clips_of(folder: Path) -> dict[str, bytes]:
    """``contents`` without the report, which tells of host and seconds."""
    return {name: data for name, data in contents(folder).items() if not name.startswith("report.")}
