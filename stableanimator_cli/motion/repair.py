"""Repair of motions: short gaps in detection are interpolated, and jitter is smoothed.

Nothing is extrapolated before the first or after the last observation, or interpolated across a longer gap. The
smoothing is our own because library filters (``scipy.signal.savgol_filter``) need even times and no gaps.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from stableanimator_cli.motion.keypoints import BODY, COUNT, THRESHOLD, visible
from stableanimator_cli.records import Motion

GAP = 8
"""The longest gap, in frames, that is interpolated by default."""

LOWERED = 0.8
"""Score of an interpolated point, as the share of the way from the threshold to the smaller score of both ends."""

_MIN_RUN = 4  # a parabola through fewer points follows their noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Frames ``first:stop`` (half-open) without the person ``track``, between two frames with them.

    ``filled``: whether the gap was interpolated.
    """

    track: int
    first: int
    stop: int
    filled: bool

    @property
    def frames(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairs:
    """Changes by ``repair``.

    ``frames``: interpolated frames of people. ``points``: interpolated single points of detected people. ``emptied``:
    detections without a body point, which count as absent. ``moved``: median distance in pixels by which ``smooth``
    moved a visible point.
    """

    frames: int
    points: int
    emptied: int
    gaps: tuple[Gap, ...]
    smooth: float
    moved: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"gaps": [dataclasses.asdict(gap) for gap in self.gaps]}

    def describe(self) -> str:
        """One line."""
        left = [gap for gap in self.gaps if not gap.filled]
        parts = [
            f"{self.frames} frames filled in {len(self.gaps) - len(left)} gaps",
            f"{self.points} points filled",
        ]
        if left:
            parts.append(f"{len(left)} gaps left, the longest of {max(gap.frames for gap in left)} frames")
        if self.emptied:
            parts.append(f"{self.emptied} frames without a body point")
        if self.smooth:
            parts.append(f"smoothed over {self.smooth:g} frames, {self.moved:.2f} px")
        return ", ".join(parts)


def repair(motion: Motion, *, gap: int = GAP, smooth: float = 0.0) -> tuple[Motion, Repairs]:
    """Interpolate gaps of up to ``gap`` frames, and report every change.

    Keypoints visible (score above ``THRESHOLD``) on both sides of a person's gap are interpolated linearly in time, as
    are face boxes; other points get score 0. Single points missing for up to ``gap`` frames of a present person are
    interpolated likewise. Interpolated scores are lowered (``LOWERED``). Longer gaps stay absent and are listed.
    ``smooth`` is 0 or the width in frames of the smoothing (``smoothed``). Raises ``ValueError`` for negative values.
    """
    if gap < 0:
        raise ValueError(f"gap {gap}: expected 0 frames or more")
    if not (np.isfinite(smooth) and smooth >= 0):
        raise ValueError(f"smooth {smooth}: expected 0 or a number of frames")
    keypoints, boxes = motion.keypoints.copy(), motion.face_boxes.copy()
    clock = _clock(motion)
    seen = visible(keypoints) & motion.present[..., None]
    present = motion.present & seen[:, :, BODY].any(axis=-1)
    emptied = int((motion.present & ~present).sum())
    keypoints[motion.present & ~present], boxes[motion.present & ~present] = 0.0, np.nan
    seen &= present[..., None]

    gaps, filled = [], np.zeros_like(present)
    for p, number in enumerate(motion.track.tolist()):
        for first, stop in _holes(present[:, p]):
            short = stop - first <= gap
            gaps.append(Gap(track=int(number), first=first, stop=stop, filled=short))
            if short:
                filled[first:stop, p] = True
                _fill_person(keypoints[:, p], boxes[:, p], seen[:, p], clock, first, stop)
    present |= filled
    points = 0
    for p in range(present.shape[1]):
        for start, end in _runs(present[:, p]):
            for k in range(COUNT):
                for first, stop in _holes(seen[start:end, p, k], start):
                    if stop - first <= gap:
                        points += int((~filled[first:stop, p]).sum())
                        _fill(keypoints[:, p, k], clock, first, stop)
    result = dataclasses.replace(motion, keypoints=keypoints, present=present, face_boxes=boxes)
    moved = 0.0
    if smooth > 0:
        before, result = result, smoothed(result, smooth)
        seen = visible(before.keypoints) & present[..., None]
        shift = np.linalg.norm(result.keypoints[..., :2] - before.keypoints[..., :2], axis=-1)[seen]
        moved = float(np.median(shift)) if len(shift) else 0.0
    gaps = tuple(sorted(gaps, key=lambda one: (one.first, one.track)))
    return result, Repairs(
        frames=int(filled.sum()), points=points, emptied=emptied, gaps=gaps, smooth=float(smooth), moved=moved
    )


