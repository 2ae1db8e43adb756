"""Soft regions of people from their keypoints: where each person's face conditions the network.

A person is drawn filled: torso polygon, limbs as capsules whose radii follow the size of the body, the head as an
ellipse around the face box. The drawing is feathered and averaged over cells. Heads are shared first, bodies share
what heads leave, and the rest is background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from stableanimator_cli.motion.keypoints import COUNT, LEFT_HAND, RIGHT_HAND, face_box, visible

_NOSE, _NECK, _SHOULDERS, _HIPS, _HEAD, _EARS = 0, 1, (2, 5), (8, 11), (0, 14, 15, 16, 17), (16, 17)
_LIMBS = (  # (from, to, radius in shares of the body's size)
    *((_NECK, shoulder, 0.25) for shoulder in _SHOULDERS),
    (2, 3, 0.22), (5, 6, 0.22), (3, 4, 0.2), (6, 7, 0.2),
    (8, 9, 0.32), (11, 12, 0.32), (9, 10, 0.24), (12, 13, 0.24),
    (10, 21, 0.2), (10, 22, 0.2), (10, 23, 0.2), (13, 18, 0.2), (13, 19, 0.2), (13, 20, 0.2),
)  # fmt: skip
_TORSO_MARGIN, _HAND_MARGIN, _TORSO_LENGTH = 0.25, 0.2, 1.4  # in shares of the body's size
_HEAD_MARGINS = np.array([[0.25, 0.55], [0.25, 0.2]])  # around face box and ears: left, top, right, bottom
_FEATHER = 0.12  # standard deviation of the feather, in shares of the face's width
_SUBCELLS = 4  # per cell and axis
_BINARY = 4  # binary places of OpenCV's sub-pixel coordinates
_FAR = 4.0  # frames; OpenCV's coordinates end at some point


def person_regions(
    keypoints: np.ndarray,
    present: np.ndarray,
    face_boxes: np.ndarray | None,
    size: tuple[int, int],
    *,
    cell: int = 8,
) -> np.ndarray:
    """Weights float32[t,p+1,ceil(h/cell),ceil(w/cell)] of people and, last, background; they sum to 1 in each cell.

    ``keypoints`` float[t,p,134,3] and ``face_boxes`` float[t,p,4] (NaN: none; None: the boxes of the face points) are
    in pixels of ``size`` (width, height), ``present`` is bool[t,p]. ``cell`` is a cell's side in pixels. Who is absent
    or outside the frame has weight 0. Raises ``ValueError`` for other shapes.
    """
    keypoints = np.asarray(keypoints)
    frames, people = np.shape(present)
    if keypoints.shape != (frames, people, COUNT, 3) or min(size) < 1 or cell < 1:
        raise ValueError(f"keypoints {keypoints.shape} of {frames} frames, {people} people, size {size}, cell {cell}")
    boxes = face_box(keypoints)
    if face_boxes is not None:
        if np.shape(face_boxes) != boxes.shape:
            raise ValueError(f"face boxes {np.shape(face_boxes)}: expected {boxes.shape}")
        boxes = np.where(np.isfinite(face_boxes).all(axis=-1, keepdims=True), face_boxes, boxes)
    grid = math.ceil(size[0] / cell), math.ceil(size[1] / cell)
    regions = np.zeros((frames, people + 1, grid[1], grid[0]), np.float32)
    for frame in range(frames):
        bodies, heads = np.zeros((2, people, grid[1], grid[0]), np.float32)
        for person in np.flatnonzero(present[frame]):
            figure = _figure(keypoints[frame, person], boxes[frame, person], size)
            if figure is not None:
                bodies[person], heads[person] = _draw(figure, grid, cell)
        regions[frame] = _share(bodies, heads)
    return regions


@dataclass(frozen=True, slots=True)
class _Figure:
    """One person in one frame: ``points`` float64[134,2], ``seen`` bool[134], ``head`` (x0, y0, x1, y1) or None, and
    the sizes of body and face in pixels."""

    points: np.ndarray
    seen: np.ndarray
    head: np.ndarray | None
    body: float
    face: float


def _figure(person: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> _Figure | None:
    """None if no point of the person is known."""
    far = _FAR * max(size)
    seen = visible(person) & (np.abs(np.nan_to_num(person[:, :2])) < far).all(axis=-1)
    points = np.where(seen[:, None], person[:, :2], 0.0).astype(np.float64)
    known = np.isfinite(box).all() and (np.abs(box) < far).all() and (box[2:] > box[:2]).all()
    if not known and not seen.any():
        return None
    face = float(box[2] - box[0]) if known else 0.0

    def distance(a: int, b: int) -> float:
        return float(np.linalg.norm(points[a] - points[b])) if seen[a] and seen[b] else 0.0

    # shoulders seen from the side are close together, a torso seen from above is short: the larger estimate counts
    torso = max(distance(_NECK, hip) for hip in _HIPS)
    body = max(distance(*_SHOULDERS), 2 * max(distance(_NECK, shoulder) for shoulder in _SHOULDERS), 0.7 * torso)
    if body == 0:
        extent = np.ptp(points[seen], axis=0).max() if seen.any() else 0.0
        body = 2.0 * face if face else float(extent) / 3
    face = face or 0.5 * body
    if known:
        side = max(box[2] - box[0], 0.8 * (box[3] - box[1]))  # a profile is narrow
        ears = points[[i for i in _EARS if seen[i]]].reshape(-1, 2)
        low = np.vstack([box[:2], ears]).min(axis=0) - side * _HEAD_MARGINS[0]
        high = np.vstack([box[2:], ears]).max(axis=0) + side * _HEAD_MARGINS[1]
        head = np.concatenate([low, high])
    elif seen[list(_HEAD)].any():
        centre = points[[i for i in _HEAD if seen[i]]].mean(axis=0)
        head = np.concatenate([centre - 0.8 * face, centre + 0.8 * face])
    else:
        head = None
    return _Figure(points, seen, head, body, face)


def _draw(figure: _Figure, grid: tuple[int, int], cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Feathered body (head included) and head, float32[h,w] on the grid (width, height)."""
    scale = _SUBCELLS / cell
    sigma = max(_SUBCELLS, _FEATHER * figure.face * scale)
    body = np.zeros((grid[1] * _SUBCELLS, grid[0] * _SUBCELLS), np.uint8)
    head = body.copy()
    points, seen = figure.points * scale, figure.seen
    grow = 0.5 * sigma  # the feather takes from thin parts what it adds around them

    def hull(corners: np.ndarray, radius: float) -> None:
        corners = np.rint((corners - 0.5) * 2**_BINARY).astype(np.int32)
        outline = cv2.convexHull(corners)
        cv2.fillConvexPoly(body, outline, 1, cv2.LINE_8, _BINARY)
        thickness = max(1, round(2 * (radius * figure.body * scale + grow)))
        cv2.polylines(body, [outline], True, 1, thickness, cv2.LINE_8, _BINARY)

    torso = _torso(figure)
    if len(torso):
        hull(torso * scale, _TORSO_MARGIN)
    for a, b, radius in _LIMBS:
        if seen[a] and seen[b]:
            hull(points[[a, b]], radius)
    for hand in (LEFT_HAND, RIGHT_HAND):
        if seen[hand].any():
            hull(points[hand][seen[hand]], _HAND_MARGIN)
    if seen[_NOSE] and seen[_NECK]:
        hull(points[[_NOSE, _NECK]], 0.25)
    if figure.head is not None:
        low, high = figure.head[:2] * scale - 0.5, figure.head[2:] * scale - 0.5
        (x, y), (across, down) = (low + high) / 2, (high - low) / 2 + grow
        centre, axes = (_fixed(x), _fixed(y)), (_fixed(across), _fixed(down))
        cv2.ellipse(head, centre, axes, 0, 0, 360, 1, -1, cv2.LINE_8, _BINARY)
    masks = []
    for mask in (body | head, head):
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        masks.append(cv2.resize(soft, grid, interpolation=cv2.INTER_AREA))
    return masks[0], masks[1]


