"""Draw hair: a cap over the skull, and buns, tails or a crest.

A style is a hairline (height by longitude) with a thickness. The near half of the cap is drawn over the face, the far
half behind the person, so one curve gives fringe, temples and nape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from stableanimator_cli.puppets import canvas as c
from stableanimator_cli.puppets.face import eye_box
from stableanimator_cli.puppets.head import HALF_HEIGHT, Array, Head, View
from stableanimator_cli.puppets.sample import Identity, mix, shade


@dataclass(frozen=True, slots=True)
class HairStyle:
    """``line``: degrees from the nose and heights of the hairline. ``wave``: size and number of its teeth.

    ``bumps``: size and number of those of the outline. ``spread``: how much hair widens below the ears.
    """

    line: tuple[tuple[float, float], ...]
    thick: float
    wave: tuple[float, int] = (0.0, 1)
    bumps: tuple[float, int] = (0.0, 1)
    spread: float = 0.0
    slant: float = 0.0


_EDGE = np.sin(np.linspace(0, math.pi / 2, 14))  # dense at the crown

_CROP = ((0, -0.52), (38, -0.52), (60, -0.36), (74, 0.0), (86, 0.02), (104, -0.02), (122, 0.4), (180, 0.62))
_TIED = ((0, -0.5), (38, -0.5), (62, -0.3), (80, 0.0), (100, 0.05), (130, 0.4), (180, 0.55))
_FALL = ((0, -0.52), (36, -0.46), (52, -0.1), (62, 0.9), (80, 1.0), (180, 1.0))
_LONG = ((0, -0.5), (34, -0.46), (54, -0.1), (66, 1.5), (84, 1.9), (180, 2.05))
_BOWL = ((0, -0.3), (56, -0.3), (66, 0.2), (78, 0.46), (110, 0.5), (180, 0.62))

STYLES: dict[str, HairStyle | None] = {
    "bald": None,
    "buzz": HairStyle(_CROP, 0.012),
    "short": HairStyle(_CROP, 0.06, wave=(0.05, 5)),
    "parting": HairStyle(_CROP, 0.085, slant=0.34),
    "fringe": HairStyle(_BOWL, 0.085, wave=(0.03, 7)),
    "spiky": HairStyle(_CROP, 0.07, wave=(0.1, 6), bumps=(0.15, 11)),
    "bob": HairStyle(_FALL, 0.09, spread=0.12, slant=0.1),
    "long": HairStyle(_LONG, 0.075, spread=0.05),
    "curly": HairStyle(
        ((0, -0.42), (40, -0.42), (60, -0.2), (72, 0.35), (180, 0.72)), 0.2, wave=(0.06, 5), bumps=(0.05, 15)
    ),
    "bun": HairStyle(_TIED, 0.045),
    "ponytail": HairStyle(_TIED, 0.05, slant=0.12),
    "twintails": HairStyle(_BOWL, 0.055, wave=(0.03, 5)),
    "mohawk": HairStyle(_CROP, 0.01),
    "wavy": HairStyle(_LONG, 0.13, bumps=(0.035, 13), spread=0.16, slant=0.16),
}


def _hairline(who: Identity, style: HairStyle, longitude: Array) -> Array:
    wrapped = (longitude + math.pi) % (2 * math.pi) - math.pi
    degrees = np.degrees(np.abs(wrapped))
    knots = np.array(style.line)
    v = np.interp(degrees, knots[:, 0], knots[:, 1])
    front = np.clip((62 - degrees) / 20, 0, 1)
    v = v + front * style.slant * (np.sin(wrapped * 1.3 + (0.5 if who.hair_phase > math.pi else -0.5)) * 0.8)
    size, count = style.wave
    v = v + front * size * np.abs(((wrapped * count / 1.6 + who.hair_phase) % 2) - 1)
    _, ey, _, eh = eye_box(who)
    highest = (ey - eh) / HALF_HEIGHT - 0.06  # hair never covers the eyes
    return np.where(degrees < 50, np.minimum(v, highest), v)


def _solid(head: Head, style: HairStyle, longitude: Array, v: Array) -> Array:
    """Points on the hair's surface. Below the ears hair hangs down instead of following the jaw."""
    who = head.identity
    if style.thick < 0.02:  # short hair follows the head
        return head.surface(longitude, np.minimum(v, 0.97), style.thick)
    upper = head.surface(longitude, np.minimum(v, 0.0), style.thick)
    drop = np.maximum(v, 0.0)
    wide = (who.face_width + style.thick) * (1 + style.spread * drop - 0.06 * drop * (style.spread == 0))
    upper[:, 0] = np.where(v > 0, wide * np.sin(longitude), upper[:, 0])
    upper[:, 1] = np.where(v > 0, v * HALF_HEIGHT, upper[:, 1])
    deep = wide * head.depth_ratio * np.cos(longitude)
    upper[:, 2] = np.where(v > 0, np.where(deep > 0, deep * np.clip(1 - 0.5 * drop, 0, 1), deep), upper[:, 2])
    return upper


