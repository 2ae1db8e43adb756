"""Face boxes as masks: kept as numbers, made pixels when asked, at any size.

A box (x0, y0, x1, y1) covers the pixels ``int(x0):int(x1)`` across and ``int(y0):int(y1)`` down, half-open, both cut
to whole pixels towards zero after scaling: boxes that touch share no pixel, and a box of the whole frame is the whole
mask. A box that shows in the frame at all covers one pixel at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from stableanimator_cli.records import Motion

Missing = Literal["empty", "full"]


def face_mask(
    boxes: np.ndarray | Sequence[np.ndarray],
    size: tuple[int, int],
    *,
    source: tuple[int, int] | None = None,
    margin: float = 0.0,
    missing: Missing = "empty",
) -> np.ndarray:
    """uint8[h,w], 255 in the boxes float[n,4] of one frame and 0 elsewhere.

    ``size`` is the mask's (width, height); boxes are pixels of ``source`` (default: the same). ``margin`` widens each
    box on every side by that share of its width and height. Rows of NaN are no faces. Without a face in the frame the
    mask is empty or, with ``missing="full"``, 255 all over: the reference implementation's convention.
    ``ValueError`` for other values.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing {missing!r}: expected empty or full")
    if not (np.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin {margin}: expected 0 or more, a share of the box")
    source = size if source is None else source
    for sides in (size, source):
        if min(sides) < 1:
            raise ValueError(f"size {sides[0]}x{sides[1]}: expected a width and a height of 1 pixel or more")
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(axis=-1)]
    room = margin * (boxes[:, 2:] - boxes[:, :2])
    scale = np.array(size, np.float64) / source
    low, high = (boxes[:, :2] - room) * scale, (boxes[:, 2:] + room) * scale
    shown = (np.minimum(high, size) > np.maximum(low, 0)).all(axis=-1)
    low, high = low[shown].clip(0, size).astype(np.int64), high[shown].clip(0, size).astype(np.int64)
    for (x0, y0), (x1, y1) in zip(low.tolist(), np.maximum(high, low + 1).tolist(), strict=True):
        mask[y0:y1, x0:x1] = 255
    if missing == "full" and not shown.any():
        mask[:] = 255
    return mask


def face_masks(
    motion: Motion, size: tuple[int, int] | None = None, *, margin: float = 0.0, missing: Missing = "empty"
) -> Iterator[np.ndarray]:
    """``face_mask`` of each frame of a motion, made one at a time; ``size`` defaults to the motion's."""
    for boxes in motion.face_boxes:
        yield face_mask(boxes, size or motion.size, source=motion.size, margin=margin, missing=missing)
