"""Videos of prediction and ground truth side by side, their posters, and images of the worst frames, for the report.

Both are in folders beside the page, which links them: a page of 1,000 videos must stay small. They are decoded in a
pass of their own, since the worst frames are known only after the scores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.frame_matching import frames_at
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import MARK, check_replaceable, sha256_of
from stableanimator_cli.media import VideoWriter, open_clip, read_image
from stableanimator_cli.media.image import save_image
from stableanimator_cli.motion.motion_file import UNTIMED_FPS  # folders of images have no clock

FOLDER, PICTURES, POSTER = "videos", "pictures", "poster"
_MAX_SIDE = 512  # pixels of each video's part of an image
_TAG = "sa.pair"
_SIGNS = (("csim_ref", "least like the reference"), ("psnr", "farthest from the ground truth"))
_FURTHER = 2  # frames least like the reference besides the first, of a video without a ground truth
_APART = 8  # frames between them


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstFrame:
    """A frame as a JPEG, and why it is shown."""

    frame: int
    why: str
    path: Path


def files_of(name: str, out: Path, systems: Sequence[str] = ()) -> list[Path]:
    """The files that may be written for a video, beside those of ``systems`` too."""
    kinds = [*(metric for metric, _ in _SIGNS), *(f"csim_ref-{n + 2}" for n in range(_FURTHER)), "no-face", POSTER]
    videos = [out / FOLDER / f"{name}.mp4", *(path for system in systems for path in beside(out, system, name))]
    return [*videos, *(out / PICTURES / f"{name}.{kind}.jpg" for kind in kinds)]


def beside(out: Path, system: str, name: str) -> tuple[Path, Path]:
    """The video of ours and another system's side by side, and its poster."""
    folder = folder_of(system)
    return out / FOLDER / folder / f"{name}.mp4", out / PICTURES / folder / f"{name}.{POSTER}.jpg"


def folder_of(system: str) -> str:
    """The folder of a system's files: its name, which must not be that of a file of ours."""
    return f"{system}-" if re.search(r"\.(mp4|jpg)-*$", system, re.IGNORECASE) else system


def write_beside(video: VideoScore, out: Path, system: str) -> None:
    """Write a video and its poster. ``video`` is ours with the other system's video as its ground truth."""
    path, poster = beside(out, system, video.name)
    middle = (video.frames - 1) // 2

    def save_poster(index: int, frame: np.ndarray) -> None:
        if index == middle:
            _save_thumbnail(poster, frame)

    write_video(video, path, save_poster, 0 if poster.is_file() else middle + 1)


def write_pair(video: VideoScore, out: Path) -> list[WorstFrame]:
    """Write ``videos/NAME.mp4``, the prediction on the left, ``pictures/NAME.poster.jpg``, its middle frame, and
    ``pictures/NAME.KIND.jpg``, its worst frames.

    An existing video is reused if its tag names the same frames of the same sources.
    """
    worst = _find_worst(video)
    check_replaceable(*files_of(video.name, out))
    images: list[WorstFrame] = []
    poster, middle = out / PICTURES / f"{video.name}.{POSTER}.jpg", (video.frames - 1) // 2

    def save_if_shown(index: int, frame: np.ndarray) -> None:
        if index == middle:
            _save_thumbnail(poster, frame)
        if index in worst:
            kind, why = worst[index]
            image = WorstFrame(frame=index, why=why, path=out / PICTURES / f"{video.name}.{kind}.jpg")
            _save_thumbnail(image.path, frame)
            images.append(image)

    needed = [*worst, *([] if poster.is_file() else [middle])]
    write_video(video, out / FOLDER / f"{video.name}.mp4", save_if_shown, 1 + max(needed, default=-1))
    return images


def write_video(video: VideoScore, path: Path, use: Callable[[int, np.ndarray], None], needed: int) -> None:
    """Write the prediction on the left and its counterpart on the right. ``use`` gets every frame with its number, of a
    video that is reused the first ``needed``."""
    sources, frames = _digest(video), _frames(video)
    if path.is_file() and _tag_of(path) == sources:
        for index, frame in enumerate(itertools.islice(frames, needed)):
            use(index, frame)
        return
    first = next(frames)
    height, width = first.shape[:2]
    fps = open_clip(video.pair.predicted).fps or UNTIMED_FPS
    with VideoWriter(path, (width, height), fps, preset="veryfast", crf=20, tag={_TAG: sources}) as writer:
        for index, frame in enumerate(itertools.chain([first], frames)):
            writer.write(frame)
            use(index, frame)


def _digest(video: VideoScore) -> str:
    """Digest of everything that determines the pixels of the side-by-side video."""
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


def _find_worst(video: VideoScore) -> dict[int, tuple[str, str]]:
    """Frame -> the first metric that is lowest there, and a caption."""
    worst: dict[int, tuple[str, str]] = {}
    for name, why in _SIGNS:
        points = [(value, frame) for frame, value in enumerate(video.curves.get(name, ())) if value is not None]
        if points:
            value, frame = min(points)
            text = f"frame {frame}: {why} ({name} {value:.4g})"
            worst[frame] = (worst[frame][0], f"{worst[frame][1]}; {text}") if frame in worst else (name, text)
    if video.target is None:
        worst |= {frame: known for frame, known in _find_further(video).items() if frame not in worst}
    return worst


def _find_further(video: VideoScore) -> dict[int, tuple[str, str]]:
    """The next frames that are least like the reference, apart from each other, and the first without a face."""
    name, why = _SIGNS[0]
    curve = video.curves.get(name, ())
    points = sorted((value, frame) for frame, value in enumerate(curve) if value is not None)
    selected = [frame for _, frame in points[:1]]
    further: dict[int, tuple[str, str]] = {}
    for value, frame in points:
        if len(further) < _FURTHER and all(abs(frame - other) >= _APART for other in selected):
            selected.append(frame)
            further[frame] = (f"{name}-{len(selected)}", f"frame {frame}: next {why} ({name} {value:.4g})")
    if (points or video.values.get("face_rate") == 0) and None in curve:
        frame = list(curve).index(None)
        further[frame] = ("no-face", f"frame {frame}: no face found")
    return further


def _frames(video: VideoScore) -> Iterator[np.ndarray]:
    """Prediction and ground truth (or the reference image) side by side, at the prediction's size, with even sides."""
    clip, matched = open_clip(video.pair.predicted), video.matched
    size = clip.size
    if video.pair.target is not None:
        target = frames_at(open_clip(video.pair.target), None if matched is None else matched.target)
        others: Iterator[np.ndarray] = (frame for _, frame in target)
    else:
        still = None if video.pair.reference is None else _resized(read_image(video.pair.reference), size)
        blank = np.zeros((size[1], size[0], 3), np.uint8)
        others = itertools.repeat(blank if still is None else still)
    predicted = frames_at(clip, None if matched is None else matched.predicted)
    for (_, frame), other in zip(predicted, others, strict=False):
        row = np.concatenate([frame, _resized(other, size)], axis=1)
        yield np.pad(row, ((0, row.shape[0] % 2), (0, row.shape[1] % 2), (0, 0)))


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame at another size, with black borders if the shape differs."""
    if frame.shape[1::-1] == size:
        return frame
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(ImageOps.pad(image, size, Image.Resampling.BILINEAR))


def _save_thumbnail(path: Path, frame: np.ndarray) -> None:
    image = Image.fromarray(frame)
    image.thumbnail((2 * _MAX_SIDE, _MAX_SIDE))
    save_image(path, image, "JPEG", quality=80)
