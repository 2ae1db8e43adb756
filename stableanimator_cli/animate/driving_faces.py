"""Crops of the driver's face from a video, for backbones that take the expression from pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import cv2
import numpy as np

from stableanimator_cli.motion.aapose import FACE_SIZE, crop_boxes, crop_face
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Motion


class FaceCrops:
    """Images uint8[512,512,3] by output frame. Black without a face: Wan-Animate's own input for no expression.

    Crops are stored at their own size if that is smaller, and once per frame of the motion.
    """

    def __init__(
        self, order: Sequence[int], crops: Mapping[int, np.ndarray] | None = None, person: int | None = None
    ) -> None:
        """``order``: the motion's frame that each output frame shows; ``person``: the number of the one whose face it
        is, None without crops."""
        self.person = person
        self._order = order
        self._crops = crops or {}

    def __len__(self) -> int:
        return len(self._order)

    @property
    def frames_with_face(self) -> int:
        """Number of frames with a face."""
        return sum(index in self._crops for index in self._order)

    def frame(self, index: int) -> np.ndarray:
        crop = self._crops.get(self._order[index])
        if crop is None:
            return np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
        return crop if crop.shape[0] == crop.shape[1] == FACE_SIZE else cv2.resize(crop, (FACE_SIZE, FACE_SIZE))


def read_face_crops(clip: Clip, motion: Motion, order: Sequence[int], reporter: Reporter) -> FaceCrops:
    """Crop the face of the largest person of these frames out of ``clip``, from which the motion was detected.

    ``order``: per output frame, the motion's frame that it shows. Frames are found by their times, or by number if the
    motion has no clock.
    """
    boxes, person = _boxes_of_largest(motion, sorted(set(order)))
    needed = sorted({index for index in order if np.isfinite(boxes[index]).all()})
    crops: dict[int, np.ndarray] = {}
    with reporter.progress(len(needed), "crop faces", "frame") as bar:
        for index, image in _frames_at(clip.frames(), motion.times, needed):
            crop = _stored(image, boxes[index])
            if crop is not None:
                crops[index] = crop
            bar.update()
    faces = FaceCrops(order, crops, person if crops else None)
    if faces.frames_with_face < len(order):
        missing = len(order) - faces.frames_with_face
        reporter.info(f"{clip.path.name}: {missing} of {len(order)} frames show no face, which drive no expression")
    return faces


def _boxes_of_largest(motion: Motion, shown: Sequence[int]) -> tuple[np.ndarray, int]:
    """Crop boxes float32[t,4] of the person with the largest face in the frames ``shown``, and that person's number."""
    people = motion.present.shape[1]
    boxes = np.stack([crop_boxes(motion.keypoints[:, p], motion.size, motion.face_boxes[:, p]) for p in range(people)])
    boxes = np.where(motion.present.T[..., None], boxes, np.nan)
    areas = np.nan_to_num((boxes[..., 2:] - boxes[..., :2]).prod(axis=-1))[:, shown].mean(axis=1)
    largest = int(areas.argmax())
    return boxes[largest], int(motion.track[largest])


def _frames_at(
    frames: Iterable[tuple[Fraction | None, np.ndarray]], times: Sequence[Fraction] | None, needed: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, image) of the needed indices: the frame of that number, or the one nearest to ``times[index]``."""
    waiting = list(needed)
    before: tuple[Fraction, np.ndarray] | None = None
    for number, (time, image) in enumerate(frames):
        if not waiting:
            return
        if times is None or time is None:
            if waiting[0] == number:
                yield waiting.pop(0), image
            continue
        while before is not None and waiting and abs(times[waiting[0]] - before[0]) <= abs(times[waiting[0]] - time):
            yield waiting.pop(0), before[1]
        before = time, image
    if before is not None:
        yield from ((index, before[1]) for index in waiting)


def _stored(image: np.ndarray, box: np.ndarray) -> np.ndarray | None:
    """A face's pixels, at their own size if that is less than a crop's."""
    x0, y0, x1, y1 = (int(side) for side in box)
    if max(x1 - x0, y1 - y0) > FACE_SIZE:
        return crop_face(image, box)
    return image[y0:y1, x0:x1].copy() if min(x1 - x0, y1 - y0) >= 4 else None
