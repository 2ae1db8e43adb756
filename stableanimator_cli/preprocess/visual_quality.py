"""Visual quality of a clip, batch by batch: background motion, sharpness, repeated frames and a contact sheet.

Memory does not grow with the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from stableanimator_cli.media.image import save_image
from stableanimator_cli.motion.keypoints import BODY_LIMBS, visible
from stableanimator_cli.motion.overlay import draw_numbers
from stableanimator_cli.motion.skeleton import BODY_COLOURS
from stableanimator_cli.records import Motion

SHOWN = 6
"""Images of a contact sheet."""

_SMALL = 64  # pixels of the longer side, for differences between frames
_SHARP = 256  # pixels of the shorter side at most, for sharpness
_THUMB = 128  # pixels of height
_SAME = 0.05  # grey levels: a mean difference below this is the same frame again
_BOX_MARGIN = 0.1  # of a box on every side: hair and shadows move with the person


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualQuality:
    """``background``: median over frames of the mean change outside all people's boxes from one frame to the next, in
    grey levels of 255, None if people fill the frames. ``sharpness``: median variance of the Laplacian of frames
    scaled to 256 pixels. ``repeated``: share of frames equal to the one before."""

    background: float | None
    sharpness: float
    repeated: float


class VisualQualityMeter:
    """Call ``add_batch`` with the batches of a clip in order, then ``result`` and ``sheet``."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._changes: list[float] = []
        self._sharpness: list[float] = []
        self._repeated = 0
        self._frames = 0
        self._stride = 1
        self._thumbs: list[tuple[int, np.ndarray]] = []

    def add_batch(self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> None:
        """Frames uint8 RGB [h,w,3] and the people's boxes float32[p,4 or more] of each."""
        for frame, people in zip(frames, boxes, strict=True):
            self._measure(frame, people)
            if self._frames % self._stride == 0:
                self._add_thumbnail(frame)
            self._frames += 1

    def result(self) -> VisualQuality:
        return VisualQuality(
            background=round(float(np.median(self._changes)), 3) if self._changes else None,
            sharpness=round(float(np.median(self._sharpness)), 1) if self._sharpness else 0.0,
            repeated=round(self._repeated / max(1, self._frames - 1), 4),
        )

    def sheet(self, motion: Motion) -> np.ndarray:
        """Thumbnails side by side with the motion drawn on them, and the numbers of several people, uint8[h,w,3]."""
        selected = np.unique(np.linspace(0, len(self._thumbs) - 1, SHOWN).round().astype(int))
        drawn = []
        for index, thumb in (self._thumbs[k] for k in selected):
            image = thumb.copy()
            scale = np.array([thumb.shape[1] / motion.size[0], thumb.shape[0] / motion.size[1]])
            for person in np.flatnonzero(motion.present[index]):
                _draw_limbs(image, motion.keypoints[index, person], scale)
            draw_numbers(image, motion, index, scale)
            drawn.append(image)
        return np.concatenate(drawn, axis=1)

    def _measure(self, frame: np.ndarray, people: np.ndarray) -> None:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        shrink = min(1.0, _SHARP / min(height, width))
        medium = grey if shrink == 1.0 else cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        self._sharpness.append(float(cv2.Laplacian(medium, cv2.CV_32F).var()))
        scale = min(1.0, _SMALL / max(height, width))
        small = cv2.resize(
            grey, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
        ).astype(np.float32)
        if self._last is not None:
            change = np.abs(small - self._last)
            self._repeated += bool(change.mean() < _SAME)
            outside = np.ones(small.shape, bool)
            for x0, y0, x1, y1 in np.asarray(people)[:, :4]:
                across, down = _BOX_MARGIN * (x1 - x0), _BOX_MARGIN * (y1 - y0)
                left, top = (int(max(0, side) * scale) for side in (x0 - across, y0 - down))
                outside[top : int((y1 + down) * scale) + 1, left : int((x1 + across) * scale) + 1] = False
            if outside.mean() >= 0.02:
                self._changes.append(float(change[outside].mean()))
        self._last = small

    def _add_thumbnail(self, frame: np.ndarray) -> None:
        """Store every stride-th frame. When there are too many, drop every second one and double the stride."""
        height, width = frame.shape[:2]
        size = (max(1, round(width * _THUMB / height)), _THUMB)
        self._thumbs.append((self._frames, cv2.resize(frame, size, interpolation=cv2.INTER_AREA)))
        if len(self._thumbs) > 4 * SHOWN:
            self._thumbs = self._thumbs[::2]
            self._stride *= 2


def write_sheet(path: Path, sheet: np.ndarray) -> None:
    """Write a contact sheet as a small JPEG, atomically."""
    save_image(path, Image.fromarray(sheet), "JPEG", quality=72, optimize=True)


def _draw_limbs(image: np.ndarray, points: np.ndarray, scale: np.ndarray) -> None:
    """Limbs as lines that remain visible on a thumbnail."""
    seen = visible(points)
    xy = np.clip(points[:, :2] * scale, -9999, 9999).round().astype(int)
    for (a, b), colour in zip(BODY_LIMBS, BODY_COLOURS, strict=False):
        if seen[a] and seen[b]:
            start, end = (int(xy[a, 0]), int(xy[a, 1])), (int(xy[b, 0]), int(xy[b, 1]))
            cv2.line(image, start, end, colour, 1, cv2.LINE_AA)
