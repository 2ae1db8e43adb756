"""Flicker, and the changes from frame to frame in which seams are searched.

Flicker is the distance of a frame from the mean of its two neighbours. Even motion and fades have little of it,
independent noise has much. The ground truth's own flicker is the target.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stableanimator_cli.metrics.result import define

_FLICKER = "mean |frame - mean of its two neighbours| / 255 over pixels, channels and frames"
define(
    "flicker", "flicker", "neither",
    f"{_FLICKER}; the target is the ground truth's own: frozen or blurred video has less",
    source="ours", range="0..1",
)  # fmt: skip
define(
    "flicker_excess", "flicker excess", "zero", f"flicker minus the ground truth's; flicker: {_FLICKER}",
    source="ours", range="-1..1; 0 is as even as the truth, below 0 smoother, as frozen or blurred video is",
)  # fmt: skip
define(
    "flicker_distance", "flicker distance", "lower",
    f"absolute value of flicker_excess of each video, so that too smooth and too rough videos do not cancel in a mean; "
    f"flicker: {_FLICKER}",
    source="ours", range="0..1; 0 is as even as the truth",
)  # fmt: skip


@dataclass(slots=True)
class Changes:
    """Changes of a stream of frames uint8[h,w,3]; only two frames are held.

    ``differences`` [t-1] are mean absolute differences of neighbours, NaN across a gap. ``curvature`` [t-2] are mean
    absolute differences of a frame and the mean of its two neighbours, none across a gap. Pixels count from 0 to 1.
    """

    differences: list[float] = field(default_factory=list)
    curvature: list[float] = field(default_factory=list)
    _previous: list[np.ndarray] = field(default_factory=list)

    def add(self, frame: np.ndarray, *, gap: bool = False) -> None:
        """``gap``: frames are missing before this one. ``ValueError`` if its shape differs from the one before."""
        now = frame.astype(np.int16)
        if self._previous:
            if self._previous[-1].shape != now.shape:
                raise ValueError(f"a frame of shape {now.shape} after one of {self._previous[-1].shape}")
            self.differences.append(float("nan") if gap else float(np.abs(now - self._previous[-1]).mean()) / 255)
            if gap:
                self._previous = []
        if len(self._previous) == 2:
            before, middle = self._previous
            self.curvature.append(float(np.abs(2 * middle - before - now).mean()) / 510)
        self._previous = [*self._previous[-1:], now]


def flicker(curvature: list[float] | np.ndarray) -> float:
    """Mean of ``Changes.curvature``, 0..1; NaN below three frames."""
    return float(np.mean(curvature)) if len(curvature) else float("nan")


def flicker_excess(curvature: list[float] | np.ndarray, target: list[float] | np.ndarray) -> float:
    """Flicker beyond the ground truth's own: 0 for equally even motion, below 0 for smoother. NaN if either has fewer
    than three frames."""
    return flicker(curvature) - flicker(target)
