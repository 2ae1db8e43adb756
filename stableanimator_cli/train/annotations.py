"""What is known of a clip besides its pixels: skeletons, face masks and identity vectors, at any size.

A clip folder of ``sa preprocess`` holds key points and faces, and they are drawn here as ``sa animate`` draws them; the
reference implementation's folders hold pictures of them (``upstream.py``). Nothing is detected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from stableanimator_cli.clip_folder import FaceTable
from stableanimator_cli.motion.geometry import Mode, ResizeTransform, resize_transform
from stableanimator_cli.motion.keypoints import face_box
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.motion.track import largest
from stableanimator_cli.records import Motion

CELL = 8  # pixels a latent


class ClipAnnotations(Protocol):
    """What is known of a clip besides its pixels, drawn at the size asked for."""

    faces: Faces

    def skeleton(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        """The skeletons of one frame, uint8[h,w,3] RGB."""
        ...

    def mask(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        """The face mask of one frame at latent size, uint8[h/8,w/8], 255 in a face."""
        ...

    def face_box(self, frame: int) -> np.ndarray | None:
        """(x0, y0, x1, y1) of the main person's face in pixels of the clip, None where none is seen."""
        ...

    def bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Faces:
    """The faces of the main person that could be recognised: ``frame`` int64[n], ``boxes`` float32[n,4], ``rank``
    float32[n] (score times area), ``vectors`` float32[n,512] raw."""

    frame: np.ndarray
    boxes: np.ndarray
    rank: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, table: FaceTable, person: int) -> Faces:
        known = (table.person == person) & np.isfinite(table.embeddings).all(axis=1)
        boxes = table.boxes[known]
        area = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
        return cls(table.frame[known], boxes, table.scores[known] * area, table.embeddings[known])

    def vector(self, frame: int) -> np.ndarray | None:
        """float32[512] of the face in ``frame``; where it shows none, of the best face of the clip; else None."""
        if not len(self.frame):
            return None
        here = np.flatnonzero(self.frame == frame)
        rows = here if len(here) else np.arange(len(self.frame))
        return self.vectors[rows[np.argmax(self.rank[rows])]]


def latent_mask(mask: np.ndarray, there: ResizeTransform) -> np.ndarray:
    """A face mask uint8[h,w] of the clip's size at latent size, uint8[h/8,w/8].

    As the reference implementation has it: Pillow's default resize to the size of the pictures, then the top-left
    pixel of each cell, so that values at the edge of a box lie between 0 and 255.
    """
    left, top, right, bottom = there.placed
    inner = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=there.box)
    if inner.size == there.target:
        return np.asarray(inner)[::CELL, ::CELL]
    whole = np.zeros(there.target[::-1], np.uint8)
    whole[top:bottom, left:right] = np.asarray(inner)
    return whole[::CELL, ::CELL]


class MotionClip:
    """Drawn from key points, as ``sa animate`` draws them."""

    def __init__(self, motion: Motion, table: FaceTable) -> None:
        self._motion = motion
        self._main = largest(motion)
        self.faces = Faces.of(table, self._main)
        # As the original's masks, those of all people, whoever they are; motions without a face detector know the
        # points of their own people only.
        self._table = table if len(table) else None

    def skeleton(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        people = self._motion.keypoints[frame][self._motion.present[frame]]
        people[..., :2] = resize_transform(self._motion.size, size, mode).apply_points(people[..., :2])
        return draw_skeleton(people, size)

    def mask(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        boxes = self._boxes(frame) if self._table is None else self._table.boxes[self._table.at(frame)]
        if not np.isfinite(boxes).any():
            return np.zeros((size[1] // CELL, size[0] // CELL), np.uint8)
        return latent_mask(face_mask(boxes, self._motion.size), resize_transform(self._motion.size, size, mode))

    def face_box(self, frame: int) -> np.ndarray | None:
        if not self._motion.present[frame, self._main]:
            return None
        box = self._boxes(frame)[self._main]
        return box if np.isfinite(box).all() else None

    def _boxes(self, frame: int) -> np.ndarray:
        """float32[p,4] the faces of the people of a frame: found, else round their points; NaN where none is seen."""
        boxes = self._motion.face_boxes[frame]
        boxes = np.where(np.isfinite(boxes), boxes, face_box(self._motion.keypoints[frame]))
        return np.where(self._motion.present[frame][:, None], boxes, np.nan)

    def bytes(self) -> int:
        return self._motion.keypoints.nbytes + self._motion.face_boxes.nbytes + self.faces.vectors.nbytes
