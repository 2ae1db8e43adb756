"""Preview of an alignment: the reference image, its own skeleton, and aligned skeletons over it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from stableanimator_cli.motion.keypoints import (
    BODY_LIMBS,
    FACE,
    HAND_LIMBS,
    LEFT_HAND,
    RIGHT_HAND,
    bounding_box,
    visible,
)
from stableanimator_cli.records import Motion

REFERENCE_COLOUR = (0, 230, 255)
ALIGNED_COLOUR = (255, 130, 0)

_NUMBER_COLOUR = (255, 255, 255)
_MIN_SIDE = 512  # smaller images are enlarged by a whole factor, or lines would cover what they show
_DIM = 0.55
_BINARY = 4  # binary places of OpenCV's sub-pixel coordinates
_FAR = 4.0  # frame sizes; farther points would exceed the range of OpenCV's coordinates


def overlay(
    image: np.ndarray,
    reference: np.ndarray,
    motion: Motion,
    frames: Sequence[int] | None = None,
) -> np.ndarray:
    """uint8[h,w,3] RGB: ``image`` dimmed, the reference's skeleton float[134,3] in blue, and those of a motion of the
    image's size in orange, later frames brighter.

    ``frames`` are indices of the motion's frames (default: the first, the middle and the last with a person). Several
    people have their numbers, in the last of these frames. An image whose shorter side is below 512 is enlarged by an
    integer factor. Raises ``ValueError`` if sizes differ or a frame does not exist.
    """
    image = np.asarray(image)
    height, width = image.shape[:2]
    if image.shape != (height, width, 3) or image.dtype != np.uint8 or (width, height) != tuple(motion.size):
        raise ValueError(f"an image {image.dtype}{list(image.shape)} for a motion of size {motion.size}")
    if frames is None:
        occupied = np.flatnonzero(motion.present.any(axis=1))
        frames = sorted({int(occupied[i]) for i in (0, len(occupied) // 2, -1)}) if len(occupied) else []
    if any(not 0 <= frame < len(motion) for frame in frames):
        raise ValueError(f"frames {list(frames)} of a motion of {len(motion)} frames")
    factor = max(1, -(-_MIN_SIDE // min(height, width)))
    canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    canvas = (canvas * _DIM).astype(np.uint8)
    thick = max(1, round(min(canvas.shape[:2]) / 256))
    for n, frame in enumerate(frames):
        strength = 0.4 + 0.6 * (n + 1) / len(frames)
        colour = tuple(channel * strength for channel in ALIGNED_COLOUR)
        for person in motion.keypoints[frame][motion.present[frame]]:
            _draw(canvas, person, factor, colour, thick)
    _draw(canvas, np.asarray(reference), factor, REFERENCE_COLOUR, thick)
    if frames:
        draw_numbers(canvas, motion, frames[-1], np.array([factor, factor]), thick)
    numbers = ", ".join(str(frame) for frame in frames)
    for line, (text, colour) in enumerate([("reference", REFERENCE_COLOUR), (f"frames {numbers}", ALIGNED_COLOUR)]):
        position = (4 * thick, 12 * thick * (line + 1))
        cv2.putText(canvas, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.35 * thick, colour, thick, cv2.LINE_AA)
    return canvas


def draw_numbers(canvas: np.ndarray, motion: Motion, frame: int, scale: np.ndarray, thick: int = 1) -> None:
    """Write the number of each person over the head, in place, if the motion has several people.

    ``scale`` float[2] are pixels of the canvas uint8[h,w,3] per pixel of the motion, along x and y.
    """
    if len(motion.track) < 2:
        return
    height, width = canvas.shape[:2]
    boxes = bounding_box(motion.keypoints[frame], minimum=1) * np.tile(scale, 2)
    for number, present, (x0, y0, x1, _) in zip(motion.track, motion.present[frame], boxes, strict=True):
        if not present or not np.isfinite([x0, y0, x1]).all():
            continue
        text, size = str(int(number)), 0.6 * thick
        (across, down), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 2 * thick)
        left = int(np.clip((x0 + x1 - across) / 2, 0, max(0, width - across)))
        base = int(np.clip(y0 - down / 2, down + thick, max(down, height - 1)))
        for colour, line in (((0, 0, 0), 4 * thick), (_NUMBER_COLOUR, 2 * thick)):
            cv2.putText(canvas, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, size, colour, line, cv2.LINE_AA)


def _draw(canvas: np.ndarray, person: np.ndarray, factor: int, colour: tuple[float, ...], thick: int) -> None:
    """One skeleton: bones of body and hands as lines, joints and face points as dots."""
    height, width = canvas.shape[:2]
    xy = person[:, :2].astype(np.float64) * factor
    near = (np.abs(xy) < _FAR * max(width, height)).all(axis=-1)
    seen = visible(person) & near
    bones = [*BODY_LIMBS]
    for part in (LEFT_HAND, RIGHT_HAND):
        bones += [(part.start + a, part.start + b) for a, b in HAND_LIMBS]
    places = np.rint(np.where(near[:, None], xy, 0.0) * 2**_BINARY).astype(int).tolist()
    for a, b in bones:
        if seen[a] and seen[b]:
            width_ = thick if a >= LEFT_HAND.start else 2 * thick
            cv2.line(canvas, places[a], places[b], colour, width_, cv2.LINE_AA, _BINARY)
    for point in [*range(18), *range(FACE.start, FACE.stop)]:
        if seen[point]:
            radius = (thick if point >= FACE.start else 3 * thick) << _BINARY
            cv2.circle(
                canvas, places[point], radius // (2 if point >= FACE.start else 1), colour, -1, cv2.LINE_AA, _BINARY
            )
