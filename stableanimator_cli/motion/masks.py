"""Face boxes as masks of any size.

A box (x0, y0, x1, y1) covers the columns ``int(x0)`` to ``int(x1)`` and the rows ``int(y0)`` to ``int(y1)``, both
inclusive, truncated after scaling: OpenCV's filled rectangle, with which the reference implementation makes its masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

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

    ``size`` is the mask's (width, height); boxes are in pixels of ``source`` (default: the same). ``margin`` widens
    each box on every side by that fraction of its width and height. Rows of NaN are no faces. Without a face in the
    frame the mask is empty or, with ``missing="full"``, filled: the reference implementation's convention.
    Raises ``ValueError`` for other values.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing {missing!r}: expected empty or full")
    if not (np.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin {margin}: expected 0 or more, a fraction of the box")
    source = size if source is None else source
    for sides in (size, source):
        if min(sides) < 1:
            raise ValueError(f"size {sides[0]}x{sides[1]}: expected a width and a height of 1 pixel or more")
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(axis=-1)]
    padding = margin * (boxes[:, 2:] - boxes[:, :2])
    scale = np.array(size, np.float64) / source
    low, high = (boxes[:, :2] - padding) * scale, (boxes[:, 2:] + padding) * scale
    shown = (np.minimum(high, size) > np.maximum(low, 0)).all(axis=-1)
    low, high = low[shown].clip(0, size).astype(np.int64), high[shown].clip(0, size).astype(np.int64)
    for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = 255
    if missing == "full" and not shown.any():
        mask[:] = 255
    return mask
