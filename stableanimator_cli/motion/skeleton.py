"""Skeletons on black, as in the training of the released networks: exactly the reference implementation's pixels.

Hard-edged marks that overwrite one another are drawn on a canvas with a shorter side of 2160. OpenCV's bilinear
``resize`` without an area filter then decimates it. The networks were trained with the aliasing of that decimation, so
it is reproduced, at lower cost: marks are drawn in the part of the canvas that they touch, and only canvas pixels that
the decimation reads are computed (``docs/formats.md``, "Skeletons").
"""

from __future__ import annotations

import colorsys
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from stableanimator_cli.errors import ConfigError
from stableanimator_cli.motion.keypoints import BODY_LIMBS, COUNT, FACE, HAND_LIMBS, LEFT_HAND, RIGHT_HAND, THRESHOLD
from stableanimator_cli.records import Motion

CANVAS = 2160
LIMB_HALF_WIDTH = 4
LIMB_DIM = 0.6
JOINT_RADIUS = 4
FACE_RADIUS = 3
HAND_LINE = 2
MAX_ASPECT = 40
_FAR = 1000.0  # frame sizes; a farther point is a wrong estimate, and would overflow OpenCV's integers

BODY_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
_HAND_COLOURS = tuple(colorsys.hsv_to_rgb(i / len(HAND_LIMBS), 1.0, 1.0) for i in range(len(HAND_LIMBS)))

Point = tuple[int, int]
Colour = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Mark:
    """One mark on the canvas: a filled polygon, a thick line or a disc, which extends ``reach`` from its points."""

    colour: Colour
    points: tuple[Point, ...]
    reach: int
    outline: np.ndarray | None = None

    def draw(self, canvas: np.ndarray, left: int, top: int) -> None:
        moved = [(x - left, y - top) for x, y in self.points]
        if self.outline is not None:
            # The outline was rounded on the full canvas: rounding it here would move ties by a pixel.
            cv2.fillConvexPoly(canvas, self.outline - np.array([left, top], np.int32), self.colour)
        elif len(moved) == 2:
            cv2.line(canvas, moved[0], moved[1], self.colour, thickness=HAND_LINE)
        else:
            cv2.circle(canvas, moved[0], self.reach, self.colour, thickness=-1)


TAG = {"sa.kind": "skeleton"}
"""The tag of our own skeleton videos."""


def is_tagged(tag: Mapping[str, str]) -> bool:
    """Whether a video's ``tag`` is that of our own skeleton videos."""
    return TAG.items() <= tag.items()


