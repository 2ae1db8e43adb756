"""Noise levels, keyed noise, and SVD's v-prediction as EDM scalings (Karras et al. 2022, Table 1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 700.0, 7.0  # Stable Video Diffusion's scheduler config

# Levels of "Align Your Steps" (Sabour et al. 2024) for Stable Video Diffusion, as published for ten steps.
AYS_SIGMAS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, SIGMA_MIN)


@dataclass(frozen=True, slots=True)
class Scalings:
    """Denoised estimate = skip * x + out * net(c_in * x, c_noise); x is clean latents + sigma * unit noise."""

    skip: float
    out: float
    c_in: float
    c_noise: float


def scalings(sigma: float) -> Scalings:
    """v-prediction with unit data variance, at one noise level > 0."""
    variance = sigma * sigma + 1.0
    return Scalings(
        skip=1.0 / variance,
        out=-sigma / math.sqrt(variance),
        c_in=1.0 / math.sqrt(variance),
        c_noise=0.25 * math.log(sigma),
    )


def karras_sigmas(
    steps: int, *, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """``steps`` falling noise levels and a final zero (Karras et al. 2022, Eq. 5) -> float32[steps+1].

    Computed in float64 and rounded once, so the values are those of diffusers' Euler scheduler to the bit.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps, expected at least 1")
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.from_numpy(np.append((high + ramp * (low - high)) ** rho, 0.0).astype(np.float32))


def ays_sigmas(steps: int) -> Tensor:
    """``steps`` falling noise levels of ``AYS_SIGMAS`` and a final zero -> float32[steps+1].

    Ten steps use the published levels. Other counts interpolate their logarithms over the share of steps done, as the
    authors do.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps, expected at least 1")
    published = np.linspace(0, 1, len(AYS_SIGMAS))
    levels = np.exp(np.interp(np.linspace(0, 1, steps + 1), published, np.log(AYS_SIGMAS)))
    return torch.from_numpy(np.append(levels[:-1], 0.0).astype(np.float32))


def initial_scale(sigma_max: float) -> float:
    """Scale of the initial noise: the standard deviation of noisy unit-variance data."""
    return math.sqrt(sigma_max * sigma_max + 1.0)


def keyed_noise(seed: int, name: str, keys: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """Unit noise [len(keys), *shape], one draw per key: a frame's noise does not depend on windows or batches.

    Drawn on the CPU from a generator seeded by SHA-256 of (seed, name, key), so devices agree and streams never
    overlap.
    """

    def draw(key: int) -> Tensor:
        digest = hashlib.sha256(f"{seed}/{name}/{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator)

    return torch.stack([draw(key) for key in keys])


def repeated_noise(
    seed: int, frames: int, period: int, latent_shape: tuple[int, int, int], image_shape: tuple[int, ...]
) -> Tensor:
    """The reference implementation's initial noise: ``period`` frames drawn and repeated -> [frames, *shape].

    One generator draws the noise of the reference image (``image_shape``) first, then the latents. Frames k and
    k + period start equal.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.randn(image_shape, generator=generator)
    tile = torch.randn((period, *latent_shape), generator=generator)
    return tile.repeat(-(-frames // period), 1, 1, 1)[:frames]


def image_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Noise added to the reference image before it is encoded: the first draw of the seed's generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
