"""People in frames and their 134 keypoints: YOLOX detects boxes, DWPose (an RTMPose network) keypoints in them.

Letterbox, affine crop and non-maximum suppression are rtmlib's. The sessions are ours, for control of threads,
providers and batches. Differences from rtmlib's own runners follow the reference implementation. Only class 0 is a
person, and a keypoint's score is the smaller of its two maxima. A frame without a person has no rows; rtmlib returns a
person as large as the frame. Both networks receive RGB.

Sources: Ge et al., "YOLOX"; Yang et al., "Effective Whole-body Pose Estimation with Two-stages Distillation" (DWPose);
Li et al., "SimCC".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from rtmlib.tools.object_detection.post_processings import nms
from rtmlib.tools.object_detection.yolox import YOLOX
from rtmlib.tools.pose_estimation.rtmpose import RTMPose

from stableanimator_cli.catalogue.damage import fetch_again
from stableanimator_cli.detect import THRESHOLD, onnx
from stableanimator_cli.detect.frames import check_image, pad_short_side
from stableanimator_cli.detect.roles import CROP, DETECTOR_BATCH, DETECTOR_SIDE, POSE_BATCH
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.motion.keypoints import from_wholebody

OVERLAP = 0.45
"""Of two boxes with a larger intersection over union only the better one is returned."""

STRIDES = (8, 16, 32)
SPLIT = 2.0
"""Bins of a SimCC row per pixel of the crop."""

Item = TypeVar("Item")

_PERSON = 0
_POINTS = 133
_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class PersonDetector:
    """YOLOX as an ONNX file: raw outputs (b, cells, 5 + classes), or with suppression inside, (b, n, 5).

    Raises ``ModelMissing`` or ``ModelDamaged`` if the file is missing, does not open or has other inputs or outputs,
    ``ValueError`` for an unknown device. ``arena``: see ``onnx.session_options``.
    """

    def __init__(
        self, path: Path | str, device: str = "auto", *, threads: int | None = None, threshold: float = THRESHOLD,
        arena: bool = True,
    ) -> None:  # fmt: skip
        self._session = onnx.session(path, device, threads, arena=arena)
        self._path, self._device, self._threshold = Path(path), device, threshold
        self.size = self._checked_size()
        self._letterbox = _Letterbox(self.size)
        self._batch = onnx.batch_axis(self._session)

    def detect(self, frames: Sequence[np.ndarray], batch: int = DETECTOR_BATCH) -> list[np.ndarray]:
        """People of each frame: uint8 RGB [h,w,3] of any sizes -> float32[p,5] (x0, y0, x1, y1, score), best first.

        Boxes are in the frame's pixels and may exceed it, as the pose network expects. The network processes ``batch``
        frames at once if its file allows; results do not depend on it.
        """
        people: list[np.ndarray] = []
        for chunk in _chunks(frames, self._batch or batch):
            pixels, ratios = zip(*(self._letterbox(frame) for frame in chunk), strict=True)
            outputs = onnx.run(self._session, np.stack(pixels))[0]
            if outputs.ndim != 3 or len(outputs) != len(chunk):
                raise self._damaged(f"an output of shape {list(outputs.shape)} for {len(chunk)} frames")
            pairs = zip(outputs, ratios, strict=True)
            people += [decode_people(out, ratio, self.size, threshold=self._threshold) for out, ratio in pairs]
        return people

    def describe(self) -> str:
        """The device of the network in words."""
        return onnx.describe(self._session, self._device)

    def _checked_size(self) -> tuple[int, int]:
        dims = self._session.get_inputs()[0].shape
        if len(self._session.get_inputs()) != 1 or len(dims) != 4 or dims[1] != 3:
            raise self._damaged(f"an input of shape {dims}")
        h, w = (d if isinstance(d, int) and d > 0 else DETECTOR_SIDE for d in dims[2:])
        out = self._session.get_outputs()[0].shape
        raw = isinstance(out[-1], int) and out[-1] != 5
        cells = sum((h // stride) * (w // stride) for stride in STRIDES)
        if len(out) != 3 or (raw and (out[-1] < 6 or (isinstance(out[1], int) and out[1] != cells))):
            raise self._damaged(f"an output of shape {out}")
        return h, w

    def _damaged(self, found: str) -> ModelDamaged:
        expected = "a YOLOX detector: (b, 3, 640, 640) -> (b, 8400, 5 + classes) or (b, n, 5)"
        return ModelDamaged(f"{self._path}: found {found}, expected {expected}", hint=fetch_again(self._path))


class PoseEstimator:
    """DWPose, or another RTMPose network of 133 keypoints, as an ONNX file: (b, 3, 384, 288) -> two SimCC outputs.

    Raises the errors of ``PersonDetector``.
    """

    def __init__(
        self, path: Path | str, device: str = "auto", *, threads: int | None = None, arena: bool = True
    ) -> None:
        self._session = onnx.session(path, device, threads, arena=arena)
        self._path, self._device = Path(path), device
        self.size = self._checked_size()
        self._crop = _Crop(self.size)
        self._batch = onnx.batch_axis(self._session)

    def estimate(
        self, frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray], batch: int = POSE_BATCH
    ) -> list[np.ndarray]:
        """Keypoints float32[p,134,3] (x, y in the frame's pixels, score) of the people of each frame.

        ``frames`` are uint8 RGB [h,w,3], ``boxes`` [p,4] of each, or [p,5] with an unused score. A box is enlarged by a
        quarter and to the network's aspect before the crop. The network processes ``batch`` people of any frames at
        once if its file allows. Scores are the network's maxima, which may exceed 1; a keypoint without a positive
        maximum has score 0. Raises ``ValueError`` for a box without area.
        """
        jobs = [(frame, box[:4]) for frame, rows in zip(frames, boxes, strict=True) for box in np.asarray(rows)]
        points = np.zeros((len(jobs), _POINTS, 3))
        size = self._batch or batch
        for index, chunk in enumerate(_chunks(jobs, size)):
            crops, centres, scales = zip(*(self._crop(check_image(frame), box) for frame, box in chunk), strict=True)
            outputs = onnx.run(self._session, np.stack(crops))
            shapes = [list(out.shape) for out in outputs]
            if shapes != [[len(chunk), _POINTS, int(side * SPLIT)] for side in self.size]:
                raise self._damaged(f"outputs of shapes {shapes} for {len(chunk)} people")
            placement = np.stack(centres), np.stack(scales)
            points[index * size :][: len(chunk)] = decode_points(outputs[0], outputs[1], *placement, size=self.size)
        points[..., 2] = points[..., 2].clip(min=0)
        people = from_wholebody(points).astype(np.float32)
        ends = np.cumsum([len(rows) for rows in boxes])
        return np.split(people, ends[:-1]) if len(boxes) else []

    def describe(self) -> str:
        """The device of the network in words."""
        return onnx.describe(self._session, self._device)

    def _checked_size(self) -> tuple[int, int]:
        dims = self._session.get_inputs()[0].shape
        if len(self._session.get_inputs()) != 1 or len(dims) != 4 or dims[1] != 3:
            raise self._damaged(f"an input of shape {dims}")
        h, w = (d if isinstance(d, int) and d > 0 else free for d, free in zip(dims[2:], reversed(CROP), strict=True))
        shapes = [out.shape for out in self._session.get_outputs()]
        expected = [(_POINTS, int(w * SPLIT)), (_POINTS, int(h * SPLIT))]
        fits = len(shapes) == 2 and all(
            len(shape) == 3 and all(not isinstance(d, int) or d == n for d, n in zip(shape[1:], pair, strict=True))
            for shape, pair in zip(shapes, expected, strict=True)
        )
        if not fits:
            raise self._damaged(f"outputs of shapes {shapes}")
        return w, h

    def _damaged(self, found: str) -> ModelDamaged:
        expected = "DWPose: (b, 3, 384, 288) -> (b, 133, 576) and (b, 133, 768)"
        return ModelDamaged(f"{self._path}: found {found}, expected {expected}", hint=fetch_again(self._path))


def decode_people(
    output: np.ndarray,
    ratio: float,
    size: tuple[int, int] = (DETECTOR_SIDE, DETECTOR_SIDE),
    *,
    threshold: float = THRESHOLD,
    overlap: float = OVERLAP,
) -> np.ndarray:
    """People float32[p,5] (x0, y0, x1, y1, score) of one frame's YOLOX output, best first.

    The output is [cells, 5 + classes], or [n,5] if the graph suppresses overlaps itself. ``ratio`` is the letterbox's
    scale, ``size`` its (height, width). A row holds a centre relative to its cell and the logarithm of a size, both in
    cells, then an objectness and class scores (Ge et al. §2.1).
    """
    if output.shape[-1] == 5:
        rows = output[output[:, 4] > threshold]
        order = np.argsort(-rows[:, 4], kind="stable")
        return np.concatenate([rows[order, :4] / ratio, rows[order, 4:]], axis=1).astype(np.float32)
    grids = [np.mgrid[: size[0] // s, : size[1] // s][::-1].reshape(2, -1).T for s in STRIDES]
    stride = np.concatenate([np.full((len(grid), 1), s) for grid, s in zip(grids, STRIDES, strict=True)])
    scores = output[:, 4] * output[:, 5 + _PERSON]
    # Boxes below the threshold cannot suppress one above it, so they are dropped before the sorting.
    likely = scores > threshold
    output, scores, stride = output[likely], scores[likely], stride[likely].astype(np.float32)
    centre = (output[:, :2] + np.concatenate(grids)[likely].astype(np.float32)) * stride
    half = np.exp(output[:, 2:4]) * stride / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1) / ratio
    keep = nms(boxes, scores, overlap)
    return np.concatenate([boxes[keep], scores[keep, None]], axis=1).astype(np.float32).reshape(-1, 5)


def decode_points(
    simcc_x: np.ndarray, simcc_y: np.ndarray, centre: np.ndarray, scale: np.ndarray, *, size: tuple[int, int] = CROP
) -> np.ndarray:
    """SimCC outputs [p,k,2w] and [p,k,2h] as points of the frame: float64[p,k,3] (x, y, score).

    ``centre`` and ``scale`` [p,2] are the centre and the extent (x, y) of each crop in the frame, ``size`` is its
    (width, height) before the network. A point is at the largest bin of each axis, its score the smaller of the two
    values; without a positive score it is the crop's corner, which has no meaning.
    """
    bins = np.stack([simcc_x.argmax(axis=-1), simcc_y.argmax(axis=-1)], axis=-1).astype(np.float64)
    scores = np.minimum(simcc_x.max(axis=-1), simcc_y.max(axis=-1))
    bins[scores <= 0] = -1
    points = bins / SPLIT / np.array(size) * scale[:, None] + centre[:, None] - scale[:, None] / 2
    return np.concatenate([points, scores[..., None]], axis=-1)


class _Letterbox(YOLOX):
    """rtmlib's preparation for YOLOX without the session that its constructor would open."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.model_input_size = size

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 [h,w,3] -> float32 [3,h',w'] of 0..255 in the top left, grey 114 elsewhere, and the scale."""
        padded, ratio = self.preprocess(pad_short_side(check_image(image), min(self.model_input_size)))
        return np.ascontiguousarray(padded.transpose(2, 0, 1), dtype=np.float32), ratio


class _Crop(RTMPose):
    """rtmlib's preparation for RTMPose without the session that its constructor would open."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.model_input_size = size
        self.mean, self.std = np.array(_MEAN), np.array(_DEVIATION)

    def __call__(self, image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An image and a box -> float32 [3,h,w], normalised, and the crop's centre and extent in the image."""
        box = np.asarray(box, dtype=np.float64)
        if not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"box {box.tolist()} has no area")
        pixels, centre, scale = self.preprocess(image, box.tolist())
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32), centre, scale


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
