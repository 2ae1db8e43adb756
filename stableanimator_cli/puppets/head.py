"""Shape and view of a head: a solid of elliptic slices, rotated by yaw, pitch and roll.

Heights on the head run from -1 (crown) to 1 (chin), longitudes from 0 (nose) over pi/2 (the person's left ear) to pi.
Face, hair and glasses are placed on the slices in 3D and projected orthographically, so every view is drawn alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stableanimator_cli.puppets.sample import Identity

Array = npt.NDArray[np.floating]

HALF_HEIGHT = 0.5
_GRID = np.sin(np.linspace(-math.pi / 2, math.pi / 2, 21))  # dense at crown and chin, where the outline bends


@dataclass(frozen=True, slots=True)
class Head:
    """Solid of one identity: half-widths and half-depths of its slices, in head heights."""

    identity: Identity

    @property
    def depth_ratio(self) -> float:
        """Depth of the skull relative to its width."""
        return 1.04

    def height(self, v: Array) -> Array:
        """y at heights ``v``; the chin may be longer or shorter than half a head."""
        return v * (HALF_HEIGHT + self.identity.chin * np.maximum(v, 0))

    def half_width(self, v: Array, extra: float = 0.0) -> Array:
        who = self.identity
        a = np.minimum(np.abs(v), 1.0)
        return (
            (1 - a**who.power) ** (1 / who.power) * (who.face_width + extra) * (1 - who.taper * np.maximum(v, 0) ** 1.6)
        )

    def half_depth(self, v: Array, extra: float = 0.0) -> Array:
        a = np.minimum(np.abs(v), 1.0)
        round_ = (1 - a**2.4) ** (1 / 2.4)
        return round_ * (self.identity.face_width * self.depth_ratio + extra) * (1 - 0.3 * np.maximum(v, 0) ** 1.6)

    def centre_depth(self, v: Array) -> Array:
        """Depth of a slice's centre: the jaw in front, the skull behind."""
        return np.where(v > 0, 0.10 * v, 0.06 * np.maximum(v, -1))

    def on_front(self, xy: Array, raised: float | Array = 0.0) -> Array:
        """Project face-plane points float[n,2] onto the front of the head, float[n,3], ``raised`` above it."""
        v = xy[:, 1] / HALF_HEIGHT
        width = np.maximum(self.half_width(v), 1e-3)
        across = np.clip(xy[:, 0] / width, -0.97, 0.97)
        out = np.empty((len(xy), 3))
        out[:, :2] = xy
        out[:, 2] = self.half_depth(v) * np.sqrt(1 - across**2) + self.centre_depth(v) + raised
        return out

    def surface(self, longitude: Array, v: Array, extra: float = 0.0) -> Array:
        """Points float[n,3] at longitudes and heights, ``extra`` above the skin."""
        y = self.height(v)
        y = np.where(v < 0, y * (1 + extra / HALF_HEIGHT), y)
        return np.stack(
            [
                self.half_width(v, extra) * np.sin(longitude),
                y,
                self.half_depth(v, extra) * np.cos(longitude) + self.centre_depth(v),
            ],
            axis=1,
        )


@lru_cache(maxsize=256)
def _slices(head: Head) -> tuple[Array, Array, Array, Array, Array]:
    """Half-width, y, half-depth, centre and bulge of the chin of slices down one side and up the other."""
    v = np.concatenate([_GRID, _GRID[::-1]])
    return head.half_width(v), head.height(v), head.half_depth(v), head.centre_depth(v), 0.22 * np.maximum(v, 0) ** 2


@lru_cache(maxsize=256)
def ear_distance(head: Head) -> float:
    """Distance of the ears from the middle."""
    return float(head.half_width(np.array([0.1]))[0])


class View:
    """Rotation of a head about ``centre``: ``yaw`` to the right of the image, ``pitch`` down, ``roll`` clockwise."""

    def __init__(self, head: Head, yaw: float, pitch: float, roll: float, centre: tuple[float, float]) -> None:
        self.head, self.yaw, self.pitch, self.roll = head, yaw, pitch, roll
        self.centre = np.asarray(centre, float)
        cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
        nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        self.matrix = (tilt @ turn @ nod).T
        self.facing = cy  # 1 from the front, 0 in profile, -1 from behind
        # Longitude of the outline of the turned slices (exact for ellipses of one aspect).
        self.limb = math.atan2(cy, head.depth_ratio * sy)

    def project(self, points: Array) -> Array:
        """Project points float[n,3] on the head to x, y and nearness."""
        seen = points @ self.matrix
        seen[:, :2] += self.centre
        return seen

    def outline(self) -> Array:
        """Silhouette of the bare head, float[42,2]."""
        wide, y, deep, middle, bulge = _slices(self.head)
        longitude = np.repeat([self.limb, self.limb - math.pi], len(_GRID))
        outline = np.stack([wide * np.sin(longitude), y, deep * np.cos(longitude) + middle], axis=1)
        # The chin is round: pitch moves points in front of the slice's centre further than the centre.
        outline[:, 1] += bulge * (math.sin(self.pitch) * max(self.facing, 0.0))
        return self.project(outline)[:, :2]

    def across(self, count: int, behind: bool = False) -> Array:
        """``count`` longitudes from the left to the right outline in the image, over the near or the far side."""
        share = math.pi / (count - 1) * np.arange(count)
        return self.limb - math.pi - share if behind else self.limb - math.pi + share

    def normals(self, points: Array) -> Array:
        """Degree to which the skin at points float[n,3] faces the viewer, -1 to 1."""
        head = self.head.identity.face_width
        lean = points * np.array([1.0, 0.45, 1.0]) - [0, 0, 0.02]
        length = np.sqrt(np.einsum("nk,nk->n", lean, lean))
        return lean @ self.matrix[:, 2] / np.maximum(length, 0.2 * head)
