"""The 134 keypoints of a person: names, parts, bones, and conversion from and to the 133 points of COCO-WholeBody.

Layout (OpenPose order, left and right are the person's own): body 0-17, feet 18-23, face 24-91 (the 68 iBUG points),
left hand 92-112, right hand 113-133. A point is (x, y, score): pixels and a confidence, 0 if nothing was detected.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

COUNT = 134
THRESHOLD = 0.3
"""A point whose score is above this counts as visible (the value that the released networks were trained with)."""

BODY = slice(0, 18)
FEET = slice(18, 24)
FACE = slice(24, 92)
LEFT_HAND = slice(92, 113)
RIGHT_HAND = slice(113, 134)
PARTS: Mapping[str, slice] = MappingProxyType(
    {"body": BODY, "feet": FEET, "face": FACE, "left_hand": LEFT_HAND, "right_hand": RIGHT_HAND}
)

BODY_NAMES = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
FEET_NAMES = (
    "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip
HAND_NAMES = (
    "wrist",
    *(f"{finger}_{i}" for finger in ("thumb", "index", "middle", "ring", "little") for i in range(1, 5)),
)
NAMES: tuple[str, ...] = (
    *BODY_NAMES,
    *FEET_NAMES,
    *(f"face_{i}" for i in range(68)),
    *(f"left_hand_{name}" for name in HAND_NAMES),
    *(f"right_hand_{name}" for name in HAND_NAMES),
)
INDEX: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(NAMES)})

BODY_LIMBS: tuple[tuple[int, int], ...] = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""The 17 bones of the body, in the order in which they are drawn."""

HAND_LIMBS: tuple[tuple[int, int], ...] = tuple(
    (0 if joint == 1 else 4 * finger + joint - 1, 4 * finger + joint) for finger in range(5) for joint in range(1, 5)
)
"""The 20 bones of a hand, counted within its 21 points: from the wrist along each finger, thumb first."""

_WHOLEBODY = 133
_WHOLEBODY_SHOULDERS = (5, 6)
# Index of each of our first 24 points in COCO-WholeBody, which has no neck (1): that is computed from the shoulders.
_BODY_FROM_WHOLEBODY = (0, 0, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_NECK = 1
_FROM_WHOLEBODY = np.array([*_BODY_FROM_WHOLEBODY, *range(17, _WHOLEBODY)])
_TO_WHOLEBODY = np.array([*(_BODY_FROM_WHOLEBODY.index(i) for i in range(17)), *range(FEET.start, COUNT)])


def from_wholebody(points: np.ndarray) -> np.ndarray:
    """Convert COCO-WholeBody points (the output of DWPose) to our layout.

    ``points`` float[...,133,3] (x, y, score); the result is float[...,134,3] of the same type. The neck is the midpoint
    of the shoulders; its score is 1 if both shoulders score above ``THRESHOLD``, else 0, as in DWPose.
    Raises ``ValueError`` if the last two axes are not (133, 3).
    """
    points = _checked(points, _WHOLEBODY)
    person = points[..., _FROM_WHOLEBODY, :]
    shoulders = points[..., _WHOLEBODY_SHOULDERS, :]
    person[..., _NECK, :2] = shoulders[..., :2].mean(axis=-2)
    person[..., _NECK, 2] = (shoulders[..., 2] > THRESHOLD).all(axis=-1)
    return person


def to_wholebody(points: np.ndarray) -> np.ndarray:
    """Our points float[...,134,3] in COCO-WholeBody order, float[...,133,3]: only the neck is dropped."""
    return _checked(points, COUNT)[..., _TO_WHOLEBODY, :]


def visible(points: np.ndarray) -> np.ndarray:
    """bool[...]: which points of float[...,3] are visible: a score above ``THRESHOLD`` and finite coordinates."""
    points = np.asarray(points)
    return (points[..., 2] > THRESHOLD) & np.isfinite(points[..., :2]).all(axis=-1)


def bounding_box(points: np.ndarray, *, margin: float = 0.0, minimum: int = 2) -> np.ndarray:
    """The box around the visible points: float32[...,4] (x0, y0, x1, y1) of float[...,n,3].

    ``margin`` is added on every side, as a fraction of the box's width and height. A box with fewer than ``minimum``
    visible points is a row of NaN.
    """
    points = np.asarray(points)
    seen = visible(points)
    xy = points[..., :2].astype(np.float64)
    low = np.where(seen[..., None], xy, np.inf).min(axis=-2, initial=np.inf)
    high = np.where(seen[..., None], xy, -np.inf).max(axis=-2, initial=-np.inf)
    enough = (seen.sum(axis=-1) >= max(1, minimum))[..., None]
    low, high = np.where(enough, low, np.nan), np.where(enough, high, np.nan)
    room = margin * (high - low)
    return np.concatenate([low - room, high + room], axis=-1).astype(np.float32)


def face_box(points: np.ndarray, *, margin: float = 0.15, minimum: int = 12) -> np.ndarray:
    """The box of each person's face: float32[...,4] of float[...,134,3], a row of NaN if no face is visible.

    It encloses the 68 face points, of which ``minimum`` must be visible; the margin makes up for the forehead, which
    has no points. It is not clipped to the frame.
    """
    return bounding_box(_checked(points, COUNT)[..., FACE, :], margin=margin, minimum=minimum)


def _checked(points: np.ndarray, count: int) -> np.ndarray:
    points = np.asarray(points)
    if points.shape[-2:] != (count, 3):
        raise ValueError(f"points of shape {points.shape}: the last two axes must be ({count}, 3)")
    return points
