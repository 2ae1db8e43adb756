"""Skeletons and face crops as the preprocessing of Wan-Animate draws them ("AAPose"), in our own code.

Sources: Wan-Video/Wan2.2, ``wan/modules/animate/preprocess`` (``draw_aapose_by_meta_new`` of ``human_visualization``,
``load_from_kp2ds`` of ``pose2d_utils``, ``get_face_bboxes`` of ``utils``). Other than the skeletons of DWPose
(``motion.skeleton``) marks are drawn at the output's size, are not dimmed by scores, include the feet, and no points of
the face: the face is a video of its own.
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

from stableanimator_cli.motion.keypoints import (
    BODY,
    BODY_LIMBS,
    COUNT,
    FACE,
    HAND_LIMBS,
    INDEX,
    LEFT_HAND,
    RIGHT_HAND,
    visible,
)
from stableanimator_cli.motion.skeleton import BODY_COLOURS

THRESHOLD = 0.5
"""A point is drawn if its score is at least this."""
FACE_SIZE = 512
"""Pixels per side of a face crop: the motion encoder's input."""
FACE_AREA = 1.3
"""Area of a face crop, of that of the box around the face's points."""

_LIMBS = (*BODY_LIMBS, (13, 18), (10, 19))  # the ankles to the toes
_COLOURS = (*BODY_COLOURS, (200, 200, 0), (100, 100, 0))
_TOES = (("left_big_toe", "left_small_toe"), ("right_big_toe", "right_small_toe"))
_HAND_COLOURS = tuple(
    tuple(255 * value for value in colorsys.hsv_to_rgb(index / len(HAND_LIMBS), 1.0, 1.0))
    for index in range(len(HAND_LIMBS))
)
_DIM = 0.6
_FAR = 1000.0  # frames; a farther point is a wrong estimate, and would overflow OpenCV's integers
_MINIMUM = 12  # seen points of the 68 of a face


def draw_aapose(people: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw people float[p,134,3] (pixels of ``size`` = (width, height), score) on black: uint8[h,w,3] RGB.

    Points that are not finite are left out. Raises ``ValueError`` for another shape.
    """
    people = np.asarray(people, np.float64)
    if people.ndim != 3 or people.shape[1:] != (COUNT, 3):
        raise ValueError(f"people of shape {people.shape}: expected (p, {COUNT}, 3)")
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    half = max(min(width, height) // 200 - 1, 1)
    near = np.asarray(np.abs(people[..., :2]) < _FAR * np.array(size))
    usable = np.asarray(np.isfinite(people).all(axis=-1) & near.all(axis=-1))
    people = np.where(usable[..., None], people, 0)
    for person in people:
        _draw_body(image, _body_points(person), half)
        for hand in (LEFT_HAND, RIGHT_HAND):
            _draw_hand(image, person[hand], max(half // 2, 1))
    return image


def crop_boxes(keypoints: np.ndarray, size: tuple[int, int], face_boxes: np.ndarray | None = None) -> np.ndarray:
    """Boxes float32[t,4] (x0, y0, x1, y1) of face crops from keypoints float[t,134,3] of one person.

    The box around the face's points grows to ``FACE_AREA``, upwards three times as much as downwards, and is clipped to
    ``size``. Frames with too few seen points use ``face_boxes`` float[t,4] as they are; rows of NaN show no face.
    """
    points = np.asarray(keypoints, np.float64)[:, FACE]
    seen = visible(points)
    enough = seen.sum(axis=1) >= _MINIMUM
    low = np.where(seen[..., None], points[..., :2], np.inf).min(axis=1)
    high = np.where(seen[..., None], points[..., :2], -np.inf).max(axis=1)
    with np.errstate(invalid="ignore"):
        growth = (high - low) * (math.sqrt(FACE_AREA) - 1)
    across, down = growth[:, 0] / 2, growth[:, 1] / 4
    boxes = np.stack([low[:, 0] - across, low[:, 1] - 3 * down, high[:, 0] + across, high[:, 1] + down], axis=1)
    boxes = np.where(enough[:, None], boxes, np.nan if face_boxes is None else face_boxes)
    return np.clip(boxes, 0, np.array([*size, *size])).astype(np.float32)  # NaN stays


def crop_face(image: np.ndarray, box: np.ndarray, size: int = FACE_SIZE) -> np.ndarray | None:
    """The pixels of ``box`` float[4] in an image uint8[h,w,3], stretched to uint8[size,size,3].

    None for a row of NaN and for a box of less than four pixels per side.
    """
    if not np.isfinite(box).all():
        return None
    x0, y0, x1, y1 = (int(side) for side in box)
    if min(x1 - x0, y1 - y0) < 4:
        return None
    return cv2.resize(image[y0:y1, x0:x1], (size, size))


def _body_points(person: np.ndarray) -> np.ndarray:
    """The 20 points [20,3]: our 18 of the body with the neck from the shoulders, and two toes."""
    body = np.concatenate([person[BODY], *(_middle(person, pair)[None] for pair in _TOES)])
    body[INDEX["neck"]] = _middle(person, ("right_shoulder", "left_shoulder"))
    return body


def _middle(person: np.ndarray, names: tuple[str, str]) -> np.ndarray:
    """The mean of two points and of their scores; not seen if one of them is not, which has no place."""
    points = person[[INDEX[name] for name in names]]
    return points.mean(axis=0) if points[:, 2].all() else np.zeros(3)


def _draw_body(image: np.ndarray, points: np.ndarray, half: int) -> None:
    for (a, b), colour in zip(_LIMBS, _COLOURS, strict=False):  # the last colour is a toe's
        if min(points[a, 2], points[b, 2]) < THRESHOLD:
            continue
        (x0, y0), (x1, y1) = points[a, :2], points[b, :2]
        centre = int((x0 + x1) / 2), int((y0 + y1) / 2)
        axes = int(math.hypot(x0 - x1, y0 - y1) / 2), half
        angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
        outline = np.asarray(cv2.ellipse2Poly(centre, axes, angle, 0, 360, 1))
        cv2.fillConvexPoly(image, outline, tuple(int(value * _DIM) for value in colour))
    for (x, y, score), colour in zip(points, _COLOURS, strict=True):
        if score >= THRESHOLD:
            cv2.circle(image, (int(x), int(y)), half, colour, thickness=-1)


def _draw_hand(image: np.ndarray, points: np.ndarray, line: int) -> None:
    pixels = [(int(x), int(y)) for x, y in points[:, :2]]
    drawn = [score >= THRESHOLD and x > 0 and y > 0 for (x, y), score in zip(pixels, points[:, 2], strict=True)]
    for (a, b), colour in zip(HAND_LIMBS, _HAND_COLOURS, strict=True):
        if drawn[a] and drawn[b]:
            cv2.line(image, pixels[a], pixels[b], colour, thickness=line)
    for point, is_drawn in zip(pixels, drawn, strict=True):
        if is_drawn:
            cv2.circle(image, point, line, (0, 0, 255), thickness=-1)
