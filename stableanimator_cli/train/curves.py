"""``curves.png``: loss, learning rate, gradient norm and validation over the steps, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.media.image import png_mark

CURVES = "curves.png"
_WIDTH, _HEIGHT, _LEFT, _TOP = 900, 220, 80, 26
_PANELS = (("loss", True), ("rate", False), ("gradient", True), ("csim", False), ("keypoint_error", False))
_MAX_DOTS = 60  # longer curves are drawn without dots
_ALWAYS = 3  # panels that are always drawn; the others need values
_INK, _FAINT, _LINE, _SMOOTH = (40, 40, 40), (205, 205, 205), (170, 190, 220), (30, 80, 160)


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of ``metrics.jsonl`` to ``path``, atomically; without rows nothing is written."""
    if not rows:
        return
    panels = [
        pair for n, pair in enumerate(_PANELS) if n < _ALWAYS or any(row.get(pair[0]) is not None for row in rows)
    ]
    image = Image.new("RGB", (_WIDTH, _HEIGHT * len(panels) + 20), "white")
    pen = ImageDraw.Draw(image)
    steps = np.array([row["step"] for row in rows], float)
    stages = [str(row.get("stage", "")) for row in rows]
    for index, (key, logarithmic) in enumerate(panels):
        values = np.array([row.get(key, math.nan) for row in rows], float)
        _panel(pen, index * _HEIGHT, key, steps, values, stages, logarithmic)
    with atomic_write(path) as temp, translate_os_errors(path):
        image.save(temp, format="PNG", pnginfo=png_mark())


def _panel(
    pen: ImageDraw.ImageDraw,
    top: int,
    title: str,
    steps: np.ndarray,
    values: np.ndarray,
    stages: Sequence[str],
    logarithmic: bool,
) -> None:
    good = np.isfinite(values) & ((values > 0) if logarithmic else True)
    if not good.any():
        return
    first, last = float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1)  # equal for all panels
    steps, values = steps[good], values[good]
    stages = [name for name, valid in zip(stages, good, strict=True) if valid]
    shown = np.log10(values) if logarithmic else values
    low, high = float(shown.min()), float(shown.max())
    if high - low < 1e-12:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)

    def to_pixels(step: np.ndarray, value: np.ndarray) -> list[tuple[float, float]]:
        x = _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - 20)
        y = top + _HEIGHT - 20 - (value - low) / (high - low) * (_HEIGHT - _TOP - 24)
        return list(zip(x.tolist(), y.tolist(), strict=True))

    pen.text((_LEFT, top + 6), title + (" (log)" if logarithmic else ""), fill=_INK)
    for fraction in (0.0, 0.5, 1.0):
        level = low + fraction * (high - low)
        ((_, y),) = to_pixels(np.array([first]), np.array([level]))
        pen.line([(_LEFT, y), (_WIDTH - 20, y)], fill=_FAINT)
        pen.text((6, y - 6), f"{10**level if logarithmic else level:.3g}", fill=_INK)
    for before, after, step in zip(stages, stages[1:], steps[1:], strict=False):
        if before != after:
            ((x, _),) = to_pixels(np.array([step]), np.array([low]))
            pen.line([(x, top + _TOP), (x, top + _HEIGHT - 20)], fill=_FAINT)
            pen.text((x + 3, top + _TOP), after, fill=_INK)
    pen.text((_LEFT, top + _HEIGHT - 16), f"{first:.0f}", fill=_INK)
    pen.text((_WIDTH - 80, top + _HEIGHT - 16), f"step {last:.0f}", fill=_INK)
    points = to_pixels(steps, shown)
    pen.line(points, fill=_LINE)
    for x, y in points if len(points) <= _MAX_DOTS else ():
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_SMOOTH)
    if title != "rate":
        pen.line(to_pixels(steps, _moving_average(shown)), fill=_SMOOTH, width=2)


def _moving_average(values: np.ndarray) -> np.ndarray:
    """Moving average with half a window of a fiftieth of the curve, shorter at both ends."""
    width = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)
