"""Gradient magnitude similarity deviation (GMSD): a perceptual distance of two frames without weights.

Source: Xue, Zhang, Mou, Bovik, "Gradient Magnitude Similarity Deviation: A Highly Efficient Perceptual Image Quality
Index" (2014), with the constants of its authors' code.
"""

from __future__ import annotations

import cv2
import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])
_PREWITT = np.array([[1.0, 0.0, -1.0]] * 3) / 3
_CONSTANT = 170.0  # T of the paper, for values of 0 to 255


def gmsd(a: np.ndarray, b: np.ndarray) -> float:
    """Standard deviation of the similarity of gradients of two frames uint8[h,w,3]: 0 for equal ones, 0.35 is a lot.

    A blur or a halo that is the same everywhere counts less than one beside contours. Raises ``ValueError`` for frames
    of different sizes, or below 4 pixels per side.
    """
    if a.shape != b.shape or min(a.shape[:2]) < 4:
        raise ValueError(f"frames of {a.shape} and {b.shape}, expected one size of 4 pixels per side or more")
    first, second = _gradient(a), _gradient(b)
    similarity = (2 * first * second + _CONSTANT) / (first**2 + second**2 + _CONSTANT)
    return float(similarity.std(ddof=1))


def _gradient(image: np.ndarray) -> np.ndarray:
    """Magnitude of the gradient of the luma at half the size; outside the frame it is black."""
    luma = image.astype(np.float64) @ _LUMA
    height, width = (side // 2 * 2 for side in luma.shape)
    half = luma[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    sides = (
        cv2.filter2D(half, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT) for kernel in (_PREWITT, _PREWITT.T)
    )
    return np.hypot(*sides)
