"""Draw shirts, jackets, dresses and skirts with their patterns on a trunk of elliptic slices."""

from __future__ import annotations

import math

import numpy as np

from stableanimator_cli.puppets import canvas as c
from stableanimator_cli.puppets.head import Array
from stableanimator_cli.puppets.sample import RGB, Build, Clothes, Identity, shade
from stableanimator_cli.puppets.skeleton import CHIN, SIGN, Joints

# Slices of the trunk: fraction of the way from neck to hips, and half-depth; half-widths depend on the build.
_SLICES = np.array([0.0, 0.07, 0.16, 0.36, 0.62, 0.86, 1.10])
_DEPTHS = np.array([0.11, 0.17, 0.2, 0.215, 0.19, 0.205, 0.2])
_FINE = np.linspace(0, 1.1, 23)
_QUARTERS = np.linspace(0, 1, 5)
_STAR = np.stack([np.sin(np.arange(10) * math.pi / 5), -np.cos(np.arange(10) * math.pi / 5)], axis=1)
_STAR *= np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]
_HEART = np.array(
    [[0, 0.95], [-0.9, 0.05], [-0.95, -0.45], [-0.55, -0.8], [0, -0.45], [0.55, -0.8], [0.95, -0.45], [0.9, 0.05]]
)
_BOLT = np.array([[0.2, -1], [-0.6, 0.15], [-0.05, 0.15], [-0.25, 1], [0.6, -0.25], [0.05, -0.25]])
_SQUARE = np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]])
_LOGOS = {"disc": c.CIRCLE, "ring": c.CIRCLE, "star": _STAR, "heart": _HEART, "bolt": _BOLT, "square": _SQUARE}


def torso_widths(build: Build, yaw: float) -> tuple[Array, Array, Array]:
    """Projected half-widths, half-widths and half-depths of the fine slices, float[23] each."""
    waist = 0.5 * (build.shoulders + build.hips) * 0.86
    row = np.array(
        [
            0.13,
            build.shoulders * 0.9,
            build.shoulders * 1.02,
            build.shoulders * 0.97,
            waist,
            build.hips,
            build.hips * 1.02,
        ]
    )
    wide = np.interp(_FINE, _SLICES, row * (0.5 + 0.5 * build.girth))
    deep = np.interp(_FINE, _SLICES, _DEPTHS * build.girth)
    seen = np.sqrt((wide * math.cos(yaw)) ** 2 + (deep * math.sin(yaw)) ** 2)
    return seen, wide, deep


class _Trunk:
    """Points on the trunk. ``share`` is a fraction of the way from neck to hips."""

    def __init__(self, joints: Joints, widths: tuple[Array, Array, Array]) -> None:
        self.neck, self.hips = joints.spine[0, :2], joints.spine[1, :2]
        self.seen, self.wide, self.deep = widths
        self.yaw = joints.yaw
        down = self.hips - self.neck
        self.aside = np.array([down[1], -down[0]]) / (math.hypot(*down) or 1.0)

    def spine(self, share: Array) -> Array:
        return self.neck + np.outer(share, self.hips - self.neck)

    def side(self, share: Array, k: float, grow: float = 0.0) -> Array:
        """Points at ``k`` (-1 left outline, 1 right outline) of the projected width."""
        return self.spine(share) + np.outer((np.interp(share, _FINE, self.seen) + grow) * k, self.aside)

    def front(self, share: Array, across: Array) -> Array:
        """Points on the front at ``across`` head heights from its middle line, foreshortened by yaw."""
        wide, deep = np.interp(share, _FINE, self.wide), np.interp(share, _FINE, self.deep)
        k = np.clip(across / wide, -1, 1)
        x = k * wide * math.cos(self.yaw) + np.sqrt(1 - k * k) * deep * math.sin(self.yaw)
        return self.spine(share) + x[:, None] * self.aside

    def band(self, top: float, bottom: float, inset: float = 0.0) -> Array:
        share = top + (bottom - top) * _QUARTERS
        return np.concatenate([self.side(share, 1, -inset), self.side(share[::-1], -1, -inset)])


def draw_skirt(
    canvas: c.Canvas, build: Build, clothes: Clothes, joints: Joints, widths: tuple[Array, Array, Array], colour: RGB
) -> None:
    """Draw a skirt from the waist to just above the knees. Its hem follows the legs."""
    trunk = _Trunk(joints, widths)
    waist = np.array([0.72 if clothes.top != "dress" else 0.6])
    left, right = trunk.side(waist, -1)[0], trunk.side(waist, 1)[0]
    knees = [joints.leg[side][1, :2] for side in SIGN]
    hem_y = joints.spine[1, 1] + build.leg * 0.36
    spread = 0.2 + 0.12 * abs(math.cos(joints.yaw))
    low, high = min(k[0] for k in knees), max(k[0] for k in knees)
    hem_left = np.array([min(low - 0.12, joints.spine[1, 0] - spread * build.girth), hem_y])
    hem_right = np.array([max(high + 0.12, joints.spine[1, 0] + spread * build.girth), hem_y])
    middle = 0.5 * (hem_left + hem_right) + (0, 0.035)
    canvas.polygon(np.stack([left, right, hem_right, middle, hem_left]), colour, c.SKIRT, shade(colour, -0.38), 0.02)
    for k in (0.25, 0.5, 0.75):
        canvas.polylines(
            [np.stack([left + (right - left) * k, hem_left + (hem_right - hem_left) * k])], shade(colour, -0.2), 0.014
        )


