"""Backdrops: flat colour, gradient, shapes, bars, a room or a landscape, still or slowly drifting."""

from __future__ import annotations

import math

import cv2
import numpy as np

from stableanimator_cli.puppets.canvas import CIRCLE, FIXED_POINT_BITS
from stableanimator_cli.puppets.sample import RGB, derive_rng, mix, shade

KINDS = ("flat", "gradient", "shapes", "room", "landscape", "bars")
_MARGIN = 0.12  # of the shorter side, on every edge, for drift


def _pale_colour(rng: np.random.Generator) -> RGB:
    """A muted colour, so that people stand out."""
    base = rng.uniform(120, 240)
    return tuple(int(np.clip(base + rng.normal(0, 26), 40, 255)) for _ in range(3))  # type: ignore[return-value]


class Backdrop:
    """A backdrop determined by its seed. The last image is cached."""

    def __init__(self, seed: int) -> None:
        rng = derive_rng("backdrop", seed)
        self._seed = seed
        self.kind = KINDS[int(rng.integers(len(KINDS)))]
        self.drifts = bool(rng.random() < 0.35) and self.kind not in ("flat", "gradient")
        self._angle, self._rate = rng.uniform(0, 6.283), rng.uniform(0.3, 0.8)
        self._cached: tuple[tuple[int, int], np.ndarray] | None = None

    def draw(self, size: tuple[int, int], seconds: float) -> np.ndarray:
        """A new image uint8[h,w,3] of the backdrop at this time."""
        margin = math.ceil(_MARGIN * min(size))
        if self._cached is None or self._cached[0] != size:
            self._cached = (size, self._paint((size[0] + 2 * margin, size[1] + 2 * margin), min(size)))
        full = self._cached[1]
        if not self.drifts:
            return full[margin : margin + size[1], margin : margin + size[0]].copy()
        away = 0.9 * margin * math.sin(self._rate * seconds + self._angle)
        centre = (
            margin + size[0] / 2 - 0.5 + away * math.cos(self._angle),
            margin + size[1] / 2 - 0.5 + 0.3 * away * math.sin(self._angle),
        )
        return cv2.getRectSubPix(full, size, centre)

    def _paint(self, size: tuple[int, int], unit: int) -> np.ndarray:
        rng = derive_rng("backdrop", self._seed, "paint")
        width, height = size
        a, b, c, d = (_pale_colour(rng) for _ in range(4))
        image = np.empty((height, width, 3), np.uint8)
        image[:] = a

        def poly(points: np.ndarray, colour: RGB) -> None:
            fixed = np.rint((points - 0.5) * (1 << FIXED_POINT_BITS)).astype(np.int32)
            cv2.fillPoly(image, [fixed], colour, cv2.LINE_AA, FIXED_POINT_BITS)

        def box(x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
            poly(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), colour)

        if self.kind == "gradient":
            down, right = rng.uniform(0.2, 1.0), rng.uniform(-0.7, 0.7)
            ramp = down * np.linspace(0, 1, height)[:, None] + right * np.linspace(0, 1, width)[None]
            ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
            image[:] = np.rint(np.array(a) + ramp[..., None] * (np.array(b, float) - a)).astype(np.uint8)
        elif self.kind == "shapes":
            for _ in range(int(rng.integers(4, 9))):
                at = rng.uniform(0, 1, 2) * size
                radius = rng.uniform(0.05, 0.2) * unit
                colour = mix(a, (b, c, d)[int(rng.integers(3))], rng.uniform(0.5, 1.0))
                if rng.random() < 0.5:
                    poly(CIRCLE * radius + at, colour)
                else:
                    turn, sides = rng.uniform(0, 6.283), int(rng.integers(3, 6))
                    corner = turn + np.arange(sides) * 2 * math.pi / sides
                    poly(np.stack([np.cos(corner), np.sin(corner)], axis=1) * radius + at, colour)
        elif self.kind == "bars":
            pitch, lean = rng.uniform(0.14, 0.3) * unit, rng.uniform(-0.6, 0.6) * height
            for x in np.arange(-abs(lean) - pitch, width + abs(lean) + pitch, 2 * pitch):
                poly(np.array([[x, 0], [x + pitch, 0], [x + pitch + lean, height], [x + lean, height]]), mix(a, b, 0.6))
        elif self.kind == "room":
            floor = height - rng.uniform(0.16, 0.3) * unit - _MARGIN * unit
            box(0, floor, width, height, shade(c, -0.3))
            box(0, floor - 0.025 * unit, width, floor, shade(a, 0.5))
            for _ in range(int(rng.integers(1, 4))):  # windows and pictures on the wall
                x, y = rng.uniform(0.0, 0.85) * width, rng.uniform(0.1, 0.4) * height
                w, h = rng.uniform(0.15, 0.3) * unit, rng.uniform(0.15, 0.35) * unit
                box(x - 0.02 * unit, y - 0.02 * unit, x + w + 0.02 * unit, y + h + 0.02 * unit, shade(a, -0.4))
                box(x, y, x + w, y + h, b)
                if rng.random() < 0.5:
                    box(x + w * 0.48, y, x + w * 0.52, y + h, shade(a, -0.4))
        elif self.kind == "landscape":
            sky, ground = mix(a, (170, 210, 240), 0.7), mix(b, (110, 160, 90), 0.6)
            ramp = np.linspace(0, 1, height)[:, None, None]
            image[:] = np.rint(np.array(sky) + ramp * (255.0 - np.array(sky)) * 0.6).astype(np.uint8)
            x = np.linspace(0, width, 25)
            for level, colour in ((0.45, shade(ground, 0.35)), (0.62, ground)):
                swell = rng.uniform(0.02, 0.07) * unit * np.sin(x / unit * rng.uniform(2, 5) + rng.uniform(0, 6.283))
                line = np.stack([x, level * height + swell], axis=1)
                poly(np.concatenate([line, [[width, height], [0, height]]]), colour)
            poly(
                CIRCLE * rng.uniform(0.05, 0.09) * unit + (rng.uniform(0.1, 0.9) * width, 0.2 * height), (255, 244, 200)
            )
        return image
