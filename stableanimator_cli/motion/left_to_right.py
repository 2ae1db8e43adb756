"""Order of people from left to right: how they are numbered, and paired with faces that are not named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stableanimator_cli.motion.keypoints import INDEX, bounding_box, face_box, visible
from stableanimator_cli.records import Motion


def face_boxes(motion: Motion) -> np.ndarray:
    """Face boxes float[t,p,4]: the motion's own, else around the face's points; NaN if no face is visible."""
    boxes = np.where(np.isfinite(motion.face_boxes), motion.face_boxes, face_box(motion.keypoints))
    return np.where(motion.present[..., None], boxes, np.nan)


def horizontal_centres(keypoints: np.ndarray, face_boxes: np.ndarray) -> np.ndarray:
    """Horizontal position float[...] of people [...,134,3]: the neck, else the face [...,4], else all points; NaN if
    nothing is visible."""
    neck = keypoints[..., INDEX["neck"], :]
    boxes = np.where(np.isfinite(face_boxes), face_boxes, bounding_box(keypoints, minimum=1))
    return np.where(visible(neck), neck[..., 0], (boxes[..., 0] + boxes[..., 2]) / 2)


def people_left_to_right(motion: Motion, people: Sequence[int]) -> list[int]:
    """``people`` by position in the first frame that shows most of them; who is absent there, by the mean position."""
    centres = horizontal_centres(motion.keypoints, face_boxes(motion))
    seen = motion.present & np.isfinite(centres)
    frame = int(np.argmax(seen[:, list(people)].sum(axis=1)))
    means = np.where(seen, centres, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    first = np.where(seen[frame], centres[frame], means)
    return sorted(people, key=lambda index: float(first[index]))
