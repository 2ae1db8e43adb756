"""Image quality of a face: PSNR inside the face box, and sharpness."""

from __future__ import annotations

import numpy as np

from stableanimator_cli.bench.frontier_cases import face_slice, sharpness
from tools.bench.puppet_decoder import psnr as error_psnr


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images in decibels."""
    return error_psnr(image.astype(np.float64) - target.astype(np.float64))


def face_scores(image: np.ndarray, target: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """PSNR inside the face box, and sharpness there relative to the target's (1 is as sharp)."""
    region = face_slice(box, (target.shape[1], target.shape[0]))
    return psnr(image[region], target[region]), sharpness(image, target, region)