def _fixed(value: float) -> int:
    """A sub-pixel coordinate of OpenCV."""
    return round(float(value) * 2**_BINARY)


def _torso(figure: _Figure) -> np.ndarray:
    """Corners float64[n,2] of the torso; below the shoulders it is estimated if no hip is known."""
    points, seen = figure.points, figure.seen
    corners = [points[i] for i in (_NECK, *_SHOULDERS, *_HIPS) if seen[i]]
    shoulders = [i for i in _SHOULDERS if seen[i]]
    if not seen[list(_HIPS)].any() and shoulders:
        down = np.array([0.0, 1.0])
        if seen[_NOSE] and seen[_NECK] and (length := np.linalg.norm(points[_NECK] - points[_NOSE])) > 0:
            down = (points[_NECK] - points[_NOSE]) / length
        corners += [points[i] + _TORSO_LENGTH * figure.body * down for i in shoulders]
    return np.array(corners).reshape(-1, 2)


def _share(bodies: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Coverage float32[p,h,w] of bodies and heads -> weights float32[p+1,h,w] that sum to 1."""
    weights = np.zeros((len(bodies) + 1, *bodies.shape[1:]))
    free = np.ones(bodies.shape[1:])
    for layer in (heads.astype(np.float64), bodies.astype(np.float64)):
        total = layer.sum(axis=0)
        covered = free * (1 - np.prod(1 - layer.clip(0, 1), axis=0))
        weights[:-1] += covered * np.divide(layer, total, out=np.zeros_like(layer), where=total > 0)
        free = free - covered
    weights[-1] = free.clip(0, 1)
    return weights.astype(np.float32)