def smoothed(motion: Motion, width: float) -> Motion:
    """Jitter reduced without delay: each visible point moves to the parabola that fits its neighbours in time.

    Weighted least squares with Gaussian weights of standard deviation ``width`` frames, truncated at three of them
    (Savitzky and Golay, with weights; Cleveland, "Robust locally weighted regression"). Constant velocity and constant
    acceleration do not change. Frames in which a point is not visible separate its runs; runs of fewer than four
    frames, scores and absent points do not change. Face boxes are smoothed in the same way.
    """
    keypoints, boxes = motion.keypoints.copy(), motion.face_boxes.copy()
    seen = visible(keypoints) & motion.present[..., None]
    clock = _clock(motion)
    if len(clock) > 1:  # in frames, so that ``width`` means the same whatever the rate
        clock = clock / np.median(np.diff(clock))
    points = np.where(seen[..., None], keypoints[..., :2], 0.0).astype(np.float64)  # those of absent people may be NaN
    keypoints[..., :2] = np.where(seen[..., None], _parabolas(points, seen, clock, width), keypoints[..., :2])
    known = np.isfinite(boxes).all(axis=-1) & motion.present
    corners = np.where(known[..., None], boxes, 0.0).astype(np.float64)
    boxes = np.where(known[..., None], _parabolas(corners, known, clock, width), boxes).astype(np.float32)
    return dataclasses.replace(motion, keypoints=keypoints, face_boxes=boxes)


def _parabolas(values: np.ndarray, seen: np.ndarray, clock: np.ndarray, width: float) -> np.ndarray:
    """Local quadratic regression of float64[t,...,c] where ``seen`` bool[t,...], within runs of seen frames."""
    count = len(values)
    run = np.cumsum(~seen, axis=0)  # the same number within a run of seen frames
    reach = min(max(1, int(np.ceil(3 * width))), count - 1)
    moments = [np.zeros(seen.shape) for _ in range(5)]
    sums = np.zeros((3, *values.shape))
    for offset in range(-reach, reach + 1):
        here = slice(max(0, -offset), count - max(0, offset))
        other = slice(max(0, offset), count - max(0, -offset))
        step = (clock[other] - clock[here]).reshape(-1, *[1] * (seen.ndim - 1))
        weight = np.exp(-((step / width) ** 2) / 2) * (seen[here] & seen[other] & (run[here] == run[other]))
        # Differences to the point itself: large coordinates would cost digits.
        change = values[other] - values[here]
        for power in range(5):
            moments[power][here] += weight * step**power
            if power < 3:
                sums[power][here] += (weight * step**power)[..., None] * change
    m0, m1, m2, m3, m4 = moments
    # Cramer's rule for the constant term of the normal equations.
    c0, c1, c2 = m2 * m4 - m3 * m3, m2 * m3 - m1 * m4, m1 * m3 - m2 * m2
    determinant = m0 * c0 + m1 * c1 + m2 * c2
    length = _run_lengths(seen)
    enough = seen & (length >= _MIN_RUN) & (determinant > 1e-9 * np.maximum(m0 * m2 * m4, 1e-12))
    numerator = sums[0] * c0[..., None] + sums[1] * c1[..., None] + sums[2] * c2[..., None]
    return np.where(enough[..., None], values + numerator / np.where(enough, determinant, 1.0)[..., None], values)


def _run_lengths(seen: np.ndarray) -> np.ndarray:
    """int64[t,...]: length of the run of seen frames at each frame; 0 where not seen."""
    lengths = seen.astype(np.int64)
    for t in range(1, len(seen)):  # count up along each run,
        lengths[t] *= lengths[t - 1] + 1
    for t in reversed(range(len(seen) - 1)):  # and carry its last count back
        lengths[t] = np.where(seen[t] & seen[t + 1], lengths[t + 1], lengths[t])
    return lengths


def _fill_person(
    points: np.ndarray, boxes: np.ndarray, seen: np.ndarray, clock: np.ndarray, first: int, stop: int
) -> None:
    """Interpolate one person [t,134,3] in frames first:stop. Points not visible on both sides become 0."""
    points[first:stop] = 0.0
    both = seen[first - 1] & seen[stop]
    for k in np.flatnonzero(both):
        _fill(points[:, k], clock, first, stop)
    seen[first:stop] = both
    weight = _weights(clock, first, stop)[:, None]
    boxes[first:stop] = (1 - weight) * boxes[first - 1] + weight * boxes[stop]  # NaN if an end has none


def _fill(point: np.ndarray, clock: np.ndarray, first: int, stop: int) -> None:
    """Interpolate one point [t,3] in frames first:stop from the frames beside them."""
    weight = _weights(clock, first, stop)[:, None]
    before, after = point[first - 1].astype(np.float64), point[stop].astype(np.float64)
    point[first:stop, :2] = (1 - weight) * before[:2] + weight * after[:2]
    point[first:stop, 2] = THRESHOLD + LOWERED * (min(before[2], after[2]) - THRESHOLD)


def _weights(clock: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Weights of the later end at frames first:stop."""
    start, end = clock[first - 1], clock[stop]
    return (clock[first:stop] - start) / (end - start)


def _clock(motion: Motion) -> np.ndarray:
    """Seconds of the frames, or their indices if the motion has no rising times."""
    if motion.times is not None:
        seconds = np.array([float(time) for time in motion.times])
        if (np.diff(seconds) > 0).all():
            return seconds
    return np.arange(len(motion), dtype=np.float64)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of true in bool[t]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _holes(mask: np.ndarray, offset: int = 0) -> list[tuple[int, int]]:
    """Half-open runs of false between two runs of true, shifted by ``offset``."""
    return [(offset + before[1], offset + after[0]) for before, after in itertools.pairwise(_runs(mask))]
