"""Pose accuracy: keypoints detected in the output against those that drove it.

Points are float[t,134,3] (x, y, score) of one person, in pixels of the same frame. Errors are relative to the size of
the person, of its hands or of its face, so that near and far people count the same. PCK: Yang and Ramanan, "Articulated
Human Detection with Flexible Mixtures of Parts".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stableanimator_cli.metrics.result import define
from stableanimator_cli.motion.keypoints import BODY, FACE, LEFT_HAND, RIGHT_HAND

SEEN = 0.3
"""A point with a higher score counts as detected."""


@dataclass(frozen=True, slots=True)
class Part:
    """Points that are scored together, in ``groups`` of one box each. The size of the part is the median diagonal of
    the boxes with ``minimum`` visible points or more. A point is correct within ``pck`` of it. ``inside``: driving
    points outside of the frame count as invisible."""

    groups: tuple[slice, ...]
    pck: float
    minimum: int
    inside: bool


BODY_PART = Part((BODY,), pck=0.1, minimum=2, inside=False)
PARTS = {
    "keypoint": BODY_PART,
    "hand": Part((LEFT_HAND, RIGHT_HAND), pck=0.2, minimum=11, inside=True),
    "landmark": Part((FACE,), pck=0.1, minimum=34, inside=True),
}
"""Parts by the first word of their metrics: ``hand_error``, ``hand_pck``, ``hand_found``."""
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
for _part, _title, _points, _of in (
    ("hand", "hand point", "42 hand points", "hand's size (diagonal of the box round a hand, median over hands and "
     "frames)"),
    ("landmark", "face landmark", "68 face landmarks", "face's size (diagonal of the box round its landmarks, median "
     "over frames)"),
):  # fmt: skip
    _asked = "driving points with a score above 0.3 inside of the frame"
    _within = f"{PARTS[_part].pck} of the {_part.replace('landmark', 'face')}'s size"
    define(
        f"{_part}_error", f"{_title} error", "lower",
        f"mean distance of the {_points} found in the output to those that drove it, in shares of the driving {_of}; "
        f"{_asked}, seen in the output too",
        source=_SOURCE, range="0..",
    )  # fmt: skip
    define(
        f"{_part}_pck", f"{_title.split()[0]} PCK@{PARTS[_part].pck}", "higher",
        f"share of the {_asked}, of the {_points}, that are found within {_within}; one not found is wrong",
        source=_SOURCE, range="0..1",
    )  # fmt: skip
    define(
        f"{_part}_found", f"{_title}s found", "higher",
        f"share of the {_asked}, of the {_points}, that are found in the output", source=_SOURCE, range="0..1",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionError:
    """Pose accuracy of one video. ``error`` is the mean distance relative to the part's size, ``pixels`` the same in
    pixels. ``pck`` and ``found`` are fractions of the ``driven`` points: correct ones, and detected ones. ``curve``
    float[t] is the error per frame, NaN if there is none; ``points`` is the number of compared points."""

    error: float
    pixels: float
    pck: float
    found: float
    curve: np.ndarray
    points: int
    driven: int


def keypoint_error(
    detected: np.ndarray, driven: np.ndarray, part: Part = BODY_PART, frame: tuple[int, int] | None = None
) -> MotionError:
    """Compare detected points with those that drove the output, both float[t,134,3], with score 0 for absent people.

    ``frame`` is (width, height), for parts whose points must be inside. All values are NaN if the motion shows too
    little of the part to measure its size. Raises ``ValueError`` if the shapes differ.
    """
    detected, driven = np.asarray(detected, np.float64), np.asarray(driven, np.float64)
    if detected.shape != driven.shape:
        raise ValueError(f"points {detected.shape} against {driven.shape}")
    visible = _is_seen(driven)
    if part.inside and frame is not None:
        with np.errstate(invalid="ignore"):
            visible &= ((driven[..., :2] >= 0) & (driven[..., :2] < frame)).all(axis=-1)
    size = _size([(driven[:, group], visible[:, group]) for group in part.groups], part.minimum)
    points = np.r_[part.groups]
    detected, driven, expected = detected[:, points], driven[:, points], visible[:, points]
    seen = expected & _is_seen(detected)
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
        pck=float((distance[seen] <= part.pck * size).sum() / expected.sum()),
        found=float(seen.sum() / expected.sum()),
        curve=curve,
        points=int(seen.sum()),
        driven=int(expected.sum()),
    )


def _is_seen(points: np.ndarray) -> np.ndarray:
    return (points[..., 2] > SEEN) & np.isfinite(points[..., :2]).all(axis=-1)


def _size(groups: list[tuple[np.ndarray, np.ndarray]], minimum: int) -> float:
    """Median diagonal of the boxes round points float[t,n,3] of which ``minimum`` are visible, bool[t,n]."""
    diagonals = []
    for points, seen in groups:
        for frame, valid in zip(points, seen, strict=True):
            if valid.sum() >= minimum:
                diagonals.append(float(np.linalg.norm(np.ptp(frame[valid, :2], axis=0))))
    size = float(np.median(diagonals)) if diagonals else float("nan")
    return size if size > 0 else float("nan")
