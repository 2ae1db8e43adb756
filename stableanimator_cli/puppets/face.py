"""Draw faces (eyes, brows, nose, mouth, beard, glasses) on a turned head, with their 68 landmarks.

Landmarks are numbered like in iBUG 300-W: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67, each from the
left of the image for a face seen from the front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from stableanimator_cli.puppets import canvas as c
from stableanimator_cli.puppets.head import HALF_HEIGHT, Array, Head, View, ear_distance
from stableanimator_cli.puppets.sample import RGB, Identity, derive_rng, mix, shade

_SIDES = (-1.0, 1.0)  # the left eye in the image first: the person's right
_CLOCK = math.pi - np.linspace(0, 2 * math.pi, 12, endpoint=False)
_EYE = np.stack([np.cos(_CLOCK), -np.sin(_CLOCK)], axis=1)  # from the left corner over the top
_ROUND = np.stack([np.cos(_CLOCK), np.sin(_CLOCK)], axis=1)
_RING = c.CIRCLE[::2]
_BROW = np.linspace(-1, 1, 5)
_MOUTH_T = np.linspace(-1, 1, 7)[1:-1]
_INNER_T, _ENDS = np.array([-0.5, 0.0, 0.5]), np.array([-1.0, 1.0])
_NINE = np.linspace(0, 1, 9)
_NOSE_RISE, _BASE_RISE = np.linspace(0.15, 1.0, 4) * 1.5, np.array([0.1, 0.3, 0.55, 0.3, 0.1])
_DARK: RGB = (38, 26, 28)
MIN_VISIBILITY = 0.08  # minimum for a landmark that faces the viewer


@dataclass(frozen=True, slots=True)
class FaceView:
    """A drawn face: ``points`` float[68,2], and ``visibility`` float[68], how much each faces the viewer.

    ``ears`` float[2,2] (the person's right, left) and ``ears_visibility`` float[2]. Canvas units.
    """

    points: Array
    visibility: Array
    ears: Array
    ears_visibility: Array


def eye_box(who: Identity) -> tuple[float, float, float, float]:
    """Centre x, centre y, half-width and half-height of an eye on the face plane."""
    return who.eye_spacing, who.eye_height * HALF_HEIGHT, who.eye_width, who.eye_width * who.eye_aspect


def _eyes(who: Identity, blink: float) -> tuple[list[Array], list[Array], list[Array]]:
    """Outlines, irises and pupils on the face plane."""
    ex, ey, ew, eh = eye_box(who)
    lid = eh * (1 - 0.94 * blink)
    radius = who.iris_size * max(ew, min(eh, ew * 1.1))
    outlines, irises, pupils = [], [], []
    for side in _SIDES:
        middle = np.array([side * ex, ey])
        shape = _EYE * (ew, lid)
        shape[:, 1] -= who.eye_tilt * shape[:, 0] * side * 0.5
        outlines.append(shape + middle)
        disc = _ROUND * radius * (0.92, 1.0)
        disc[:, 0] = np.clip(disc[:, 0], -ew * 0.97, ew * 0.97)
        limit = lid * np.sqrt(np.maximum(0, 1 - (disc[:, 0] / ew) ** 2))
        disc[:, 1] = np.clip(disc[:, 1], -limit, limit)
        irises.append(disc + middle)
        pupil = _ROUND * radius * 0.5
        pupil[:, 1] = np.clip(pupil[:, 1], -lid * 0.9, lid * 0.9)
        pupils.append(pupil + middle)
    return outlines, irises, pupils


@lru_cache(maxsize=256)
def _brows(who: Identity) -> list[Array]:
    ex, ey, ew, eh = eye_box(who)
    top = ey - eh - who.brow_gap
    rows = []
    for side in _SIDES:
        rise = -0.035 * (1 - _BROW**2) - who.brow_tilt * 0.09 * _BROW * side
        rows.append(np.stack([side * ex * 1.04 + _BROW * ew * 1.15, top + rise], axis=1))
    return rows


def _mouth(who: Identity, gape: float, smile: float) -> tuple[Array, Array]:
    """Outer float[12,2] and inner float[8,2] lips on the face plane, in the order of the scheme."""
    half, lip = who.mouth_width * (1 + 0.12 * smile), who.lip_thickness
    y = who.mouth_height * HALF_HEIGHT
    opening = 0.085 * gape
    bow = -0.09 * (smile - 0.2)

    def row(t: Array, dy: float, reach: float) -> Array:
        arch = np.sqrt(np.maximum(0, 1 - t**2))
        return np.stack([t * reach, y + bow * t**2 * 0.8 + dy * arch], axis=1)

    ends = _ENDS
    corners, inner_corners = row(ends, 0, half), row(ends, 0, half * 0.82)
    t, u = _MOUTH_T, _INNER_T
    top, bottom = row(t, -lip - 0.35 * opening, half), row(t[::-1], lip * 1.25 + opening, half)
    in_top, in_bottom = row(u, -0.35 * opening - 0.002, half * 0.82), row(u[::-1], opening + 0.002, half * 0.82)
    outer = np.concatenate([corners[:1], top, corners[1:], bottom])
    inner = np.concatenate([inner_corners[:1], in_top, inner_corners[1:], in_bottom])
    return outer, inner


@lru_cache(maxsize=256)
def _nose_rows(who: Identity) -> tuple[Array, Array]:
    """Bridge float[4,2] with tip last, and base float[5,2], on the face plane."""
    _, ey, _, eh = eye_box(who)
    tip = (0.4 + 0.3 * (who.nose == "long") * 0.5) * HALF_HEIGHT
    width = who.nose_size * (0.95 if who.nose == "wide" else 0.62)
    bridge = np.stack([np.zeros(4), np.linspace(ey - 0.3 * eh, tip, 4)], axis=1)
    base = np.stack([np.linspace(-width, width, 5), tip + 0.035 - 0.02 * np.abs(np.linspace(-1, 1, 5))], axis=1)
    return bridge, base


@lru_cache(maxsize=256)
def _jaw(head: Head) -> Array:
    t = np.linspace(-1, 1, 17)
    v = np.cos(np.abs(t) * math.pi / 2 * 0.95)
    points = head.surface(np.sign(t) * 1.43, v * 0.985)
    points[8, 0] = 0
    return points


def draw_ear(canvas: c.Canvas, view: View, side: float) -> None:
    """Draw one ear; ``side`` -1 is the person's right."""
    who = view.head.identity
    x = ear_distance(view.head) * side
    size = who.ear_size
    plane = _RING * (size * 0.75, size)
    # Ears are at an angle to the head: narrow from the front, round in profile.
    points = np.stack(
        [x + side * (0.02 + 0.55 * (plane[:, 0] * -0.6 + 0.02)), plane[:, 1] + 0.09, plane[:, 0] - 0.03], axis=1
    )
    seen = view.project(points)[:, :2]
    canvas.polygon(seen, mix(who.skin, (200, 90, 70), 0.12), c.HEAD, shade(who.skin, -0.35), 0.014 * canvas.detail)
    if who.earrings:
        canvas.ellipse(view.project(np.array([[x * 1.06, 0.09 + size * 1.15, -0.03]]))[0, :2], 0.026, (238, 200, 70))


def _beard(canvas: c.Canvas, view: View) -> None:
    who = view.head.identity
    colour = mix(who.skin, who.hair_colour, 0.34) if who.beard == "stubble" else shade(who.hair_colour, -0.12)
    if who.beard in ("full", "stubble"):
        longitude = np.clip(view.across(15), -1.5, 1.5)
        near = np.abs(longitude)
        top = np.interp(near, [0, 0.28, 0.55, 1.2, 1.5], [0.76, 0.72, 0.5, 0.36, 0.05])
        if who.beard == "full":
            top = np.maximum(top, np.where(near < 0.4, who.mouth_height + 0.1, 0))
        extra = 0.035 if who.beard == "full" else 0.0
        edge = _NINE
        right = view.head.surface(np.full(9, longitude[-1]), top[-1] + (1 - top[-1]) * edge, extra)
        left = view.head.surface(np.full(9, longitude[0]), top[0] + (1 - top[0]) * edge[::-1], extra)
        for rim in (right, left):
            rim[:, 1] += extra * np.clip((rim[:, 1] - 0.1) * 3, 0, 1)
        shape = np.concatenate([view.head.surface(longitude, top, extra), right, left])
        shape[:, 1] += 0.22 * np.clip(shape[:, 1] * 2, 0, 1) ** 2 * math.sin(view.pitch) * max(view.facing, 0) * 0.6
        canvas.polygon(view.project(shape)[:, :2], colour)
    elif who.beard == "goatee" and view.facing > 0.15:
        y = (who.mouth_height + 0.14) * HALF_HEIGHT
        low = HALF_HEIGHT + who.chin + 0.02
        xy = np.array([[-0.09, y], [0.09, y], [0.075, low - 0.04], [0, low], [-0.075, low - 0.04]])
        canvas.polygon(view.project(view.head.on_front(xy, 0.02))[:, :2], colour)
    if who.beard in ("full", "moustache") and view.facing > 0.05:
        w, y = who.mouth_width * 1.15 + 0.02, who.mouth_height * HALF_HEIGHT - who.lip_thickness
        xy = np.array(
            [[-w, y + 0.03], [-w * 0.6, y - 0.045], [0, y - 0.055], [w * 0.6, y - 0.045], [w, y + 0.03], [0, y]]
        )
        canvas.polygon(view.project(view.head.on_front(xy, 0.03))[:, :2], colour)


def draw_face(canvas: c.Canvas, view: View, gape: float, smile: float, blink: float) -> FaceView:
    """Draw everything of the face below the hair onto a drawn head; return its landmarks.

    ``gape``, ``smile`` and ``blink`` are 0 to 1. Brows and glasses are drawn over the hair: ``draw_brows``.
    """
    head, who = view.head, view.head.identity
    outlines, irises, pupils = _eyes(who, blink)
    brows = _brows(who)
    outer, inner = _mouth(who, gape, smile)
    bridge, base = _nose_rows(who)
    flat = [*outlines, *irises, *pupils, *brows, outer, inner, bridge, base]
    sizes = np.cumsum([0] + [len(part) for part in flat])
    solid = head.on_front(np.concatenate(flat))
    solid[sizes[10] : sizes[11], 2] += _NOSE_RISE * who.nose_size
    solid[sizes[11] : sizes[12], 2] += _BASE_RISE * who.nose_size
    seen, normal = view.project(solid), view.normals(solid)
    parts = [seen[a:b, :2] for a, b in pairwise(sizes)]
    turned = [normal[a:b] for a, b in pairwise(sizes)]

    if view.facing > -0.2:
        _marks(canvas, view)
        _beard(canvas, view)
        if turned[8].max() > MIN_VISIBILITY:
            _draw_mouth(canvas, who, parts[8], parts[9], gape)
        if turned[10].max() > MIN_VISIBILITY:
            _draw_nose(canvas, view, parts[10], parts[11])
        for n in range(2):
            # The far eye is drawn while most of it faces the viewer.
            if turned[n].mean() > 0.1:
                _draw_eye(canvas, who, parts[n], parts[2 + n], parts[4 + n], blink)

    jaw = _jaw(head).copy()
    jaw_normal = view.normals(jaw)
    jaw[:, 1] += 0.22 * np.clip(jaw[:, 1] * 2, 0, 1) ** 2 * math.sin(view.pitch) * max(view.facing, 0.0)
    six = [0, 2, 4, 6, 8, 10]
    points = [view.project(jaw)[:, :2], parts[6], parts[7], parts[10], parts[11]]
    points += [parts[0][six], parts[1][six], parts[8], parts[9]]
    facing = [np.where(jaw_normal > -0.45, 1.0, -1.0) if view.facing > -0.1 else np.full(17, -1.0)]
    facing += [turned[6], turned[7], turned[10], turned[11], turned[0][six], turned[1][six], turned[8], turned[9]]
    x = ear_distance(head)
    ears = np.array([[-x - 0.02, 0.09, -0.03], [x + 0.02, 0.09, -0.03]])
    nearness = view.project(ears)
    return FaceView(np.concatenate(points), np.concatenate(facing), nearness[:, :2], nearness[:, 2])


@lru_cache(maxsize=256)
def _spots(head: Head) -> tuple[Array, tuple[float, ...]]:
    """Positions of moles and freckles, float[n,3], and their sizes."""
    who = head.identity
    dots, sizes = list(who.moles), [0.016] * len(who.moles)
    rng = derive_rng("freckles", who.number)
    for n in range(who.freckles):
        side = 1 if n % 2 else -1
        dots.append((side * (who.eye_spacing * 0.55 + rng.uniform(0, 0.15)), 0.36 + rng.uniform(0, 0.14)))
        sizes.append(0.011)
    return head.on_front(np.array(dots).reshape(-1, 2) * (1, HALF_HEIGHT)), tuple(sizes)


def _marks(canvas: c.Canvas, view: View) -> None:
    """Blush, freckles and moles."""
    head, who = view.head, view.head.identity
    if who.blush:
        tint = mix(who.skin, (236, 96, 96), who.blush)
        for side in _SIDES:
            spot = head.on_front(_RING * (0.065, 0.042) + (side * (who.eye_spacing + 0.06), 0.44 * HALF_HEIGHT + 0.05))
            if view.normals(spot).min() > 0.1:
                canvas.polygon(view.project(spot)[:, :2], tint)
    spots, sizes = _spots(head)
    if sizes:
        normal, seen = view.normals(spots), view.project(spots)
        for n, size in enumerate(sizes):
            if normal[n] > 0.15:
                canvas.ellipse(
                    seen[n, :2], size * canvas.detail, mix(who.skin, (70, 30, 16), 0.75 if size > 0.012 else 0.45)
                )


def _draw_mouth(canvas: c.Canvas, who: Identity, outer: Array, inner: Array, gape: float) -> None:
    canvas.polygon(outer, who.lips)
    if gape > 0.12:
        canvas.polygon(inner, (96, 22, 30))
        if gape > 0.35:
            teeth = np.concatenate([inner[:5], (inner[1:4] * 0.62 + inner[7:4:-1] * 0.38)[::-1]])
            canvas.polygon(teeth, (250, 248, 244))
    else:
        canvas.polylines([inner[[0, 1, 2, 3, 4]]], shade(who.lips, -0.5), 0.014 * canvas.detail)


def _draw_nose(canvas: c.Canvas, view: View, bridge: Array, base: Array) -> None:
    """A shadow in the person's style from the front, an outline if the head is turned."""
    who = view.head.identity
    dark = mix(who.skin, (110, 44, 30), 0.5)
    if abs(math.sin(view.yaw)) > 0.3:
        near = base[4 if math.sin(view.yaw) > 0 else 0] * 0.5 + base[2] * 0.5
        canvas.polygon(np.stack([bridge[0], bridge[1], bridge[2], bridge[3], base[2], near]), who.skin)
        canvas.polylines([np.stack([bridge[1], bridge[2], bridge[3], base[2]])], dark, 0.015 * canvas.detail)
        return
    if who.nose == "button":
        canvas.polygon(
            c.CIRCLE[::2] * (who.nose_size * 0.5, who.nose_size * 0.4) + bridge[3], mix(who.skin, (226, 96, 84), 0.45)
        )
    elif who.nose == "line":
        canvas.polylines([np.stack([bridge[2], base[3], base[2]])], dark, 0.016 * canvas.detail)
    elif who.nose == "wide":
        canvas.polylines([base], dark, 0.02 * canvas.detail)
    else:
        canvas.polygon(np.stack([bridge[0], base[0], base[2], base[4]]), mix(who.skin, (150, 70, 50), 0.2))
        canvas.polylines([base[1:4]], dark, 0.016 * canvas.detail)


def _draw_eye(canvas: c.Canvas, who: Identity, outline: Array, iris: Array, pupil: Array, blink: float) -> None:
    if blink < 0.85:
        canvas.polygon(outline, (252, 252, 252))
        canvas.polygon(iris, who.iris)
        canvas.polygon(pupil, (16, 12, 16))
        if blink < 0.4:
            centre = iris.mean(axis=0)
            light = centre + (iris[3] - centre) * 0.45
            canvas.ellipse(light, 0.022 * who.eye_width / 0.1, (255, 255, 255))
    canvas.polylines([outline[:7]], _DARK, who.lashes + 0.006)


def _brow_colour(who: Identity) -> RGB:
    """Darker than the hair, or if that resembles the skin, darker or lighter than the skin."""
    colour = shade(who.hair_colour, -0.3)
    if np.abs(np.subtract(colour, who.skin)).max() < 70:
        return shade(who.skin, -0.6 if sum(who.skin) > 300 else 0.55)
    return colour


def draw_brows(canvas: c.Canvas, view: View, covered: bool) -> None:
    """Draw brows and glasses over the hair, so that a fringe hides neither. ``covered``: hair covers the ears."""
    head, who = view.head, view.head.identity
    if view.facing < -0.15:
        return
    colour = _brow_colour(who) if canvas.detail > 1 else shade(who.hair_colour, -0.3)
    for brow in _brows(who):
        solid = head.on_front(brow, 0.01)
        if view.normals(solid).mean() > 0.12:
            canvas.polylines([view.project(solid)[:, :2]], colour, who.brow_thickness)
    if who.glasses == "none":
        return
    ex, ey, ew, eh = eye_box(who)
    reach = (max(ew, 0.1) * 1.25, max(min(eh, 0.13), 0.09) * 1.2)
    bend = _RING if who.glasses == "round" else np.sign(_RING) * np.abs(_RING) ** 0.35
    inner = []
    for side in _SIDES:
        rim = head.on_front(np.array([[side * ex, ey]]), 0.05) + np.concatenate(
            [bend * reach, -0.5 * side * bend[:, :1] * reach[0]], axis=1
        )
        if view.normals(rim).mean() > 0.0:
            canvas.polylines([view.project(rim)[:, :2]], who.glasses_colour, 0.024 * canvas.detail, closed=True)
            inner.append(view.project(head.on_front(np.array([[side * (ex - reach[0]), ey]]), 0.06))[0, :2])
            # The temple runs back to the ear, visible if that side of the head is.
            ear = np.array([[side * ear_distance(head), ey + 0.02, 0.0]])
            if view.normals(ear)[0] > 0.1:
                hinge = rim[np.argmax(rim[:, 0] * side)][None]
                if covered:  # the temple is under the hair
                    ear = hinge + (ear - hinge) * 0.35
                canvas.polylines([view.project(np.concatenate([hinge, ear]))[:, :2]], who.glasses_colour, 0.02)
    if len(inner) == 2:
        canvas.polylines([np.stack(inner)], who.glasses_colour, 0.02)