def draw_top(
    canvas: c.Canvas, who: Identity, build: Build, clothes: Clothes, joints: Joints, widths: tuple[Array, Array, Array]
) -> None:
    """Draw the neck, the trunk and its garment."""
    trunk = _Trunk(joints, widths)
    facing = math.cos(joints.yaw)
    neck_half = 0.115 * build.girth
    top, chin, low = (trunk.neck + np.array([0, y]) for y in (CHIN - 0.16, CHIN + 0.03, 0.08))
    canvas.polygon(c.capsule(top, low, neck_half, neck_half * 1.1), who.skin, c.TORSO, shade(who.skin, -0.38), 0.018)
    canvas.polygon(c.capsule(top, chin, neck_half * 0.96, neck_half * 0.9), shade(who.skin, -0.2))

    end = 1.08 if clothes.top != "dress" else 0.8
    pelvis = clothes.bottom_colour if clothes.top != "dress" else clothes.colour
    if clothes.bottom != "skirt" and clothes.top != "dress":
        canvas.polygon(trunk.band(0.8, 1.1), pelvis, c.TORSO, shade(pelvis, -0.38), 0.018)
        end = 0.97
    if clothes.top == "dress":
        draw_skirt(canvas, build, clothes, joints, widths, clothes.colour)
    share = np.concatenate([np.linspace(0.0, 0.2, 6), np.linspace(0.28, end, 8)])
    shape = np.concatenate([trunk.side(share, 1), trunk.side(share[::-1], -1)])
    canvas.polygon(shape, clothes.colour, c.TORSO, shade(clothes.colour, -0.38), 0.024)
    _pattern(canvas, clothes, trunk, facing, end)
    _collar(canvas, who, clothes, trunk, facing)


def _pattern(canvas: c.Canvas, clothes: Clothes, trunk: _Trunk, facing: float, end: float) -> None:
    kind, second = clothes.top, clothes.second
    if kind == "stripes":
        edges = np.linspace(0.2, end - 0.02, 2 * clothes.count)
        for a, b in zip(edges[::2], edges[1::2], strict=True):
            canvas.polygon(trunk.band(a, b, 0.008), second)
    elif kind == "bands":
        canvas.polygon(trunk.band(0.42, 0.62, 0.008), second)
    elif kind == "yoke":
        canvas.polygon(trunk.band(0.06, 0.34, 0.008), second)
    elif kind == "dots":
        rows = np.linspace(0.26, end - 0.1, clothes.count)
        for n, row in enumerate(rows):
            for across in np.arange(-0.24, 0.3, 0.16) + 0.08 * (n % 2):
                k = across / 0.34
                if abs(k) < 0.9:
                    canvas.ellipse(trunk.side(np.array([row]), k)[0], 0.033, second)
    elif kind in ("jacket", "shirt", "hoodie") and facing > 0.1:
        rows = np.linspace(0.06, end, 6)
        if kind == "jacket":
            gap = np.linspace(0.1, 0.14, 6)
            canvas.polygon(np.concatenate([trunk.front(rows, gap), trunk.front(rows[::-1], -gap[::-1])]), second)
        else:
            canvas.polylines([trunk.front(rows, np.zeros(6))], shade(clothes.colour, -0.35), 0.018)
        if kind == "shirt":
            for point in trunk.front(np.linspace(0.3, end - 0.08, clothes.count), np.zeros(clothes.count)):
                canvas.ellipse(point, 0.024, second)
        if kind == "hoodie":
            pocket = trunk.front(np.array([0.66, 0.66, 0.86, 0.86]), np.array([-0.12, 0.12, 0.18, -0.18]))
            canvas.polygon(pocket, shade(clothes.colour, -0.12), 0, shade(clothes.colour, -0.35), 0.014)
    if kind in ("logo", "dress", "hoodie") and facing > 0.2 and (kind == "logo" or clothes.count == 3):
        plane = _LOGOS[clothes.logo] * (0.13 if kind == "logo" else 0.08)
        length = math.hypot(*(trunk.hips - trunk.neck)) or 1.0
        canvas.polygon(trunk.front(0.44 + plane[:, 1] / length, plane[:, 0]), second)
        if clothes.logo == "ring":
            canvas.polygon(trunk.front(0.44 + plane[:, 1] * 0.55 / length, plane[:, 0] * 0.55), clothes.colour)


def _collar(canvas: c.Canvas, who: Identity, clothes: Clothes, trunk: _Trunk, facing: float) -> None:
    rows = np.array([0.0, 0.05, 0.15])
    half = np.array([0.12, 0.1, 0.0])
    if clothes.top == "hoodie":
        rim = np.concatenate([trunk.side(np.array([0.0, 0.14]), 0.85), trunk.side(np.array([0.14, 0.0]), -0.85)])
        canvas.polygon(rim, shade(clothes.colour, -0.14), c.TORSO, shade(clothes.colour, -0.4), 0.016)
    elif facing > 0.15:
        neckline = np.concatenate([trunk.front(rows, half), trunk.front(rows[::-1], -half[::-1])])
        canvas.polygon(neckline, shade(who.skin, -0.08))
        if clothes.top in ("shirt", "jacket"):
            for side in (-1.0, 1.0):
                flap = trunk.front(np.array([0.0, 0.16, 0.24, 0.08]), side * np.array([0.1, 0.0, 0.1, 0.17]))
                canvas.polygon(flap, shade(clothes.colour, 0.25), 0, shade(clothes.colour, -0.35), 0.012)
    else:
        canvas.polylines([trunk.side(np.array([0.01]), k) for k in (-1, 1)], shade(clothes.colour, -0.3), 0.02)
