"""A canvas in head heights: an antialiased image, and a label map of the body part on top of each pixel.

Small images are supersampled; coordinates are fixed-point (1/16 of a pixel). The label map has the same short side for
every image size, so that visibility does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from stableanimator_cli.puppets.sample import RGB

Points = npt.NDArray[np.floating]

FIXED_POINT_BITS = 4
_ONE = 1 << FIXED_POINT_BITS
LABEL_MAP_SIDE = 192
MIN_DRAWN_SIDE = 256

# Values of the label map: person * PARTS + part, 0 for no person.
HAIR_BACK, TORSO, HEAD, HAIR = 1, 2, 3, 4
ARM = {"right": (5, 6, 7), "left": (8, 9, 10)}  # upper arm, forearm, hand
LEG = {"right": (11, 12), "left": (13, 14)}  # leg, foot
SKIRT = 15
PARTS = 16

_TURN = np.linspace(0, 2 * math.pi, 24, endpoint=False)
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_BENT = np.linspace(-math.pi / 2, math.pi / 2, 7)
_HALF = np.stack([np.cos(_BENT), np.sin(_BENT)], axis=1)  # the round end towards x


def capsule(a: Points, b: Points, ra: float, rb: float) -> Points:
    """Outline float[14,2] of a limb from ``a`` to ``b`` with round ends of radius ``ra`` and ``rb``."""
    dx, dy = float(b[0] - a[0]), float(b[1] - a[1])
    length = math.hypot(dx, dy) or 1.0
    along = np.array([[dx, dy], [-dy, dx]]) / length
    half = _HALF @ along
    return np.concatenate([b + half * rb, a - half * ra])


class Canvas:
    """Draw into ``image`` and ``labels`` in the coordinates of the current person (``set_transform``).

    ``detail`` multiplies the width of thin strokes within faces and hair.
    """

    def __init__(self, size: tuple[int, int], backdrop: np.ndarray, factor: int, detail: float = 1.0) -> None:
        width, height = size
        self.size = size
        self.factor, self.detail = factor, detail
        self.image = backdrop
        ratio = LABEL_MAP_SIDE / min(size)
        self.labels = np.zeros((max(1, round(height * ratio)), max(1, round(width * ratio))), np.uint8)
        self._label_ratio = np.array([self.labels.shape[1] / width, self.labels.shape[0] / height])
        self.set_transform(1.0, (0.0, 0.0), 0)

    def set_transform(self, scale: float, origin: tuple[float, float], person: int) -> None:
        """Set the unit to ``scale`` output pixels and (0, 0) to ``origin``, relative to the image's top left corner.

        Labels belong to ``person``. The corner is half a pixel off the centre of pixel (0, 0): layouts are relative to
        corners, so that they are equal at every size; keypoints are relative to pixel centres, as elsewhere.
        """
        self.scale, self.origin, self._base = scale, np.asarray(origin, float) - 0.5, person * PARTS
        self._k = scale * self.factor * _ONE
        # cv2 has pixel centres at integers: a supersampled image is shifted by half of the extra pixels.
        self._o = ((self.origin + 0.5) * self.factor - 0.5) * _ONE
        self._lk = scale * self._label_ratio * _ONE
        self._lo = ((self.origin + 0.5) * self._label_ratio - 0.5) * _ONE

    def to_pixels(self, points: Points) -> Points:
        """Convert units to output pixels."""
        return points * self.scale + self.origin

    def is_outside(self, points: Points, margin: float) -> bool:
        """Whether everything within ``margin`` of ``points`` is outside the image."""
        low, high = self.to_pixels(points.min(axis=0) - margin), self.to_pixels(points.max(axis=0) + margin)
        return bool(high[0] < 0 or high[1] < 0 or low[0] > self.size[0] or low[1] > self.size[1])

    def _fill_label(self, points: Points, part: int) -> None:
        fixed = np.rint(points * self._lk + self._lo).astype(np.int32)
        cv2.fillPoly(self.labels, [fixed], self._base + part, cv2.LINE_8, FIXED_POINT_BITS)

    def _thickness(self, width: float) -> int:
        return max(1, round(width * self.scale * self.factor))

    def polygon(self, points: Points, colour: RGB, part: int = 0, edge: RGB | None = None, width: float = 0.02) -> None:
        """Fill a polygon. ``part`` is written to the label map unless 0; ``edge`` is the colour of an outline."""
        fixed = np.rint(points * self._k + self._o).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, FIXED_POINT_BITS)
        if edge is not None:
            cv2.polylines(self.image, [fixed], True, edge, self._thickness(width), cv2.LINE_AA, FIXED_POINT_BITS)
        if part:
            self._fill_label(points, part)

    def polylines(self, chains: Sequence[Points], colour: RGB, width: float, closed: bool = False) -> None:
        """Draw open or closed chains of points as strokes with round joints."""
        fixed = [np.rint(chain * self._k + self._o).astype(np.int32) for chain in chains]
        cv2.polylines(self.image, fixed, closed, colour, self._thickness(width), cv2.LINE_AA, FIXED_POINT_BITS)

    def label_lines(self, chains: Sequence[Points], width: float, part: int) -> None:
        """Draw strokes on the label map only."""
        fixed = [np.rint(chain * self._lk + self._lo).astype(np.int32) for chain in chains]
        thickness = max(1, round(width * self._lk[1] / _ONE))
        cv2.polylines(self.labels, fixed, False, self._base + part, thickness, cv2.LINE_8, FIXED_POINT_BITS)

    def ellipse(self, centre: Points, radius: float | tuple[float, float], colour: RGB, part: int = 0) -> None:
        self.polygon(CIRCLE * np.asarray(radius) + centre, colour, part)

    def labels_at(self, pixels: Points) -> npt.NDArray[np.int16]:
        """Labels at output pixels float[n,2]: int16[n], -1 outside the image."""
        at = np.floor((pixels + 0.5) * self._label_ratio).astype(np.int64)
        height, width = self.labels.shape
        inside = (at[:, 0] >= 0) & (at[:, 1] >= 0) & (at[:, 0] < width) & (at[:, 1] < height)
        found = np.full(len(at), -1, np.int16)
        found[inside] = self.labels[at[inside, 1], at[inside, 0]]
        return found

    def finish(self) -> np.ndarray:
        """The finished image uint8[h,w,3] at the output size."""
        if self.factor == 1:
            return self.image
        return cv2.resize(self.image, self.size, interpolation=cv2.INTER_AREA)


def supersampling(size: tuple[int, int]) -> int:
    """Factor by which an image is drawn larger and then averaged down."""
    return max(1, math.ceil(MIN_DRAWN_SIDE / min(size)))
