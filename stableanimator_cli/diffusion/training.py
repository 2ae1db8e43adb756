"""Noise levels, preconditioning and the loss of training, as pure functions of tensors.

The interpolated-cosine levels are those of Hoogeboom et al. 2023 ("simple diffusion"), which StableAnimator's released
model was trained with; the log-normal ones are EDM's (Karras et al. 2022, §5). Letters: ``b`` sample, ``t`` frame.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stableanimator_cli.diffusion.schedule import SIGMA_MAX, SIGMA_MIN

MaskWeighting = Literal["released", "paper", "off"]
Prediction = Literal["v", "epsilon"]

IMAGE_SIDE, NOISE_SIDES, SIGMA_DATA = 64, (32, 64), 0.5  # of the released training
_EDGE = 1e-6  # the log-normal's quantile function is infinite at 0


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """``schedule.Scalings`` for a batch of noise levels: each float32[b]."""

    skip: Tensor
    out: Tensor
    c_in: Tensor
    c_noise: Tensor


def preconditioning(sigma: Tensor) -> Preconditioning:
    """v-prediction with unit data variance as EDM scalings; ``sigma`` float32[b], each > 0."""
    sigma = sigma.float()
    variance = sigma.square() + 1
    root = variance.sqrt()
    return Preconditioning(skip=1 / variance, out=-sigma / root, c_in=1 / root, c_noise=0.25 * sigma.log())


def interpolated_cosine_sigmas(u: Tensor) -> Tensor:
    """Quantiles ``u`` in [0,1) -> noise levels from 700 (u = 0) down to 0.002 (u = 1), as float32.

    The log signal-to-noise ratio is a mixture, by ``u`` itself, of two cosine schedules shifted to the sides of a
    image of 32 and of 64; the signal's standard deviation is 0.5.
    """
    u = u.double()
    low, high = (2 * math.log(SIGMA_DATA / sigma) for sigma in (SIGMA_MAX, SIGMA_MIN))  # log SNR

    def shifted(side: int) -> Tensor:
        shift = 2 * math.log(side / IMAGE_SIDE)
        first, last = (math.atan(math.exp(-(bound - shift) / 2)) for bound in (high, low))
        return -2 * torch.tan(first + (1 - u) * (last - first)).log() + shift

    log_snr = torch.lerp(shifted(NOISE_SIDES[0]), shifted(NOISE_SIDES[1]), u)
    return (SIGMA_DATA * torch.exp(-log_snr / 2)).float()


def log_normal_sigmas(u: Tensor, mean: float, std: float) -> Tensor:
    """Quantiles ``u`` in [0,1) -> log-normal noise levels within the sampler's range, increasing with ``u``."""
    normal = torch.special.ndtri(u.double().clamp(_EDGE, 1 - _EDGE))
    return (mean + std * normal).exp().clamp(SIGMA_MIN, SIGMA_MAX).float()


def stratified_quantiles(rand: Tensor, index: Tensor, batch: int) -> Tensor:
    """One quantile per stratum: ``(index + rand) / batch`` for positions 0..batch-1 of the global batch, float64."""
    return (index + rand.double()) / batch


def denoising_loss(
    denoised: Tensor,
    latents: Tensor,
    sigma: Tensor,
    mask: Tensor,
    weighting: MaskWeighting,
    *,
    prediction: Prediction = "v",
) -> Tensor:
    """Weighted squared error of the denoised estimate, averaged per sample -> float32[b].

    ``denoised`` and ``latents`` [b,t,c,h,w], ``sigma`` [b], ``mask`` [b,t,1,h,w] in 0..1 (1 on faces). The weight is
    (1 + sigma^2) / sigma^2, with ``prediction`` ``epsilon`` 1 / sigma^2: the squared error of the network's output;
    faces weigh (1 + M) (``released``, as in the reference implementation), (1 + M)^2
    (``paper``: StableAnimator, Eq. 13) or like the rest (``off``).
    """
    sigma = sigma.float().view(-1, 1, 1, 1, 1)
    gain = 1 + sigma.square() if prediction == "v" else torch.ones_like(sigma)
    error = (denoised.float() - latents.float()).square() * (gain / sigma.square())
    if weighting != "off":
        error = error * (1 + mask.float()) ** (2 if weighting == "paper" else 1)
    return error.flatten(1).mean(dim=1)


def keyed_uniform(seed: int, purpose: str, keys: Sequence[int]) -> Tensor:
    """One number in [0,1) per key, float64[len(keys)], from SHA-256 of (seed, purpose, key).

    So ranks, batch sizes and resumed runs agree.
    """

    def draw(key: int) -> float:
        digest = hashlib.sha256(f"{seed}/{purpose}/{key}".encode()).digest()
        return (int.from_bytes(digest[:8], "little") >> 11) * 2.0**-53

    return torch.tensor([draw(key) for key in keys], dtype=torch.float64)
