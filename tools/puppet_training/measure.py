"""What the eye sees of a face, as numbers: error inside the face box, and sharpness."""

from __future__ import annotations

import cv2
import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])


def face_slice(box: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a face box (x0, y0, x1, y1) within an image of ``size`` (width, height)."""
    x0, y0 = (max(0, int(v)) for v in np.floor(box[:2]))
    x1, y1 = (min(side, int(v) + 1) for v, side in zip(np.ceil(box[2:]), size, strict=True))
    return slice(y0, y1), slice(x0, x1)


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images in decibels."""
    error = np.square(image.astype(np.float64) - target.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def laplacian_rms(image: np.ndarray, where: tuple[slice, slice]) -> float:
    """Root mean square of the Laplacian of the luma inside ``where``."""
    luma = np.ascontiguousarray(image.astype(np.float64) @ _LUMA)
    return float(np.sqrt(np.square(cv2.Laplacian(luma, cv2.CV_64F)[where]).mean()))


def face_scores(image: np.ndarray, target: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """PSNR inside the face box, and sharpness there as a share of the target's (1 is as sharp)."""
    where = face_slice(box, (target.shape[1], target.shape[0]))
    sharp = laplacian_rms(image, where) / max(laplacian_rms(target, where), 1e-9)
    return psnr(image[where], target[where]), sharp