def draw_skeleton(people: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw people float[p,134,3] (pixels of ``size`` = (width, height), score) on black: uint8[h,w,3] RGB.

    Limbs need both ends at ``THRESHOLD`` or above, joints must be above it. Hands and faces are drawn whatever their
    scores are, dimmed by them. Points that are not finite are left out. Raises ``ConfigError`` for impossible sizes.
    """
    people = np.asarray(people, np.float64)
    if people.ndim != 3 or people.shape[1:] != (COUNT, 3):
        raise ValueError(f"people of shape {people.shape}: expected (p, {COUNT}, 3)")
    return draw_normalised(people / np.array([*_checked_size(size), 1.0]), size)


def draw_normalised(people: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``draw_skeleton`` for float64[p,134,3] whose x and y are fractions of the width and height.

    The reference implementation stores poses in this form. A float64 fraction converted to pixels and back can lose its
    last bit, and with it a pixel.
    """
    width, height = _checked_size(size)
    frame = np.zeros((height, width, 3), np.uint8)
    canvas = canvas_size(size)
    marks = _marks(np.asarray(people, np.float64), canvas)
    if not marks:
        return frame
    spans = []
    for axis, (length, target) in enumerate(zip(canvas, (width, height), strict=True)):
        low = min(min(p[axis] for p in mark.points) - mark.reach for mark in marks)
        high = max(max(p[axis] for p in mark.points) + mark.reach for mark in marks) + 1
        taps = _taps(length, target, rows=axis == 1)
        first = int(np.searchsorted(taps.second, low, "left"))
        last = int(np.searchsorted(taps.first, high, "left"))
        if first >= last:
            return frame
        # The drawn part holds every mark (clipped at the canvas's edge alone) and all pixels that the decimation reads.
        start = min(max(low, 0), int(taps.first[first]))
        stop = max(min(high, length), int(taps.second[last - 1]) + 1)
        spans.append((taps.part(first, last, start), first, start, stop))
    (across, x, left, right), (down, y, top, bottom) = spans
    part = np.zeros((bottom - top, right - left, 4), np.uint8)
    for mark in marks:
        mark.draw(part, left, top)
    _decimate(part, across, down, frame[y:, x:])
    return frame


def draw_frame(motion: Motion, index: int) -> np.ndarray:
    """The skeletons of all people present in one frame of a motion, at the motion's own size."""
    return draw_skeleton(motion.keypoints[index][motion.present[index]], motion.size)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """``size`` as integers. Raises ``ConfigError`` below 1, and for a strip whose canvas would not fit in memory."""
    width, height = (int(v) for v in size)
    if min(width, height) < 1:
        raise ConfigError("size of a skeleton", f"{width}x{height}", "a width and a height of 1 pixel or more")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ConfigError(
            "size of a skeleton", f"{width}x{height}", f"sides that differ no more than {MAX_ASPECT} times",
            hint="skeletons are drawn at 2160 pixels on the shorter side; crop the image or choose another --size",
        )  # fmt: skip
    return width, height


def canvas_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the canvas for a frame of ``size``: the shorter side 2160, both truncated to whole pixels."""
    width, height = size
    scale = CANVAS / min(width, height)
    return int(width * scale), int(height * scale)


def looks_like_skeleton(frame: np.ndarray) -> bool:
    """Whether uint8[h,w,3] RGB is a drawn skeleton, not a photograph: thin, colourful marks on flat black.

    Requires at least 70 % black pixels, marks thinner than 1/25 of the shorter side, and colours of three or more
    sectors of the hue circle. Lossy compression and the thicker lines of other tools are tolerated. False for an
    all-black frame: check several frames of a video.
    """
    frame = np.asarray(frame)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a frame of shape {frame.shape} and type {frame.dtype}: expected uint8[h,w,3]")
    bright = frame.max(axis=2)
    if (bright <= 24).mean() < 0.7:
        return False
    lit = bright > 64
    count = int(lit.sum())
    if count < max(8, 2e-4 * lit.size):
        return False
    side = max(3, min(frame.shape[:2]) // 25)
    core = cv2.erode(
        lit.astype(np.uint8), np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    if core.sum() > 0.01 * count:
        return False
    hsv = cv2.cvtColor(frame[lit][None], cv2.COLOR_RGB2HSV)[0]
    vivid = hsv[hsv[:, 1] > 40]  # not more: codecs halve the colour planes, and thin lines lose their colour there
    sectors = np.bincount((vivid[:, 0].astype(int) + 15) // 30 % 6, minlength=6)
    return len(vivid) >= 0.3 * count and int((sectors > 0.03 * len(vivid)).sum()) >= 3


def _marks(people: np.ndarray, canvas: tuple[int, int]) -> list[_Mark]:
    """All marks in drawing order: limbs, joints, then every left hand, every right hand, and the faces."""
    usable = np.all(np.isfinite(people), axis=-1, keepdims=True) & np.all(
        np.abs(people[..., :2]) < _FAR, axis=-1, keepdims=True
    )
    people = np.where(usable, people, np.array([0.0, 0.0, -1.0]))
    exact = people[..., :2] * np.array(canvas, np.float64)
    pixels = exact.astype(np.int64).tolist()  # truncated towards zero, not rounded
    scores = people[..., 2].tolist()
    positions = exact.tolist()

    marks = []
    for limb, colour in zip(BODY_LIMBS, BODY_COLOURS, strict=False):
        for person, score in zip(positions, scores, strict=True):
            if all(score[i] >= THRESHOLD for i in limb):
                marks.append(_limb(person[limb[0]], person[limb[1]], colour, score[limb[0]] * score[limb[1]]))
    for joint, colour in enumerate(BODY_COLOURS):
        for person, score in zip(pixels, scores, strict=True):
            if score[joint] > THRESHOLD:
                marks.append(_Mark(tuple(int(c * score[joint]) for c in colour), (tuple(person[joint]),), JOINT_RADIUS))
    for hand in (LEFT_HAND, RIGHT_HAND):
        for person, score in zip(pixels, scores, strict=True):
            marks.extend(_hand([tuple(p) for p in person[hand]], score[hand]))
    for person, score in zip(pixels, scores, strict=True):
        for (x, y), s in zip(person[FACE], score[FACE], strict=True):
            if x > 0 and y > 0:
                marks.append(_Mark((int(s * 255),) * 3, ((x, y),), FACE_RADIUS))
    return marks


def _limb(a: list[float], b: list[float], colour: tuple[int, int, int], strength: float) -> _Mark:
    """A flat ellipse between two joints. Dimming the finished limbs is the same as drawing them dim: they overwrite."""
    across, down = a[0] - b[0], a[1] - b[1]
    half = int((down**2 + across**2) ** 0.5 / 2)
    centre = (int((a[0] + b[0]) / 2), int((a[1] + b[1]) / 2))
    angle = int(math.degrees(math.atan2(down, across)))
    outline = np.asarray(cv2.ellipse2Poly(centre, (half, LIMB_HALF_WIDTH), angle, 0, 360, 1))
    dim = tuple(int(min(max(int(c * strength), 0), 255) * LIMB_DIM) for c in colour)
    low, high = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    return _Mark(dim, (tuple(low), tuple(high)), 1, outline)


def _hand(points: list[Point], scores: list[float]) -> list[_Mark]:
    """A hand's bones in rainbow colours and its points in blue; a point at the very edge counts as missing."""
    inside = [x > 0 and y > 0 for x, y in points]
    marks = []
    for (a, b), colour in zip(HAND_LIMBS, _HAND_COLOURS, strict=True):
        if inside[a] and inside[b]:
            strength = int(scores[a] * scores[b] * 255)
            marks.append(_Mark(tuple(c * strength for c in colour), (points[a], points[b]), HAND_LINE + 1))
    for point, score, is_inside in zip(points, scores, inside, strict=True):
        if is_inside:
            marks.append(_Mark((0, 0, int(score * 255)), (point,), JOINT_RADIUS))
    return marks


@dataclass(frozen=True, slots=True)
class _Taps:
    """Bilinear decimation along one axis: each target pixel reads two of the source, weighted in 1/2048ths."""

    first: np.ndarray
    second: np.ndarray
    weight_first: np.ndarray
    weight_second: np.ndarray

    def part(self, start: int, stop: int, offset: int) -> _Taps:
        """The taps of target pixels start:stop, counted from source pixel ``offset``."""
        taps = slice(start, stop)
        return _Taps(
            self.first[taps] - offset, self.second[taps] - offset, self.weight_first[taps], self.weight_second[taps]
        )


@functools.lru_cache(maxsize=64)
def _taps(source: int, target: int, rows: bool) -> _Taps:
    """The tables of OpenCV's 8-bit bilinear ``resize``: positions in float32, weights rounded to 11 bits."""
    scale = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    if not rows:  # OpenCV: beyond the edge, if a canvas is enlarged, a column has full weight and a row two halves
        share[(first < 0) | (first >= source - 1)] = 0
    steps = np.float32(2048)
    weights = (np.rint((np.float32(1) - share) * steps), np.rint(share * steps))
    reads = (np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1))
    return _Taps(*reads, *(w.astype(np.int32) for w in weights))


def _decimate(part: np.ndarray, across: _Taps, down: _Taps, target: np.ndarray) -> None:
    """Write the decimated ``part`` uint8[h,w,4] into ``target`` uint8[h,w,3], with OpenCV's integer arithmetic.

    Only target pixels that read a lit pixel are computed: a skeleton leaves most of the canvas black.
    """
    pixels = part.view(np.uint32)[..., 0]
    rows = pixels[down.first] | pixels[down.second]
    y, x = np.nonzero(rows[:, across.first] | rows[:, across.second])

    def read(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return part[row[y], column[x]].astype(np.int32)

    left, right = across.weight_first[x, None], across.weight_second[x, None]
    upper = read(down.first, across.first) * left + read(down.first, across.second) * right
    lower = read(down.second, across.first) * left + read(down.second, across.second) * right
    upper = (down.weight_first[y, None] * (upper >> 4)) >> 16
    lower = (down.weight_second[y, None] * (lower >> 4)) >> 16
    target[y, x] = ((upper + lower + 2) >> 2)[:, :3]
