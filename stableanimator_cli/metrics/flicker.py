"""What changes from frame to frame: flicker, and the curve of changes in which seams are looked for.

Flicker is how far a frame is from the mean of its two neighbours. Even movement and fades have little of it, noise
that is new in each frame has much; the ground truth's own flicker is what a perfect video would have.
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
    """Takes frames uint8[h,w,3] one by one; keeps two of them and numbers.

    ``steps`` [t-1]: mean absolute difference of neighbours, NaN across a gap; ``bends`` [t-2]: mean absolute difference
    of a frame and the mean of its two neighbours, none across a gap. Both in 0..1 of the range of a pixel.
    """

    steps: list[float] = field(default_factory=list)
    bends: list[float] = field(default_factory=list)
    _held: list[np.ndarray] = field(default_factory=list)

    def add(self, frame: np.ndarray, *, gap: bool = False) -> None:
        """``gap``: frames are missing before this one. ``ValueError`` if its shape differs from the one before."""
        now = frame.astype(np.int16)
        if self._held:
            if self._held[-1].shape != now.shape:
                raise ValueError(f"a frame of shape {now.shape} after one of {self._held[-1].shape}")
            self.steps.append(float("nan") if gap else float(np.abs(now - self._held[-1]).mean()) / 255)
            if gap:
                self._held = []
        if len(self._held) == 2:
            before, middle = self._held
            self.bends.append(float(np.abs(2 * middle - before - now).mean()) / 510)
        self._held = [*self._held[-1:], now]


def flicker(bends: list[float] | np.ndarray) -> float:
    """Mean of ``Changes.bends``, 0..1; NaN below three frames."""
    return float(np.mean(bends)) if len(bends) else float("nan")


def flicker_excess(bends: list[float] | np.ndarray, truth: list[float] | np.ndarray) -> float:
    """Flicker beyond the ground truth's own: 0 for a video that moves as evenly as the truth, below 0 for one that
    moves less. NaN where either has no three frames."""
    return flicker(bends) - flicker(truth)
