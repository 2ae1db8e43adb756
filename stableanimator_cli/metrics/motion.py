"""Does the output do what it was driven with? Key points found in it against those that it was given.

Points are float[t,134,3] (x, y, score) of one person in pixels of the same frame. Error and PCK are over the 18 points
of the body, in shares of that person's size, so that near and far figures weigh the same. PCK: Yang and Ramanan,
"Articulated Human Detection with Flexible Mixtures of Parts".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stableanimator_cli.metrics.result import define

BODY = slice(0, 18)
SEEN = 0.3
"""A point whose score is above this counts as seen, as everywhere here."""
PCK = 0.1
"""A point is right within this share of the person's size."""
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
    """Of one video. ``error`` mean distance in shares of the driven person's size, ``pixels`` the same in pixels,
    ``pck`` share of right points among the driven ones (a point not found is not right), ``found`` share of the driven
    points that were found, ``curve`` float[t] of ``error`` by frame (NaN: nothing to compare), ``points`` compared,
    of ``driven`` ones."""

    error: float
    pixels: float
    pck: float
    found: float
    curve: np.ndarray
    points: int
    driven: int


def keypoint_error(made: np.ndarray, driven: np.ndarray) -> MotionError:
    """Compare points found in the output with those that drove it, both float[t,134,3] with rows of score 0 where
    nobody was seen. The size of a person is the diagonal of the box round the driven body points, median over frames.

    ``ValueError`` where the shapes differ. All NaN where the driven motion shows nobody.
    """
    made, driven = np.asarray(made, np.float64), np.asarray(driven, np.float64)
    if made.shape != driven.shape:
        raise ValueError(f"points {made.shape} against {driven.shape}")
    made, driven = made[:, BODY], driven[:, BODY]
    wanted, seen = _seen(driven), _seen(driven) & _seen(made)
    size = _size(driven, wanted)
    curve = np.full(len(driven), np.nan)
    if not wanted.any() or not np.isfinite(size):
        return MotionError(error=np.nan, pixels=np.nan, pck=np.nan, found=np.nan, curve=curve, points=0, driven=0)
    distance = np.linalg.norm(np.where(seen[..., None], made[..., :2] - driven[..., :2], 0.0), axis=-1)
    counts = seen.sum(axis=1)
    some = counts > 0
    curve[some] = distance.sum(axis=1)[some] / counts[some] / size
    pixels = float(distance[seen].mean()) if seen.any() else float("nan")
    return MotionError(
        error=pixels / size,
        pixels=pixels,
        pck=float((distance[seen] <= PCK * size).sum() / wanted.sum()),
        found=float(seen.sum() / wanted.sum()),
        curve=curve,
        points=int(seen.sum()),
        driven=int(wanted.sum()),
    )


def _seen(points: np.ndarray) -> np.ndarray:
    return (points[..., 2] > SEEN) & np.isfinite(points[..., :2]).all(axis=-1)


def _size(points: np.ndarray, seen: np.ndarray) -> float:
    diagonals = []
    for frame, there in zip(points, seen, strict=True):
        if there.sum() >= 2:
            diagonals.append(float(np.linalg.norm(np.ptp(frame[there, :2], axis=0))))
    size = float(np.median(diagonals)) if diagonals else float("nan")
    return size if size > 0 else float("nan")
