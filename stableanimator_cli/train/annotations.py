"""Annotations of a clip besides its pixels: skeletons, face masks and face embeddings, drawn at any size.

Clip folders of ``sa preprocess`` hold keypoints and faces, which are drawn like in ``sa animate``. Folders of the
reference implementation hold images of them (``reference_layout``). Nothing is detected here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stableanimator_cli.clip_folder import FaceTable
from stableanimator_cli.motion.geometry import Mode, ResizeTransform, resize_transform
from stableanimator_cli.motion.keypoints import bounding_box, face_box
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.motion.person_regions import person_regions
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.motion.track import largest_people
from stableanimator_cli.records import ChannelOrder, Motion

CELL = 8  # pixels per latent cell


@dataclass(frozen=True, slots=True)
class Faces:
    """Recognised faces of the main person.

    ``frame`` int64[n], ``boxes`` float32[n,4], ``rank`` float32[n] (score times area), ``embeddings`` float32[n,512]
    raw, made from images in ``channel_order``.
    """

    frame: np.ndarray
    boxes: np.ndarray
    rank: np.ndarray
    embeddings: np.ndarray
    channel_order: ChannelOrder

    @classmethod
    def of(cls, table: FaceTable, person: int) -> Faces:
        known = (table.person == person) & np.isfinite(table.embeddings).all(axis=1)
        boxes = table.boxes[known]
        area = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
        rank = table.scores[known] * area
        return cls(table.frame[known], boxes, rank, table.embeddings[known], table.channel_order)

    def embedding(self, frame: int) -> np.ndarray | None:
        """float32[512] of the face in ``frame``, else of the best face of the clip; None if the clip has no face."""
        if not len(self.frame):
            return None
        rows = np.flatnonzero(self.frame == frame)
        rows = rows if len(rows) else np.arange(len(self.frame))
        return self.embeddings[rows[np.argmax(self.rank[rows])]]


def latent_mask(mask: np.ndarray, transform: ResizeTransform) -> np.ndarray:
    """Resize a face mask uint8[h,w] of a clip to latent cells, uint8[h/8,w/8].

    Like in the reference implementation: Pillow's default resize to the size in pixels, then the top-left pixel of
    each cell. So values at the edge of a box are between 0 and 255.
    """
    left, top, right, bottom = transform.placed
    inner = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=transform.box)
    if inner.size == transform.target:
        return np.asarray(inner)[::CELL, ::CELL]
    full = np.zeros(transform.target[::-1], np.uint8)
    full[top:bottom, left:right] = np.asarray(inner)
    return full[::CELL, ::CELL]


class MotionAnnotations:
    """Annotations drawn from keypoints, like in ``sa animate``. ``size`` is (width, height).

    ``people`` are the indices in the motion of at most ``limit`` people, largest first, and ``faces`` those of the
    first. Functions that take a ``person`` count in ``people``.
    """

    def __init__(self, motion: Motion, table: FaceTable, limit: int = 1) -> None:
        self._motion = motion
        self.people = largest_people(motion, limit)
        self._faces = [Faces.of(table, index) for index in self.people]
        self.faces = self._faces[0]
        # The masks show the faces of all people, like those of the reference implementation. Without a face detector
        # only people in the motion have a face, from their keypoints.
        self._table = table if len(table) else None

    def skeleton(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        """Skeletons of all people in a frame, uint8[h,w,3] RGB."""
        people = self._motion.keypoints[frame][self._motion.present[frame]]
        people[..., :2] = resize_transform(self._motion.size, size, mode).apply_points(people[..., :2])
        return draw_skeleton(people, size)

    def mask(self, frame: int, size: tuple[int, int], mode: Mode) -> np.ndarray:
        """Face mask of a frame in latent cells, uint8[h/8,w/8], 255 inside a face."""
        boxes = self._boxes(frame) if self._table is None else self._table.boxes[self._table.at(frame)]
        if not np.isfinite(boxes).any():
            return np.zeros((size[1] // CELL, size[0] // CELL), np.uint8)
        return latent_mask(face_mask(boxes, self._motion.size), resize_transform(self._motion.size, size, mode))

    def face_box(self, frame: int, person: int = 0) -> np.ndarray | None:
        """Face of a person as (x0, y0, x1, y1) in pixels of the clip, None if no face is visible."""
        index = self.people[person]
        if not self._motion.present[frame, index]:
            return None
        box = self._boxes(frame)[index]
        return box if np.isfinite(box).all() else None

    @property
    def has_faces(self) -> bool:
        """Whether the face of any of ``people`` was recognised."""
        return any(len(faces.frame) for faces in self._faces)

    def embedding(self, frame: int, person: int = 0) -> np.ndarray | None:
        """float32[512] of a person's face in ``frame``, else of their best one; None if they have none."""
        return self._faces[person].embedding(frame)

    def points(self, frames: Sequence[int], size: tuple[int, int], mode: Mode) -> np.ndarray:
        """Keypoints of ``people`` in pixels of ``size``, float32[t,p,134,3], with scores of 0 for absent people."""
        rows = np.asarray(frames)
        keypoints = self._motion.keypoints[rows][:, self.people]
        transform = resize_transform(self._motion.size, size, mode)
        keypoints[..., :2] = transform.apply_points(keypoints[..., :2])
        keypoints[~self._motion.present[rows][:, self.people], :, 2] = 0
        return keypoints

    def regions(self, frames: Sequence[int], size: tuple[int, int], mode: Mode) -> np.ndarray:
        """Weights of ``people`` and, last, of the background in latent cells, float32[t,p+1,h/8,w/8] with sum 1."""
        rows = np.asarray(frames)
        boxes = self._motion.face_boxes[rows][:, self.people]
        transform = resize_transform(self._motion.size, size, mode)
        boxes = transform.apply_points(boxes.reshape(*boxes.shape[:2], 2, 2)).reshape(boxes.shape)
        present = self._motion.present[rows][:, self.people]
        return person_regions(self.points(frames, size, mode), present, boxes, size, cell=CELL)

    def centres(self) -> np.ndarray:
        """Middle of each of ``people`` from left to right in pixels of the clip, float32[t,p], NaN if absent."""
        boxes = bounding_box(self._motion.keypoints[:, self.people])
        middle = (boxes[..., 0] + boxes[..., 2]) / 2
        return np.where(self._motion.present[:, self.people], middle, np.nan).astype(np.float32)

    def _boxes(self, frame: int) -> np.ndarray:
        """Faces of the people in a frame, float32[p,4]: detected, else around their keypoints, else NaN."""
        boxes = self._motion.face_boxes[frame]
        boxes = np.where(np.isfinite(boxes), boxes, face_box(self._motion.keypoints[frame]))
        return np.where(self._motion.present[frame][:, None], boxes, np.nan)

    @property
    def nbytes(self) -> int:
        embeddings = sum(faces.embeddings.nbytes for faces in self._faces)
        return self._motion.keypoints.nbytes + self._motion.face_boxes.nbytes + embeddings
