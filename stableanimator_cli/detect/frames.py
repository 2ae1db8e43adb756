"""Checks and padding of images before a detector scales them."""

from __future__ import annotations

import numpy as np


def check_image(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 [h,w,3] with at least one pixel. Raises ``ValueError`` for anything else."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a detector needs uint8 [h,w,3], found {image.dtype} {list(image.shape)}")
    return image


def pad_short_side(image: np.ndarray, side: int) -> np.ndarray:
    """Pad a very long image with black below or right, so that its short side has pixels when scaled into ``side``.

    Other images are returned unchanged. Coordinates do not move.
    """
    h, w = image.shape[:2]
    need = -(-2 * max(h, w) // side)  # two pixels of the detector: room for rounding down
    below, right = max(0, need - h), max(0, need - w)
    return np.pad(image, ((0, below), (0, right), (0, 0))) if below or right else image
