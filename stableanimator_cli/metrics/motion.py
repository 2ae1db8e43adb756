"""Pose accuracy: key points detected in the output against those that drove it.

Points are float[t,134,3] (x, y, score) of one person, in pixels of the same frame. Error and PCK are over the 18 body
points, relative to the person's size, so that near and far people count the same. PCK: Yang and Ramanan, "Articulated
Human Detection with Flexible Mixtures of Parts".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stableanimator_cli.metrics.result import define

BODY = slice(0, 18)
SEEN = 0.3
"""A point with a higher score counts as detected."""
PCK = 0.1
"""A point is correct within this fraction of the person's size."""
_SOURCE = "Yang and Ramanan, Articulated Human Detection with Flexible Mixtures of Parts (PCK)"
define(
    "keypoint_error", "key-point error", "lower",
    "mean distance of the 18 body points found in the output to those that drove it, in shares of the driven person's "
    "size (diagonal of the box round the body, median over frames); points seen on both sides",
    source=_SOURCE, range="0..",
)  # fmt: skip
define(
    "keypoint_pck", "PCK@0.1", "higher",
    "share of the driven body points that are found within 0.1 of the person's size; one not found is wrong",
    source=_SOURCE, range="0..1",
)  # fmt: skip
define(
    "keypoint_found", "points found", "higher", "share of the driven body points that are found in the output",
    source=_SOURCE, range="0..1",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionError:
    """Pose accuracy of one video. ``error`` is the mean distance relative to the person's size, ``pixels`` the same in
    pixels. ``pck`` and ``found`` are fractions of the ``driven`` points: correct ones, and detected ones. ``curve``
    float[t] is the error per frame, NaN if there is none; ``points`` is the number of compared points."""

    error: float
    pixels: float
    pck: float
    found: float
    curve: np.ndarray
    points: int
    driven: int


def keypoint_error(detected: np.ndarray, driven: np.ndarray) -> MotionError:
    """Compare detected points with those that drove the output, both float[t,134,3], with score 0 for absent people.

    A person's size is the median diagonal of the box round the driven body points. All values are NaN if the motion has
    no person. Raises ``ValueError`` if the shapes differ.
    """
    detected, driven = np.asarray(detected, np.float64), np.asarray(driven, np.float64)
    if detected.shape != driven.shape:
        raise ValueError(f"points {detected.shape} against {driven.shape}")
    detected, driven = detected[:, BODY], driven[:, BODY]
    expected, seen = _is_seen(driven), _is_seen(driven) & _is_seen(detected)
    size = _size(driven, expected)
    curve = np.full(len(driven), np.nan)
    if not expected.any() or not np.isfinite(size):
        return MotionError(error=np.nan, pixels=np.nan, pck=np.nan, found=np.nan, curve=curve, points=0, driven=0)
    distance = np.linalg.norm(np.where(seen[..., None], detected[..., :2] - driven[..., :2], 0.0), axis=-1)
    counts = seen.sum(axis=1)
    some = counts > 0
    curve[some] = distance.sum(axis=1)[some] / counts[some] / size
    pixels = float(distance[seen].mean()) if seen.any() else float("nan")
    return MotionError(
        error=pixels / size,
        pixels=pixels,
        pck=float((distance[seen] <= PCK * size).sum() / expected.sum()),
        found=float(seen.sum() / expected.sum()),
        curve=curve,
        points=int(seen.sum()),
        driven=int(expected.sum()),
    )


def _is_seen(points: np.ndarray) -> np.ndarray:
    return (points[..., 2] > SEEN) & np.isfinite(points[..., :2]).all(axis=-1)


def _size(points: np.ndarray, seen: np.ndarray) -> float:
    diagonals = []
    for frame, valid in zip(points, seen, strict=True):
        if valid.sum() >= 2:
            diagonals.append(float(np.linalg.norm(np.ptp(frame[valid, :2], axis=0))))
    size = float(np.median(diagonals)) if diagonals else float("nan")
    return size if size > 0 else float("nan")
