"""Visibility of borders between windows or decoded chunks: the change across them relative to their surroundings.

A border ``b`` is the first frame of a new piece; its change is that from frame ``b - 1`` to ``b``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stableanimator_cli.metrics.result import define

AROUND = 4
"""Changes on either side of a border that it is compared with."""
_MINIMUM = 1 / 255 / 100  # a hundredth of a grey level; smaller changes count as this
_SEAM = (
    "change from the last frame before a border of windows or decoded chunks to the first after it, divided by the "
    "median change of the 4 frames on either side; with ground truth each change first by the truth's"
)
for _name, _title, _over in (("seam_score", "seams", "mean"), ("seam_worst", "worst seam", "largest")):
    define(
        _name, _title, "lower", f"{_over} over borders of: {_SEAM}", source="ours",
        range="0..; 1 is a border that does not show",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """The change at ``borders`` divided by the median change around each, 1 for an invisible border: ``score`` is the
    mean, ``worst`` the largest; NaN without borders."""

    score: float
    worst: float
    borders: tuple[int, ...]


def seam_score(
    steps: Sequence[float] | np.ndarray, borders: Iterable[int], target: Sequence[float] | np.ndarray | None = None
) -> Seams:
    """Score changes float[t-1] (``flicker.Changes.differences``) at ``borders``, frames from 1 to t-1; others are
    ignored.

    With the ``target``'s changes, also float[t-1], each change is first divided by the target's, so that a sudden
    motion of the target is no seam. Raises ``ValueError`` if their lengths differ.
    """
    change = np.maximum(np.asarray(steps, np.float64), _MINIMUM)
    if target is not None:
        if len(target) != len(change):
            raise ValueError(f"{len(target)} changes of the truth for {len(change)}")
        # Half of the target's median is added on both sides: a static target must not amplify small changes.
        known = np.asarray(target, np.float64)
        known = known[np.isfinite(known)]
        floor = max(_MINIMUM, 0.5 * float(np.median(known))) if len(known) else _MINIMUM
        change = (change + floor) / (np.asarray(target, np.float64) + floor)
    positions = sorted({border for border in borders if 1 <= border <= len(change)})
    marked = np.zeros(len(change), bool)
    marked[[border - 1 for border in positions]] = True
    scored, ratios = [], []
    for border in positions:
        index = border - 1
        low, high = max(0, index - AROUND), index + AROUND + 1
        surroundings = change[low:high][~marked[low:high] & np.isfinite(change[low:high])]
        if len(surroundings) and np.isfinite(change[index]):
            scored.append(border)
            ratios.append(float(change[index] / np.median(surroundings)))
    if not ratios:
        return Seams(score=float("nan"), worst=float("nan"), borders=())
    return Seams(score=float(np.mean(ratios)), worst=max(ratios), borders=tuple(scored))


def decode_borders(frames: int, chunk: int, overlap: int = 0) -> list[int]:
    """First frames of the decoder's chunks after the first, where cross-fades start. Each chunk of ``chunk`` frames
    shares ``overlap`` with the one before."""
    return list(range(chunk - overlap, frames - overlap, chunk - overlap))


def window_borders(windows: Sequence[Sequence[int]]) -> list[int]:
    """Borders between the windows of a plan: the first frame of each later window, and the first one after its overlap
    with the window before. ``windows`` are the frames by slot; slot 0 of later windows is the anchor, frame 0."""
    borders: set[int] = set()
    for before, after in itertools.pairwise(windows):
        own = [frame for frame in after if frame != 0]
        if own:
            borders |= {min(own), max(before) + 1} if max(before) < max(own) else {min(own)}
    return sorted(borders)
