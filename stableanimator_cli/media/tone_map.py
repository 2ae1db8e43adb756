"""High dynamic range to sRGB: video with the transfer functions HLG and PQ (ITU-R BT.2100), as phones record it.

Light at the reference white of BT.2408 (203 cd/m2) and below keeps its brightness up to a knee; highlights are
compressed to the rest, with the hue of each pixel unchanged.
"""

from __future__ import annotations

import functools

import numpy as np

PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273 (table 3): SMPTE ST 2084, ARIB STD-B67."""
BT2020 = 9
"""Colour primaries of ITU-T H.273 (table 2)."""
_WHITE, _PEAK = 203.0, 1000.0  # cd/m2: reference white of BT.2408, nominal peak of an HLG display
_KNEE = 0.7  # of white, above which light is compressed
_SYSTEM_GAMMA = 1.2  # BT.2100: of an HLG display with this peak
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's linear red, green and blue
_BT709_FROM_BT2020 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)  # ITU-R BT.2087, inverted


def is_high_dynamic_range(transfer: int) -> bool:
    return transfer in (PQ, HLG)


def to_srgb(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint8[h,w,3] of a frame with ``transfer`` (``PQ`` or ``HLG``) and ``primaries`` as sRGB uint8[h,w,3]."""
    light = _light(transfer)[pixels]
    if transfer == HLG:  # whose display shows scene light with a gamma of the luminance
        light *= ((light @ _LUMINANCE) ** (_SYSTEM_GAMMA - 1) * np.float32(_PEAK / _WHITE))[..., None]
    light *= _compression(light)[..., None]
    if primaries == BT2020:
        light = light @ _BT709_FROM_BT2020.T
    light = light.clip(0, 1)
    # sRGB's curve (IEC 61966-2-1). Its straight part ends at 0.04045, and is above the power below that.
    values = np.maximum(1.055 * light ** (1 / 2.4) - 0.055, np.minimum(12.92 * light, 0.04045))
    return np.rint(255 * values).astype(np.uint8)


def _compression(light: np.ndarray) -> np.ndarray:
    """Factor float32[h,w] of each pixel: 1 up to the knee; above it, highlights approach 1."""
    brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
    excess = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE)
    shown = np.minimum(brightest, _KNEE) + (1 - _KNEE) * (1 - np.exp(-excess))
    return shown / np.maximum(brightest, 1e-6)


@functools.cache
def _light(transfer: int) -> np.ndarray:
    """Light float32[256] of each value: of ``PQ`` relative to white, of ``HLG`` of the scene, 0 to 1 (BT.2100)."""
    signal = np.arange(256) / 255
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return (10000 / _WHITE * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype(np.float32)
