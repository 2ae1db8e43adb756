"""Resize an image, points or a motion by cropping, padding or stretching."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from stableanimator_cli.records import Motion

Mode = Literal["crop", "pad", "stretch"]
Resample = Literal["lanczos", "bicubic"]

_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeTransform:
    """A mapping between frames of two sizes (width, height), from ``resize_transform``.

    ``box`` (x0, y0, x1, y1) is the part of the source that is used, in source pixels, which may be fractional;
    ``placed`` is its position in the target, in whole pixels: the full target, except with ``pad``.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    mode: Mode
    box: tuple[float, float, float, float]
    placed: tuple[int, int, int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Target pixels per source pixel along x and y, which differ if the image is distorted."""
        (x0, y0, x1, y1), (left, top, right, bottom) = self.box, self.placed
        return (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)

    def apply_points(self, points: np.ndarray) -> np.ndarray:
        """Source pixels [...,2] in target pixels, float64; points outside the crop are outside the target."""
        return (np.asarray(points, np.float64) - self.box[:2]) * self.scale + self.placed[:2]

    def apply_image(self, image: np.ndarray, resample: Resample = "lanczos") -> np.ndarray:
        """uint8[h,w,3] RGB of the source size as uint8[H,W,3] of the target size, by Pillow's ``resize``.

        With ``stretch`` this is ``Image.resize(target, filter)`` itself, which the reference implementation uses. The
        bars of ``pad`` are black. Raises ``ValueError`` if the array is not an image of the source size.
        """
        image = np.asarray(image)
        expected = (self.source[1], self.source[0], 3)
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(f"an image of shape {image.shape} and type {image.dtype}: expected uint8{expected}")
        left, top, right, bottom = self.placed
        source = Image.fromarray(np.ascontiguousarray(image))
        inner = np.asarray(source.resize((right - left, bottom - top), _FILTERS[resample], box=self.box))
        if inner.shape[:2] == self.target[::-1]:
            return inner.copy()
        frame = np.zeros((self.target[1], self.target[0], 3), np.uint8)
        frame[top:bottom, left:right] = inner
        return frame

    def transform_motion(self, motion: Motion) -> Motion:
        """The motion in target pixels. Scores, people and times stay: people outside the frame are still present.

        Raises ``ValueError`` if the motion's size is not the source size.
        """
        if tuple(motion.size) != self.source:
            raise ValueError(f"a motion of size {motion.size}: expected {self.source}")
        keypoints = motion.keypoints.copy()
        keypoints[..., :2] = self.apply_points(keypoints[..., :2])
        corners = self.apply_points(motion.face_boxes.reshape(*motion.face_boxes.shape[:-1], 2, 2))
        return dataclasses.replace(
            motion,
            keypoints=keypoints,
            face_boxes=corners.reshape(motion.face_boxes.shape).astype(np.float32),
            size=self.target,
        )


def resize_transform(source_size: tuple[int, int], target_size: tuple[int, int], mode: Mode) -> ResizeTransform:
    """The mapping from ``source_size`` to ``target_size`` (both (width, height)).

    ``crop`` scales the largest centred part with the target's aspect ratio; ``pad`` scales the full image and leaves
    black bars around it; ``stretch`` scales each side independently. Raises ``ValueError`` for other modes and for
    sizes that are not positive.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"resize mode {mode!r}: expected crop, pad or stretch")
    source, target = (int(source_size[0]), int(source_size[1])), (int(target_size[0]), int(target_size[1]))
    for size in (source, target):
        if min(size) < 1:
            raise ValueError(f"size {size[0]}x{size[1]}: expected a width and a height of 1 pixel or more")
    (width, height), (to_width, to_height) = source, target
    box, placed = (0.0, 0.0, float(width), float(height)), (0, 0, to_width, to_height)
    # Sides are compared by integer products, so that equal aspects are equal and nothing is cropped by rounding.
    wide, tall = width * to_height, height * to_width
    if mode == "crop" and wide > tall:
        side = tall / to_height
        box = ((width - side) / 2, 0.0, (width + side) / 2, float(height))
    elif mode == "crop" and tall > wide:
        side = wide / to_width
        box = (0.0, (height - side) / 2, float(width), (height + side) / 2)
    elif mode == "pad" and wide > tall:
        inner = max(1, round(tall / width))
        top = (to_height - inner) // 2
        placed = (0, top, to_width, top + inner)
    elif mode == "pad" and tall > wide:
        inner = max(1, round(wide / height))
        left = (to_width - inner) // 2
        placed = (left, 0, left + inner, to_height)
    return ResizeTransform(source=source, target=target, mode=mode, box=box, placed=placed)
