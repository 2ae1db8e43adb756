"""Augmentation of training images: compression, blur, noise, brightness and contrast."""

from __future__ import annotations

import cv2
import numpy as np


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Degrade an image uint8[h,w,3] at random, as a codec would: float32[h,w,3] in 0..255. Often it stays as it is."""
    if rng.random() < 0.25:
        quality = int(rng.integers(30, 90))
        coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        assert decoded is not None  # None is for damaged images
        image = decoded
    x = image.astype(np.float32)
    if rng.random() < 0.25:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.4, 1.4)))
    if rng.random() < 0.5:
        x = (x - 127.5) * float(rng.uniform(0.8, 1.2)) + 127.5 + rng.normal(0, 9, 3).astype(np.float32)
    if rng.random() < 0.3:
        x = x + rng.normal(0, float(rng.uniform(1, 9)), x.shape).astype(np.float32)
    return np.clip(x, 0, 255)