@lru_cache(maxsize=256)
def _strands(head: Head) -> Array:
    """Strands from the crown to the hairline, float[n,4,3], which make the rotation of the head visible."""
    who, style = head.identity, STYLES[head.identity.hair]
    if style is None:
        return np.zeros((0, 4, 3))
    longitude = np.arange(0, 6.283, 0.6) + who.hair_phase % 0.6
    line = _hairline(who, style, longitude) - 0.12
    v = -0.86 + (line[:, None] + 0.86) * np.linspace(0, 1, 4)
    return _solid(head, style, np.repeat(longitude, 4), v.ravel()).reshape(-1, 4, 3)


def _cap(view: View, style: HairStyle, behind: bool) -> Array:
    """The near or far half of the cap as a polygon float[n,2]."""
    who = view.head.identity
    longitude = view.across(33, behind)
    line = _hairline(who, style, longitude)
    left = -1 + (line[0] + 1) * (1 - _EDGE)
    right = -1 + (line[-1] + 1) * (1 - _EDGE[::-1])
    around = np.concatenate([np.full(14, longitude[0]), np.full(14, longitude[-1]), longitude[::-1]])
    solid = _solid(view.head, style, around, np.concatenate([left, right, line[::-1]]))
    size, count = style.bumps
    shape = view.project(solid)[:, :2]
    if size:
        rim = shape[:28]
        share = np.linspace(0, 1, 56)
        fine = np.stack([np.interp(share * 27, np.arange(28), rim[:, k]) for k in (0, 1)], axis=1)
        centre = view.centre
        beat = np.abs(((share * count + 0.5) % 1) * 2 - 1)
        if who.hair != "spiky":
            beat = np.sqrt(np.maximum(0, 1 - beat**2))
        else:
            beat = beat * np.clip(np.minimum(share, 1 - share) * 6, 0, 1)
        away = fine - centre
        shape = np.concatenate(
            [fine + away / np.linalg.norm(away, axis=1, keepdims=True) * (size * beat)[:, None], shape[28:]]
        )
    return shape


def _tail(canvas: c.Canvas, view: View, path: Array, radius: float, part: int) -> None:
    who = view.head.identity
    seen = view.project(path)[:, :2]
    edge = shade(who.hair_colour, -0.35)
    canvas.polylines([seen], edge, radius * 2 + 0.03)
    canvas.polylines([seen], who.hair_colour, radius * 2)
    canvas.label_lines([seen], radius * 2, part)
    canvas.ellipse(seen[0], radius * 0.7, mix(who.hair_colour, (230, 60, 80), 0.7))


