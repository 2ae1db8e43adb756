"""Window plans for long videos: the frames of each network call and the weights of its outputs.

Computed without torch. Three blends: ``upstream`` equals MimicMotion's and the reference implementation's, index for
index. ``smooth`` has the requested overlap, evenly spaced windows and raised-cosine cross-fades. ``shifted`` is
``smooth`` with borders that move in every denoising step, so that differences between windows do not add up at the same
frames (as in AnimateDiff's uniform context scheduler).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Blend = Literal["upstream", "smooth", "shifted"]
PLACEMENTS = (0, 4, 2, 6, 1, 5, 3, 7)
"""Shifts of ``shifted`` by placement, in eighths of a stride. Bit-reversed, so that consecutive ones are spread out."""


@dataclass(frozen=True, slots=True)
class Window:
    """``frames`` of the video in slot order and the ``weights`` of their outputs.

    Over all windows the weights of a frame sum to one.
    """

    frames: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """``windows`` that cover ``total`` frames. ``shifted`` are further placements of as many windows each, which steps
    alternate with ``windows``; empty for other blends."""

    total: int
    windows: tuple[Window, ...]
    shifted: tuple[tuple[Window, ...], ...] = ()

    def __iter__(self) -> Iterator[Window]:
        return iter(self.windows)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def num_placements(self) -> int:
        return 1 + len(self.shifted)

    def placement(self, index: int) -> WindowPlan:
        """Placement ``index``, modulo their number, as a plan of its own."""
        placements = (self.windows, *self.shifted)
        return WindowPlan(self.total, placements[index % len(placements)]) if self.shifted else self

    def describe(self) -> str:
        """One line per window of the first placement with its frames, e.g. ``window 2: 0, 13-27``."""
        return "\n".join(f"window {i + 1}: {_format_ranges(w.frames)}" for i, w in enumerate(self.windows))


def plan_windows(total: int, *, length: int = 16, overlap: int = 4, blend: Blend = "smooth") -> WindowPlan:
    """Cover ``total`` frames with windows of ``length`` slots; neighbours share about ``overlap`` frames.

    Slot 0 of every window holds frame 0, the anchor of appearance. A clip that fits one window gets one window of its
    own length (the reference implementation crashes there).

    * ``upstream`` shares ``overlap - 1`` frames, since the anchor takes a slot; the last window overlaps more. An
      overlap of 0 is treated as 1, because 0 would skip a frame between windows.
    * ``smooth`` shares at least ``overlap`` frames, has at least one new frame per window, and counts the anchor's
      output once.
    * ``shifted`` does the same in every placement, with one more window.

    A window of one frame has no anchor and does not shift. Raises ``ValueError`` for impossible numbers.
    """
    if total < 1:
        raise ValueError(f"{total} frames, expected at least 1")
    if not 0 <= overlap < length:
        raise ValueError(f"overlap {overlap} outside 0..{length - 1} (window {length})")
    if total <= length:
        return WindowPlan(total, (Window(tuple(range(total)), (1.0,) * total),))
    if length == 1:
        slots = [[frame] for frame in range(total)]
    elif blend == "upstream":
        slots = _upstream_slots(total, length, overlap)
    elif blend == "shifted":
        placements = (_shifted_slots(total, length, overlap, eighths / 8) for eighths in PLACEMENTS)
        first, *shifted = (_normalize(total, slots, _cross_fades(slots)).windows for slots in placements)
        return WindowPlan(total, first, tuple(shifted))
    else:
        slots = _smooth_slots(total, length, overlap)
    weights = [_triangle(length)] * len(slots) if blend == "upstream" else _cross_fades(slots)
    return _normalize(total, slots, weights)


def _upstream_slots(total: int, length: int, overlap: int) -> list[list[int]]:
    """Frame 0 and a run of ``length - 1`` frames every ``length - overlap``; a last one for remaining frames.

    Without overlap the reference implementation skips a frame per window and divides by a count of zero.
    """
    starts = range(0, total - length + 1, length - max(1, overlap))
    slots = [[0, *range(start + 1, start + length)] for start in starts]
    if slots[-1][-1] < total - 1:
        slots.append([0, *range(total - length + 1, total)])
    return slots


def _triangle(length: int) -> np.ndarray:
    """Weight by slot: 1/length at the ends, about 1 in the middle."""
    position = (np.arange(length) + 0.5) * 2 / length
    return np.minimum(position, 2 - position)


def _smooth_slots(total: int, length: int, overlap: int) -> list[list[int]]:
    """A first run of ``length`` frames, then anchored runs of ``length - 1``, evenly spaced."""
    run = length - 1
    stride = max(1, run - overlap)
    # runs over frames 1..total-1, each after the anchor
    count = 1 + math.ceil((total - 1 - run) / stride)
    starts = np.round(np.linspace(1, total - run, count)).astype(int)
    return [[0, *range(start, start + run)] for start in starts.tolist()]


def _shifted_slots(total: int, length: int, overlap: int, phase: float) -> list[list[int]]:
    """``smooth``'s runs, with inner ones moved back by ``phase`` + 1/16 of their stride, and one more before the last.

    So every phase has the same number of runs.
    """
    run = length - 1
    starts = [slots[1] for slots in _smooth_slots(total, length, overlap)]
    stride = (starts[-1] - 1) / max(1, len(starts) - 1)
    between = [round(1 + (index - phase - 1 / 16) * stride) for index in range(1, len(starts))]
    return [[0, *range(start, start + run)] for start in (1, *between, starts[-1])]


def _cross_fades(slots: list[list[int]]) -> list[np.ndarray]:
    """Raised-cosine ramps over shared frames; the anchor counts in the first window only."""
    weights = [np.ones(len(frames)) for frames in slots]
    for before, after, left, right in zip(slots, slots[1:], weights, weights[1:], strict=False):
        shared = before[-1] - after[1] + 1 if len(after) > 1 else 0
        if shared > 0:
            ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(shared) + 1) / (shared + 1))
            right[1 : 1 + shared] *= ramp
            left[len(before) - shared :] *= ramp[::-1]
        if len(after) > 1:
            right[0] = 0.0
    return weights


def _normalize(total: int, slots: list[list[int]], weights: list[np.ndarray]) -> WindowPlan:
    cover = np.zeros(total)
    for frames, weight in zip(slots, weights, strict=True):
        np.add.at(cover, frames, weight)
    windows = (
        Window(tuple(frames), tuple((weight / cover[frames]).tolist()))
        for frames, weight in zip(slots, weights, strict=True)
    )
    return WindowPlan(total, tuple(windows))


def _format_ranges(frames: tuple[int, ...]) -> str:
    """``(0, 3, 4, 5)`` -> ``0, 3-5``."""
    parts: list[list[int]] = []
    for frame in frames:
        if parts and frame == parts[-1][1] + 1:
            parts[-1][1] = frame
        else:
            parts.append([frame, frame])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
