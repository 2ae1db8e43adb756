"""What was made beside the truth, as a video for the report, and the frame that came out worst as a picture.

Both lie in folders beside the page and are linked from it: a page of 1,000 videos must not carry their pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.media import VideoWriter, open_clip, read_picture
from stableanimator_cli.motion.interchange import UNTIMED_FPS  # folders of pictures have no clock

FOLDER, PICTURES = "videos", "pictures"
_WIDEST = 512  # pixels of one side of a picture in the page
_SIGNS = (("csim_ref", "least like the reference"), ("psnr", "farthest from the ground truth"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A frame as a JPEG in ``PICTURES``, and why it is shown."""

    frame: int
    why: str
    path: Path


def write_pair(video: VideoScore, out: Path) -> list[Picture]:
    """Write ``videos/NAME.mp4``, the prediction at the left, and ``pictures/NAME.METRIC.jpg``, its worst frames, which
    are given. A video that is there already and newer than both of its sources is kept."""
    worst = _worst(video)
    path = out / FOLDER / f"{video.name}.mp4"
    sources = [video.pair.predicted] + ([] if video.pair.truth is None else [video.pair.truth])
    kept = path.is_file() and path.stat().st_mtime > max(source.stat().st_mtime for source in sources)
    rows = _rows(video)
    first = next(rows)
    height, width = first.shape[:2]
    pictures: list[Picture] = []

    def see(index: int, row: np.ndarray) -> None:
        if index in worst:
            metric, why = worst[index]
            picture = Picture(frame=index, why=why, path=out / PICTURES / f"{video.name}.{metric}.jpg")
            _write(picture.path, row)
            pictures.append(picture)

    if kept:
        for index, row in enumerate(_again(first, rows)):
            see(index, row)
            if index >= max(worst, default=-1):
                break
        return pictures
    fps = open_clip(video.pair.predicted).fps or UNTIMED_FPS
    with VideoWriter(path, (width, height), fps, preset="veryfast", crf=20) as writer:
        for index, row in enumerate(_again(first, rows)):
            writer.write(row)
            see(index, row)
    return pictures


def _again(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _worst(video: VideoScore) -> dict[int, tuple[str, str]]:
    """Frame -> the first metric that it is worst by, and why it is shown in words: the lowest points of the curves that
    say how good a frame is."""
    found: dict[int, tuple[str, str]] = {}
    for name, why in _SIGNS:
        points = [(value, frame) for frame, value in enumerate(video.curves.get(name, ())) if value is not None]
        if points:
            value, frame = min(points)
            text = f"frame {frame}: {why} ({name} {value:.4g})"
            found[frame] = (found[frame][0], f"{found[frame][1]}; {text}") if frame in found else (name, text)
    return found


def _rows(video: VideoScore) -> Iterator[np.ndarray]:
    """Prediction and ground truth (or the reference picture) side by side, at the prediction's size, sides even."""
    clip = open_clip(video.pair.predicted)
    size = clip.size
    if video.pair.truth is not None:
        others: Iterator[np.ndarray] = (frame for _, frame in open_clip(video.pair.truth).frames())
    else:
        still = None if video.pair.reference is None else _sized(read_picture(video.pair.reference), size)
        blank = np.zeros((size[1], size[0], 3), np.uint8)
        others = itertools.repeat(blank if still is None else still)
    for (_, frame), other in zip(clip.frames(), others, strict=False):
        row = np.concatenate([frame, _sized(other, size)], axis=1)
        yield np.pad(row, ((0, row.shape[0] % 2), (0, row.shape[1] % 2), (0, 0)))


def _sized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[1::-1] == size:
        return frame
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BILINEAR))


def _write(path: Path, row: np.ndarray) -> None:
    picture = Image.fromarray(row)
    picture.thumbnail((2 * _WIDEST, _WIDEST))
    with translate_os_errors(path), atomic_write(path) as part:
        picture.save(part, format="JPEG", quality=80)