def _extras(canvas: c.Canvas, view: View, behind: bool) -> None:
    """Draw bun, tails or crest if they are on the near side, or on the far side (``behind``)."""
    who = view.head.identity
    part = c.HAIR_BACK if behind else c.HAIR
    if who.hair == "bun":
        centre = np.array([[0, -0.50, -0.30]])
        seen = view.project(centre)[0]
        if (seen[2] < 0) == behind:
            canvas.polygon(c.CIRCLE * 0.2 + seen[:2], who.hair_colour, part, shade(who.hair_colour, -0.35))
            canvas.polylines([c.CIRCLE[6:14] * 0.11 + seen[:2]], shade(who.hair_colour, -0.3), 0.018)
    elif who.hair == "ponytail":
        path = np.array([[0, -0.3, -0.50], [0, -0.25, -0.68], [0, 0.0, -0.78], [0.0, 0.3, -0.76], [0.02, 0.62, -0.66]])
        if (view.project(path)[2, 2] < 0) == behind:
            _tail(canvas, view, path, 0.11, part)
    elif who.hair == "twintails":
        for side in (-1, 1):
            x = side * (who.face_width + 0.04)
            path = np.array(
                [
                    [x, -0.22, -0.1],
                    [x + side * 0.14, -0.1, -0.12],
                    [x + side * 0.2, 0.2, -0.14],
                    [x + side * 0.16, 0.56, -0.12],
                ]
            )
            if (view.project(path)[2, 2] < 0.02) == behind:
                _tail(canvas, view, path, 0.1, part)
    elif who.hair == "mohawk":
        _crest(canvas, view, behind)


def _crest(canvas: c.Canvas, view: View, behind: bool) -> None:
    """Draw the tufts of a mohawk on the near or far side of the head."""
    who = view.head.identity
    angle = np.linspace(-0.62, 1.95, 10)  # from the forehead over the crown to the nape
    high = np.where(np.arange(10) % 2, 0.72, 0.62)
    rows = [
        view.project(np.stack([np.full(10, x), -np.cos(angle) * h, -np.sin(angle) * h * 0.92 - 0.04], axis=1))
        for x, h in ((-0.07, 0.46), (-0.035, high), (0.035, high), (0.07, 0.46))
    ]
    edge, part = shade(who.hair_colour, -0.35), c.HAIR_BACK if behind else c.HAIR
    tufts = [n for n in range(9) if (rows[0][n, 2] + rows[3][n + 1, 2] < 0) == behind]
    for n in sorted(tufts, key=lambda k: rows[0][k, 2] + rows[0][k + 1, 2]):
        corners = np.concatenate([row[n : n + 2, :2] for row in rows]).astype(np.float32)
        canvas.polygon(
            np.asarray(cv2.convexHull(corners)[:, 0], float), who.hair_colour, part, edge, 0.012 * canvas.detail
        )


def covers_ears(who: Identity) -> bool:
    """Whether the hair covers the ears."""
    style = STYLES[who.hair]
    return style is not None and float(np.interp(90, *np.array(style.line).T)) > 0.15


def draw_back(canvas: c.Canvas, view: View) -> None:
    """Draw the far half of the hair, behind the person."""
    who, style = view.head.identity, STYLES[view.head.identity.hair]
    if style is None:
        return
    if who.hair not in ("buzz", "mohawk"):
        dark = shade(who.hair_colour, -0.22)
        canvas.polygon(_cap(view, style, True), dark, c.HAIR_BACK, shade(who.hair_colour, -0.45), 0.016 * canvas.detail)
    _extras(canvas, view, True)


def draw_front(canvas: c.Canvas, view: View) -> None:
    """Draw the near half of the hair, over the head."""
    who, style = view.head.identity, STYLES[view.head.identity.hair]
    if style is None:
        return
    colour = (
        mix(who.skin, who.hair_colour, 0.62 if who.hair == "buzz" else 0.3) if style.thick < 0.02 else who.hair_colour
    )
    edge = None if style.thick < 0.02 else shade(who.hair_colour, -0.4)
    canvas.polygon(_cap(view, style, False), colour, c.HAIR, edge, 0.016 * canvas.detail)
    if style.thick > 0.02:
        paths = _strands(view.head)
        seen = view.project(paths.reshape(-1, 3)).reshape(paths.shape)
        strands = list(seen[seen[:, :, 2].min(axis=1) > 0.04, :, :2])[:: 1 if canvas.detail == 1 else 2]
        if strands:
            canvas.polylines(
                strands, shade(who.hair_colour, 0.2 if sum(who.hair_colour) < 200 else -0.18), 0.014 * canvas.detail
            )
    _extras(canvas, view, False)
