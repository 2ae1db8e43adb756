"""Pixel metrics against scikit-image, OpenCV, DisCo's own lines, and cases worked out by hand."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from stableanimator_cli.metrics.pixel import (
    FRAME_METRICS,
    grey,
    l1_disco,
    mae_unit,
    psnr,
    psnr_disco,
    psnr_disco_overflow,
    ssim,
)


def noisy_pair(height: int = 40, width: int = 56, sigma: float = 25, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), (width, height))
    changed = smooth + rng.normal(0, sigma, smooth.shape)
    return smooth, changed.clip(0, 255).astype(np.uint8)


def flat(level: int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize("sigma", [2, 25, 120])
def test_psnr_is_scikit_images(sigma):
    a, b = noisy_pair(sigma=sigma)
    expected = peak_signal_noise_ratio(a, b, data_range=255)
    assert psnr(a, b) == pytest.approx(expected, abs=1e-10)
    assert psnr_disco(a, b) == psnr(a, b)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (7, 40), (40, 56), (300, 33)])
@pytest.mark.parametrize("sigma", [2, 60])
def test_ssim_is_scikit_images_on_opencvs_grey(height, width, sigma):
    a, b = noisy_pair(height, width, sigma)
    ours = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b)]
    expected = structural_similarity(ours[0], ours[1], full=True)[0]  # type: ignore[index]
    assert ssim(a, b) == pytest.approx(float(expected), abs=1e-12)


def test_grey_is_opencvs_to_the_bit():
    frame = np.random.default_rng(2).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    assert (grey(frame) == cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)).all()


def test_the_overflow_is_discos_own_line():
    for seed in range(3):
        a, b = noisy_pair(sigma=90, seed=seed)
        mse = np.mean((a - b) ** 2)
        assert psnr_disco_overflow(a, b) == pytest.approx(20 * math.log10(255 / math.sqrt(mse)), abs=1e-12)


def test_l1_is_divided_by_the_size_twice():
    a, b = noisy_pair(256, 256)
    mae = np.abs(a.astype(float) - b).mean()
    assert l1_disco(a, b) == pytest.approx(mae / 65536, rel=1e-12)
    assert mae_unit(a, b) == pytest.approx(mae / 255, rel=1e-12)
    large = [np.kron(frame, np.ones((2, 2, 1), np.uint8)) for frame in (a, b)]
    assert l1_disco(large[0], large[1]) == pytest.approx(l1_disco(a, b) / 4, rel=1e-12)
    assert mae_unit(large[0], large[1]) == pytest.approx(mae_unit(a, b), rel=1e-12)


def test_identical_frames():
    a, _ = noisy_pair()
    told = {name: function(a, a.copy()) for name, function in FRAME_METRICS.items()}
    assert told == {
        "mae_unit": 0,
        "l1_disco": 0,
        "psnr": math.inf,
        "psnr_disco": 100,
        "psnr_disco_overflow": 100,
        "ssim": 1,
    }


def test_an_offset_of_sixteen_overflows_to_identical():
    assert psnr_disco_overflow(flat(40), flat(56)) == 100
    assert psnr(flat(40), flat(56)) == pytest.approx(20 * math.log10(255 / 16), abs=1e-12)
    assert psnr_disco(flat(40), flat(56)) == pytest.approx(20 * math.log10(255 / 16), abs=1e-12)


def test_black_against_white():
    black, white = flat(0), flat(255)
    assert mae_unit(black, white) == 1
    assert l1_disco(black, white) == pytest.approx(255 / (16 * 24))
    assert psnr(black, white) == 0
    assert psnr_disco_overflow(black, white) == pytest.approx(20 * math.log10(255))  # 255 wraps to a difference of 1
    c1 = (0.01 * 255) ** 2
    assert ssim(black, white) == pytest.approx(c1 / (255**2 + c1), rel=1e-12)


def test_small_differences_do_not_overflow():
    rng = np.random.default_rng(4)
    a = rng.integers(15, 241, (32, 32, 3), dtype=np.uint8)
    b = (a.astype(int) + rng.integers(-15, 16, a.shape)).astype(np.uint8)
    assert psnr_disco_overflow(a, b) == pytest.approx(psnr(a, b), abs=1e-12)


def test_the_overflow_has_a_floor_that_the_truth_has_not():
    squares = {d: (d * d) % 256 for d in range(256)}
    worst = max(squares, key=lambda d: squares[d])
    assert squares[worst] == 249
    assert psnr_disco_overflow(flat(0), flat(worst)) == pytest.approx(24.169, abs=1e-3)
    for seed in range(4):
        a, b = (np.random.default_rng([seed, n]).integers(0, 256, (64, 64, 3), dtype=np.uint8) for n in (0, 1))
        assert psnr_disco_overflow(a, b) > 24.169 > 10 > psnr(a, b)
        assert psnr_disco_overflow(a, b) == pytest.approx(27.9, abs=0.3)


@pytest.mark.parametrize("name", FRAME_METRICS)
def test_only_uint8_pictures_of_one_size_are_compared(name):
    metric, a = FRAME_METRICS[name], flat(3)
    with pytest.raises(ValueError, match="uint8"):
        metric(a, a.astype(np.float32))
    for other in (flat(3, 24, 16), a[:, :, :1], a[..., 0]):
        with pytest.raises(ValueError, match="shapes"):
            metric(a, other)
    with pytest.raises(ValueError, match="shapes"):
        metric(a[:0], a[:0])


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match="7x7 pixels, the frames have 24x6"):
        ssim(flat(1, 6), flat(1, 6))


@pytest.mark.parametrize("name", FRAME_METRICS)
def test_frames_are_left_as_they_were(name):
    a, b = noisy_pair()
    before = a.copy(), b.copy()
    FRAME_METRICS[name](a, b)
    assert (a == before[0]).all()
    assert (b == before[1]).all()
