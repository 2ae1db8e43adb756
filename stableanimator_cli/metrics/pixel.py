"""Metrics of a pair of frames, from pixels alone. Frames are uint8[h,w,3] RGB of one size; each function gives a float.

This field's tables use the evaluation code of DisCo (Wangt-CN/DisCo, ``tool/metrics``). Its definitions have names of
their own here, beside metrics that do not depend on the resolution. ``FRAME_METRICS`` lists all by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from stableanimator_cli.metrics.result import define

PEAK = 255.0
CAP = 100.0
"""DisCo's value for a frame without any error, in dB."""
_SSIM_SIDE = 7
_ROWS = 256  # rows of an SSIM map that are in memory at a time

FrameMetric = Callable[[np.ndarray, np.ndarray], float]
FRAME_METRICS: dict[str, FrameMetric] = {}


def _frame_metric(*args: Any, **spec: Any) -> Callable[[FrameMetric], FrameMetric]:
    """Decorate a function with the arguments of ``define``."""

    def enter(function: FrameMetric) -> FrameMetric:
        FRAME_METRICS[define(*args, **spec).name] = function
        return function

    return enter


@_frame_metric(
    "mae_unit", "L1 (0..1)", "lower", "mean |a - b| / 255 over pixels and channels",
    source="plain mean absolute error", range="0..1",
)  # fmt: skip
def mae_unit(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in shares of the range, whatever the resolution: 0..1."""
    return _absolute(a, b) / PEAK


@_frame_metric(
    "l1_disco", "L1 (DisCo)", "lower",
    "mean |a - b| in 0..255 over pixels and channels, divided by height x width once more",
    source="Wangt-CN/DisCo, tool/metrics", range="0..255/(hw); comparable at one resolution only",
)  # fmt: skip
def l1_disco(a: np.ndarray, b: np.ndarray) -> float:
    """The L1 of published tables (1e-4 at 256x256). The per-pixel mean is divided by the number of pixels a second
    time, so that it shrinks fourfold where both sides double: compare at one resolution only."""
    return _absolute(a, b) / (a.shape[0] * a.shape[1])


@_frame_metric(
    "psnr", "PSNR", "higher",
    "20 log10(255 / rmse) over pixels and channels of a frame, infinite for identical frames; mean of dB",
    source="equals scikit-image's peak_signal_noise_ratio with data_range 255", range="0..inf", unit="dB",
)  # fmt: skip
def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, infinite where the frames are identical."""
    return _decibels(_squared(a, b), math.inf)


@_frame_metric(
    "psnr_disco", "PSNR*", "higher", "as psnr, but 100 dB for identical frames",
    source="PSNR* of published tables: Wangt-CN/DisCo since commit 6190108", range="0..100", unit="dB",
)  # fmt: skip
def psnr_disco(a: np.ndarray, b: np.ndarray) -> float:
    """The tables' PSNR*: the ordinary PSNR, 100 where the frames are identical."""
    return _decibels(_squared(a, b), CAP)


@_frame_metric(
    "psnr_disco_overflow", "PSNR (overflow)", "higher",
    "PSNR of uint8 arithmetic: difference and square both wrap at 256; 100 dB where what is left is 0",
    source="PSNR of published tables: Wangt-CN/DisCo before commit 6190108 (its issue 86)",
    range="24.17..100; says little", unit="dB",
)  # fmt: skip
def psnr_disco_overflow(a: np.ndarray, b: np.ndarray) -> float:
    """The tables' PSNR without a star, an arithmetic fault, reproduced for comparison: ``(a - b) ** 2`` in uint8.

    Only |d| mod 128 matters, no square exceeds 249, so it never falls below 24.169 dB; an offset of 16 is "identical".
    It equals PSNR* where no difference exceeds 15.
    """
    check_pair(a, b)
    difference = a - b  # wraps, and is meant to
    return _decibels(float((difference * difference).mean(dtype=np.float64)), CAP)


@_frame_metric(
    "ssim", "SSIM", "higher",
    "grey uint8, uniform 7x7 window, sample covariance, K1 0.01, K2 0.03, range 255, 3 pixels cropped, mean",
    source="equals scikit-image's structural_similarity on OpenCV's grey; Wangt-CN/DisCo; Wang et al. 2004",
    range="-1..1",
)  # fmt: skip
def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity")
    in scikit-image's default variant on 8-bit grey. Not comparable with the Gaussian window or with colour.

    Written out rather than taken from scikit-image, whose result differs by up to 5e-15: window sums of integers are
    exact here, so scores are the same on every machine, and only some rows of the map are in memory at a time.
    Raises ``ValueError`` for frames with a side below 7 pixels.
    """
    check_pair(a, b)
    if min(a.shape[:2]) < _SSIM_SIDE:
        raise ValueError(f"SSIM looks at {_SSIM_SIDE}x{_SSIM_SIDE} pixels, the frames have {a.shape[1]}x{a.shape[0]}")
    x, y = grey(a).astype(np.int64), grey(b).astype(np.int64)
    height, width = x.shape[0] - _SSIM_SIDE + 1, x.shape[1] - _SSIM_SIDE + 1
    total = 0.0
    for row in range(0, height, _ROWS):
        rows = slice(row, min(row + _ROWS, height) + _SSIM_SIDE - 1)
        total += float(_ssim_map(x[rows], y[rows]).sum())
    return total / (height * width)


def grey(frame: np.ndarray) -> np.ndarray:
    """uint8[h,w,3] RGB -> uint8[h,w], bit by bit as OpenCV's BGR2GRAY (fixed point of 15 bits, half rounded up)."""
    mixed = frame.astype(np.int32) @ np.array([9798, 19235, 3735], np.int32)
    return ((mixed + (1 << 14)) >> 15).astype(np.uint8)


def check_pair(a: np.ndarray, b: np.ndarray) -> None:
    """``ValueError`` unless both are uint8[h,w,3] of one size and not empty."""
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"frames of {a.dtype} and {b.dtype}, expected uint8")
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3 or not a.size:
        raise ValueError(f"frames of shapes {a.shape} and {b.shape}, expected one [h,w,3]")


