"""Image quality of a face: PSNR inside the face box, and sharpness."""

from __future__ import annotations

import numpy as np

from stableanimator_cli.bench.frontier_cases import sharpness
from tools.bench.puppet_decoder import psnr as error_psnr


def face_slice(box: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a face box (x0, y0, x1, y1) within an image of ``size`` (width, height)."""
    x0, y0 = (max(0, int(v)) for v in np.floor(box[:2]))
    x1, y1 = (min(side, int(v) + 1) for v, side in zip(np.ceil(box[2:]), size, strict=True))
    return slice(y0, y1), slice(x0, x1)


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images in decibels."""
    return error_psnr(image.astype(np.float64) - target.astype(np.float64))


def face_scores(image: np.ndarray, target: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """PSNR inside the face box, and sharpness there relative to the target's (1 is as sharp)."""
    region = face_slice(box, (target.shape[1], target.shape[0]))
    return psnr(image[region], target[region]), sharpness(image, target, region)
