"""GMSD against its authors' formulas, written with plain convolutions, and against what it is for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.signal import convolve2d
from skimage import data

from stableanimator_cli.metrics.gradient_similarity import gmsd


def _published(a: np.ndarray, b: np.ndarray) -> float:
    """The authors' lines: average of 2x2, every second pixel, Prewitt with zeros outside, std of the map."""
    kernel, magnitudes = np.array([[1, 0, -1]] * 3) / 3, []
    for image in (a, b):
        luma = image.astype(float) @ [0.299, 0.587, 0.114]
        half = convolve2d(luma, np.full((2, 2), 0.25))[1::2, 1::2]
        x, y = (convolve2d(half, k, mode="same") for k in (kernel, kernel.T))
        magnitudes.append(np.sqrt(x**2 + y**2))
    m, n = magnitudes
    return float(np.std((2 * m * n + 170) / (m**2 + n**2 + 170), ddof=1))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:128, 128:288])


def test_it_is_the_published_formula(image: np.ndarray) -> None:
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    assert gmsd(image, noisy) == pytest.approx(_published(image, noisy), rel=1e-12)
    assert gmsd(image, noisy) == gmsd(noisy, image)
    assert gmsd(image, image) == 0


def test_a_blur_costs_more_than_a_shade_of_the_same_psnr(image: np.ndarray) -> None:
    blurred = cv2.GaussianBlur(image, (0, 0), 1.5)
    error = np.square(blurred.astype(float) - image).mean() ** 0.5
    shaded = np.clip(image.astype(float) + np.where(image < 128, error, -error), 0, 255).round().astype(np.uint8)
    assert gmsd(image, blurred) > gmsd(image, cv2.GaussianBlur(image, (0, 0), 0.8)) > 0
    brighter = np.clip(image.astype(float) + error, 0, 255).round().astype(np.uint8)
    assert gmsd(image, blurred) > 3 * gmsd(image, brighter)
    assert gmsd(image, shaded) > 0


def test_frames_of_two_sizes_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one size"):
        gmsd(image, image[:-2])
    with pytest.raises(ValueError, match="4 pixels"):
        gmsd(image[:3], image[:3])