def _absolute(a: np.ndarray, b: np.ndarray) -> float:
    check_pair(a, b)
    return float(np.abs(a.astype(np.int16) - b).mean(dtype=np.float64))


def _squared(a: np.ndarray, b: np.ndarray) -> float:
    check_pair(a, b)
    difference = a.astype(np.int32) - b
    return float((difference * difference).mean(dtype=np.float64))


def _decibels(mse: float, perfect: float) -> float:
    return perfect if mse == 0 else 20 * math.log10(PEAK / math.sqrt(mse))


def _ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The index at each place where the whole window fits. Sums over windows are whole numbers, hence exact."""
    n = _SSIM_SIDE * _SSIM_SIDE
    sx, sy = _windows(x), _windows(y)
    # n (n - 1) times each (co)variance: the cancellation happens in whole numbers
    vx, vy, vxy = n * _windows(x * x) - sx * sx, n * _windows(y * y) - sy * sy, n * _windows(x * y) - sx * sy
    c1, c2 = (0.01 * PEAK) ** 2 * n * n, (0.03 * PEAK) ** 2 * n * (n - 1)
    top = (2 * sx * sy + c1) * (2 * vxy + c2)
    return top / ((sx * sx + sy * sy + c1) * (vx + vy + c2))


def _windows(values: np.ndarray) -> np.ndarray:
    """int64[h,w] -> sums over each 7x7 window, [h-6,w-6]."""
    for axis in (0, 1):
        sums = np.insert(values.cumsum(axis=axis), 0, 0, axis=axis)
        ahead, behind = [slice(None)] * 2, [slice(None)] * 2
        ahead[axis], behind[axis] = slice(_SSIM_SIDE, None), slice(None, -_SSIM_SIDE)
        values = sums[tuple(ahead)] - sums[tuple(behind)]
    return values
