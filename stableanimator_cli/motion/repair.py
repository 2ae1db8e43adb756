"""Gaps closed and jitter reduced: what detection left out for a moment, put back between two observations.

Nothing is invented before the first or after the last observation, and nothing across a gap longer than asked.
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
"""Frames: the longest gap that is closed by default."""

LOWERED = 0.8
"""What is left, above the threshold of being seen, of the smaller of both ends' scores."""

_LEAST_RUN = 4  # a parabola through fewer points follows their noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Person ``track`` was not seen in frames ``first:stop`` (half-open), between two frames in which they were;
    ``filled`` says whether the gap was closed or left."""

    track: int
    first: int
    stop: int
    filled: bool

    @property
    def frames(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairs:
    """What ``repair`` did: people put back into ``frames`` frames, ``points`` single points put back where their
    person was seen, ``emptied`` frames of people without a single body point, taken for absent; all gaps; and, with
    ``smooth``, by how many pixels a seen point was moved (``moved``, the median)."""

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
        said = [
            f"{self.frames} frames filled in {len(self.gaps) - len(left)} gaps",
            f"{self.points} points filled",
        ]
        if left:
            said.append(f"{len(left)} gaps left, the longest of {max(gap.frames for gap in left)} frames")
        if self.emptied:
            said.append(f"{self.emptied} frames without a body point")
        if self.smooth:
            said.append(f"smoothed over {self.smooth:g} frames, {self.moved:.2f} px")
        return ", ".join(said)


def repair(
    motion: Motion, *, gap: int = GAP, smooth: float = 0.0, threshold: float = THRESHOLD
) -> tuple[Motion, Repairs]:
    """Close gaps of up to ``gap`` frames, and report every change.

    A person who is not seen for up to ``gap`` frames is put back: points seen (score above ``threshold``) on both sides
    are interpolated linearly in time, others have score 0; so are face boxes. Single points not seen for up to ``gap``
    frames while their person is there are interpolated likewise. A score made up is four fifths of the way from the
    threshold to the smaller of both ends'. Longer gaps stay absent and are listed. ``smooth`` is 0 or the width in
    frames of the smoothing (``smoothed``). ``ValueError`` for negative values.
    """
    if gap < 0:
        raise ValueError(f"gap {gap}: expected 0 frames or more")
    if not (np.isfinite(smooth) and smooth >= 0):
        raise ValueError(f"smooth {smooth}: expected 0 or a number of frames")
    keypoints, boxes = motion.keypoints.copy(), motion.face_boxes.copy()
    clock = _clock(motion)
    seen = visible(keypoints, threshold) & motion.present[..., None]
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
                _fill_person(keypoints[:, p], boxes[:, p], seen[:, p], clock, first, stop, threshold)
    present |= filled
    points = 0
    for p in range(present.shape[1]):
        for first, stop in _stretches(present[:, p]):
            for k in range(COUNT):
                for hole, end in _holes(seen[first:stop, p, k]):
                    if end - hole <= gap:
                        made = ~filled[first + hole : first + end, p]
                        points += int(made.sum())
                        _fill(keypoints[:, p, k], clock, first + hole, first + end, threshold)
    result = dataclasses.replace(motion, keypoints=keypoints, present=present, face_boxes=boxes)
    moved = 0.0
    if smooth > 0:
        before, result = result, smoothed(result, smooth, threshold=threshold)
        there = visible(before.keypoints, threshold) & present[..., None]
        shift = np.linalg.norm(result.keypoints[..., :2] - before.keypoints[..., :2], axis=-1)[there]
        moved = float(np.median(shift)) if len(shift) else 0.0
    order = sorted(gaps, key=lambda g: (g.first, g.track))
    return result, Repairs(
        frames=int(filled.sum()), points=points, emptied=emptied, gaps=tuple(order), smooth=float(smooth), moved=moved
    )


def smoothed(motion: Motion, width: float, *, threshold: float = THRESHOLD) -> Motion:
    """Jitter reduced without delay: each seen point moves to the parabola that fits its neighbours in time.

    Weighted least squares with Gaussian weights of standard deviation ``width`` frames, cut at three of them (Savitzky
    and Golay, with weights; Cleveland, "Robust locally weighted regression"): constant velocity and constant
    acceleration are left as they are, and what is symmetric in time stays so. No point is drawn on across frames in
    which it was not seen, nor are scores or absent points changed; runs of fewer than four frames stay. Face boxes are
    smoothed in the same way.
    """
    keypoints, boxes = motion.keypoints.copy(), motion.face_boxes.copy()
    seen = visible(keypoints, threshold) & motion.present[..., None]
    clock = _clock(motion)
    if len(clock) > 1:  # in frames, so that ``width`` means the same whatever the rate
        clock = clock / np.median(np.diff(clock))
    keypoints[..., :2] = _parabolas(keypoints[..., :2].astype(np.float64), seen, clock, width)
    there = np.isfinite(boxes).all(axis=-1) & motion.present
    corners = np.where(there[..., None], boxes, 0.0).astype(np.float64)
    boxes = np.where(there[..., None], _parabolas(corners, there, clock, width), boxes).astype(np.float32)
    return dataclasses.replace(motion, keypoints=keypoints, face_boxes=boxes)


def _parabolas(values: np.ndarray, seen: np.ndarray, clock: np.ndarray, width: float) -> np.ndarray:
    """Float64[t,...,c] with ``seen`` bool[t,...]: local quadratic regression at each seen place, runs kept apart."""
    count = len(values)
    run = np.cumsum(~seen, axis=0)  # the same number within a run of seen frames
    reach = min(max(1, int(np.ceil(3 * width))), count - 1)
    moments = [np.zeros(seen.shape) for _ in range(5)]
    sums = np.zeros((3, *values.shape))
    for offset in range(-reach, reach + 1):
        here = slice(max(0, -offset), count - max(0, offset))
        there = slice(max(0, offset), count - max(0, -offset))
        step = (clock[there] - clock[here]).reshape(-1, *[1] * (seen.ndim - 1))
        weight = np.exp(-((step / width) ** 2) / 2) * (seen[here] & seen[there] & (run[here] == run[there]))
        # Differences to the point itself: large coordinates would cost digits.
        change = values[there] - values[here]
        for power in range(5):
            moments[power][here] += weight * step**power
            if power < 3:
                sums[power][here] += (weight * step**power)[..., None] * change
    m0, m1, m2, m3, m4 = moments
    # Cramer's rule for the constant term of the normal equations.
    c0, c1, c2 = m2 * m4 - m3 * m3, m2 * m3 - m1 * m4, m1 * m3 - m2 * m2
    whole = m0 * c0 + m1 * c1 + m2 * c2
    length = _run_lengths(seen)
    enough = seen & (length >= _LEAST_RUN) & (whole > 1e-9 * np.maximum(m0 * m2 * m4, 1e-12))
    top = sums[0] * c0[..., None] + sums[1] * c1[..., None] + sums[2] * c2[..., None]
    return np.where(enough[..., None], values + top / np.where(enough, whole, 1.0)[..., None], values)


def _run_lengths(seen: np.ndarray) -> np.ndarray:
    """int[t,...]: how many seen frames the run has to which each seen frame belongs; 0 where not seen."""
    before, after = np.zeros(seen.shape, np.int64), np.zeros(seen.shape, np.int64)
    for t in range(len(seen)):
        before[t] = np.where(seen[t], (before[t - 1] if t else 0) + 1, 0)
    for t in reversed(range(len(seen))):
        after[t] = np.where(seen[t], (after[t + 1] if t + 1 < len(seen) else 0) + 1, 0)
    return np.where(seen, before + after - 1, 0)


def _fill_person(
    points: np.ndarray, boxes: np.ndarray, seen: np.ndarray, clock: np.ndarray, first: int, stop: int, threshold: float
) -> None:
    """Put one person [t,134,3] back into frames first:stop. Points not seen on both sides lie at (0, 0), score 0."""
    points[first:stop] = 0.0
    both = seen[first - 1] & seen[stop]
    for k in np.flatnonzero(both):
        _fill(points[:, k], clock, first, stop, threshold)
    seen[first:stop] = both
    share = _shares(clock, first, stop)[:, None]
    boxes[first:stop] = (1 - share) * boxes[first - 1] + share * boxes[stop]  # NaN where an end has none


def _fill(point: np.ndarray, clock: np.ndarray, first: int, stop: int, threshold: float) -> None:
    """Interpolate one point [t,3] in frames first:stop from the frames beside them."""
    share = _shares(clock, first, stop)[:, None]
    before, after = point[first - 1].astype(np.float64), point[stop].astype(np.float64)
    point[first:stop, :2] = (1 - share) * before[:2] + share * after[:2]
    point[first:stop, 2] = threshold + LOWERED * (min(before[2], after[2]) - threshold)


def _shares(clock: np.ndarray, first: int, stop: int) -> np.ndarray:
    start, end = clock[first - 1], clock[stop]
    return (clock[first:stop] - start) / (end - start)


def _clock(motion: Motion) -> np.ndarray:
    """Seconds of the frames, or their numbers where there is no clock or it does not go forward."""
    if motion.times is not None:
        seconds = np.array([float(time) for time in motion.times])
        if (np.diff(seconds) > 0).all():
            return seconds
    return np.arange(len(motion), dtype=np.float64)


def _stretches(there: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of true in bool[t]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _holes(there: np.ndarray) -> list[tuple[int, int]]:
    """Half-open runs of false between two runs of true."""
    runs = _stretches(there)
    return [(before[1], after[0]) for before, after in itertools.pairwise(runs)]
