"""What was made beside the truth, as a video for the report, and the frame that came out worst as a picture.

Both lie in folders beside the page and are linked from it: a page of 1,000 videos must not carry their pictures.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.frame_matching import frames_at
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import MARK, check_replaceable, sha256_of
from stableanimator_cli.media import VideoWriter, open_clip, read_picture
from stableanimator_cli.media.image import save_image
from stableanimator_cli.motion.motion_file import UNTIMED_FPS  # folders of pictures have no clock

FOLDER, PICTURES = "videos", "pictures"
_WIDEST = 512  # pixels of one side of a picture in the page
_TAG = "sa.pair"
_SIGNS = (("csim_ref", "least like the reference"), ("psnr", "farthest from the ground truth"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A frame as a JPEG in ``PICTURES``, and why it is shown."""

    frame: int
    why: str
    path: Path


def files_of(name: str, out: Path) -> list[Path]:
    """The files that ``write_pair`` may write of a video."""
    return [out / FOLDER / f"{name}.mp4", *(out / PICTURES / f"{name}.{metric}.jpg" for metric, _ in _SIGNS)]


def write_pair(video: VideoScore, out: Path) -> list[Picture]:
    """Write ``videos/NAME.mp4``, the prediction at the left, and ``pictures/NAME.METRIC.jpg``, its worst frames, which
    are given. A video that exists and whose tag names the same frames of the same sources is left as it is."""
    worst = _worst(video)
    path = out / FOLDER / f"{video.name}.mp4"
    check_replaceable(*files_of(video.name, out))
    sources = _digest(video)
    kept = path.is_file() and _tag_of(path) == sources
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
    with VideoWriter(path, (width, height), fps, preset="veryfast", crf=20, tag={_TAG: sources}) as writer:
        for index, row in enumerate(_again(first, rows)):
            writer.write(row)
            see(index, row)
    return pictures


def _digest(video: VideoScore) -> str:
    """What decides the pixels of the side-by-side video."""
    still = None if video.target is not None or video.pair.reference is None else sha256_of(video.pair.reference)
    matched = None if video.matched is None else [video.matched.predicted, video.matched.target]
    sides = [None if side is None else side.get("sha256") for side in (video.predicted, video.target)]
    key = json.dumps([*sides, still, matched, video.frames])
    return f"{MARK} {hashlib.sha256(key.encode()).hexdigest()}"


def _tag_of(path: Path) -> str | None:
    try:
        return open_clip(path).tag.get(_TAG)
    except BadInput:
        return None


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
    clip, matched = open_clip(video.pair.predicted), video.matched
    size = clip.size
    if video.pair.target is not None:
        target = frames_at(open_clip(video.pair.target), None if matched is None else matched.target)
        others: Iterator[np.ndarray] = (frame for _, frame in target)
    else:
        still = None if video.pair.reference is None else _sized(read_picture(video.pair.reference), size)
        blank = np.zeros((size[1], size[0], 3), np.uint8)
        others = itertools.repeat(blank if still is None else still)
    predicted = frames_at(clip, None if matched is None else matched.predicted)
    for (_, frame), other in zip(predicted, others, strict=False):
        row = np.concatenate([frame, _sized(other, size)], axis=1)
        yield np.pad(row, ((0, row.shape[0] % 2), (0, row.shape[1] % 2), (0, 0)))


def _sized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if frame.shape[1::-1] == size:
        return frame
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BILINEAR))


def _write(path: Path, row: np.ndarray) -> None:
    picture = Image.fromarray(row)
    picture.thumbnail((2 * _WIDEST, _WIDEST))
    save_image(path, picture, "JPEG", quality=80)
