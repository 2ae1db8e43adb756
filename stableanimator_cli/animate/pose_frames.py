"""Skeleton images of a full motion, compressed in memory, so that any window can read any frame."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np


class PoseFrames:
    """Images uint8[h,w,3] of one size, by output frame. Skeletons are mostly black: about 50 kB per frame at 576x1024,
    less than the frame's latents."""

    def __init__(self, size: tuple[int, int], images: Iterable[np.ndarray] = ()) -> None:
        self.size = size
        self._packed: list[bytes] = []
        self._order: list[int] = []
        for image in images:
            self.append(image)

    def append(self, image: np.ndarray) -> None:
        width, height = self.size
        if image.shape != (height, width, 3):
            raise ValueError(f"a skeleton of shape {image.shape}, expected {(height, width, 3)}")
        self._order.append(len(self._packed))
        self._packed.append(zlib.compress(np.ascontiguousarray(image).data, 1))

    def __len__(self) -> int:
        return len(self._order)

    def frame(self, index: int) -> np.ndarray:
        width, height = self.size
        data = zlib.decompress(self._packed[self._order[index]])
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def reordered(self, indices: Sequence[int]) -> PoseFrames:
        """The same images in another order, some twice or not at all: a motion at another frame rate."""
        other = PoseFrames(self.size)
        other._packed = self._packed
        other._order = [self._order[index] for index in indices]
        return other

    def with_anchor(self, image: np.ndarray) -> PoseFrames:
        """The same with ``image`` in front: the anchor of every window."""
        other = PoseFrames(self.size)
        other._packed, other._order = list(self._packed), []
        other.append(image)
        other._order += self._order
        return other
