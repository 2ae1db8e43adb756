"""Strips of frames as in Figs. 3 to 6 of the paper: reference, pose, ground truth and systems, one row per frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from stableanimator_cli.evaluate.driving_points import Unmatched, indices_shown, read_poses
from stableanimator_cli.evaluate.frame_matching import frames_at
from stableanimator_cli.evaluate.run_record import read_record, resize_mode
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.media import open_clip, read_image
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.skeleton import draw_frame, draw_skeleton

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Detect = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Points float[n,134,3] of the largest person in each of n frames, score 0 without one."""
ROWS = 3
_WIDTH, _MAX_HEIGHT, _GAP, _LABEL = 7.0, 8.0, 0.03, 0.3  # inches
_PIXELS_PER_INCH = 400  # of the images in a PDF: finer than paper shows, and a strip of ten columns stays small


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One strip: columns of images uint8[h,w,3] by title, of one image or of one per row, and the rows' frames."""

    columns: tuple[tuple[str, tuple[np.ndarray, ...]], ...]
    frames: tuple[int, ...]


def read_strip(videos: Mapping[str, VideoScore], detect: Detect | None) -> Strip:
    """Read a strip of one video by all systems, the first system in the last column.

    Its frames are the middles of ``ROWS`` equal parts of the video. Poses are those that drove the first system, else
    what ``detect`` finds in the ground truth; without either there is no such column.
    """
    first = next(iter(videos.values()))
    count = min(video.frames for video in videos.values())
    rows = min(ROWS, count)
    frames = tuple(int((index + 0.5) * count / rows) for index in range(rows))
    columns: list[tuple[str, tuple[np.ndarray, ...]]] = []
    target: tuple[np.ndarray, ...] = ()
    if first.pair.target is not None:
        target = _frames(first.pair.target, frames, None if first.matched is None else first.matched.target)
    size = open_clip(first.pair.predicted).size
    if first.pair.reference is not None:
        columns.append(("Reference", (read_image(first.pair.reference),)))
    elif first.pair.target is not None:
        columns.append(("Reference", (next(iter(open_clip(first.pair.target).frames()))[1],)))
    poses = _driving_poses(first, frames, size)
    if poses is None and target and detect is not None:
        poses = tuple(_drawn(points, image) for points, image in zip(detect(target), target, strict=True))
    columns += [(title, images) for title, images in (("Pose", poses), ("Ground truth", target)) if images]
    for name, video in [*list(videos.items())[1:], next(iter(videos.items()))]:
        matched = None if video.matched is None else video.matched.predicted
        columns.append((name, _frames(video.pair.predicted, frames, matched)))
    return Strip(columns=tuple(columns), frames=frames)


def draw_strip(strip: Strip) -> Figure:
    """Lay the images out over the width of a page, titles below them."""
    from matplotlib.figure import Figure

    rows, number = len(strip.frames), len(strip.columns)
    height, width = strip.columns[-1][1][0].shape[:2]
    cell = (_WIDTH - (number - 1) * _GAP) / number
    cell = min(cell, (_MAX_HEIGHT - _LABEL - (rows - 1) * _GAP) / rows * width / height)
    tall = cell * height / width
    total = (number * cell + (number - 1) * _GAP, rows * tall + (rows - 1) * _GAP + _LABEL)
    figure = Figure(figsize=total)
    for column, (title, images) in enumerate(strip.columns):
        left = column * (cell + _GAP)
        bottoms = [_LABEL + (rows - 1 - row) * (tall + _GAP) for row in range(len(images))]
        if len(images) < rows:  # the reference, beside the middle of the rows
            bottoms = [_LABEL + (total[1] - _LABEL - tall) / 2]
        for bottom, image in zip(bottoms, images, strict=True):
            box = (left / total[0], bottom / total[1], cell / total[0], tall / total[1])
            axes = figure.add_axes(box, frame_on=False, xticks=[], yticks=[])
            axes.imshow(_reduced(image, cell, tall), interpolation="none")
        text = fill(title, max(6, int(cell * 15)))
        position = ((left + cell / 2) / total[0], (_LABEL - 0.12) / total[1])
        figure.text(*position, text, ha="center", va="baseline", fontsize=7, linespacing=0.95, parse_math=False)
    return figure


def _frames(path: Path, positions: Sequence[int], matched: Sequence[int] | None) -> tuple[np.ndarray, ...]:
    """Frames of a video at positions among those that were compared."""
    selected = positions if matched is None else [matched[position] for position in positions]
    return tuple(frame for _, frame in frames_at(open_clip(path), selected))


def _driving_poses(video: VideoScore, positions: Sequence[int], size: tuple[int, int]) -> tuple[np.ndarray, ...] | None:
    """Skeletons of the motion that drove the video, None if it is unknown which frames it showed."""
    if video.pair.poses is None:
        return None
    record, motion = read_record(video.pair.predicted), read_poses(video.pair.poses)
    times = [time for time, _ in open_clip(video.pair.predicted).frames()]
    try:
        shown = indices_shown(video.pair.poses, motion, record, times)
    except Unmatched:
        return None
    motion = resize_transform(motion.size, size, resize_mode(record)).transform_motion(motion)
    matched = range(len(shown)) if video.matched is None else video.matched.predicted
    return tuple(_thickened(draw_frame(motion, shown[matched[position]])) for position in positions)


def _drawn(points: np.ndarray, image: np.ndarray) -> np.ndarray:
    people = points[None] if (points[:, 2] > 0).any() else points[:0].reshape(0, *points.shape)
    return _thickened(draw_skeleton(people, (image.shape[1], image.shape[0])))


def _thickened(image: np.ndarray) -> np.ndarray:
    """A skeleton with lines that print: those of the network's input are one pixel wide."""
    side = max(1, min(image.shape[:2]) // 100)
    return cv2.dilate(image, np.ones((side, side), np.uint8))


def _reduced(image: np.ndarray, width: float, height: float) -> np.ndarray:
    """The image with no more pixels than ``_PIXELS_PER_INCH`` for a cell of that size in inches."""
    small = Image.fromarray(np.ascontiguousarray(image))
    small.thumbnail((round(width * _PIXELS_PER_INCH), round(height * _PIXELS_PER_INCH)), Image.Resampling.LANCZOS)
    return np.asarray(small)
