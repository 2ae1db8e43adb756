"""Noise levels and epsilon-prediction of models of 1000 discrete timesteps: Stable Diffusion with AnimateDiff.

A latent of DDIM (Song et al. 2021) is ``sqrt(a) clean + sqrt(1 - a) noise``. Divided by sqrt(a) it is ``clean + sigma
noise`` with sigma = sqrt((1 - a) / a), and DDIM's deterministic step is Euler's (Karras et al. 2022, Sec. 3): the
samplers, windows and face optimisation of ``sampler`` serve unchanged.

AnimateDiff and MagicAnimate use betas that are linear in the timestep, not in their square root as Stable Diffusion.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli.diffusion.schedule import Scalings
from stableanimator_cli.diffusion.training import Preconditioning

TIMESTEPS = 1000
BETAS = (0.00085, 0.012)
OFFSET = 1  # ``steps_offset`` of the published schedulers


@cache
def sigma_table() -> np.ndarray:
    """Noise level of every timestep, float64[1000], rising. Products are rounded to float32 like diffusers' tables."""
    betas = torch.linspace(*BETAS, TIMESTEPS, dtype=torch.float32)
    shares = torch.cumprod(1.0 - betas, dim=0).double().numpy()
    return np.sqrt((1 - shares) / shares)


def ddim_timesteps(steps: int) -> np.ndarray:
    """DDIM's timesteps for a number of steps ("leading" spacing), falling -> int64[steps]."""
    if not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"{steps} steps, expected 1 to {TIMESTEPS}")
    return np.minimum(np.arange(steps)[::-1] * (TIMESTEPS // steps) + OFFSET, TIMESTEPS - 1)


def ddim_sigmas(steps: int) -> Tensor:
    """``steps`` falling noise levels of DDIM's timesteps and a final zero -> float32[steps+1]."""
    return torch.from_numpy(np.append(sigma_table()[ddim_timesteps(steps)], 0.0).astype(np.float32))


def timestep_of(sigma: float) -> float:
    """The timestep of a noise level: interpolated in log sigma between those of the table, clamped at its ends."""
    return float(timesteps_of(torch.tensor([sigma], dtype=torch.float64))[0])


def timesteps_of(sigma: Tensor) -> Tensor:
    """``timestep_of`` for noise levels [b] -> float32[b]. Levels of the table, rounded to float32, are exact."""
    table = torch.from_numpy(np.log(sigma_table())).to(sigma.device)
    level = sigma.double().log()
    above = torch.searchsorted(table, level).clamp(1, TIMESTEPS - 1)
    share = (level - table[above - 1]) / (table[above] - table[above - 1])
    steps = above - 1 + share.clamp(0, 1)
    nearest = steps.round()
    return torch.where((steps - nearest).abs() < 1e-3, nearest, steps).float()  # levels of the table are rounded


def epsilon_scalings(sigma: float) -> Scalings:
    """Epsilon-prediction at one noise level > 0: the output is the noise of the scaled latents."""
    return Scalings(skip=1.0, out=-sigma, c_in=1.0 / math.sqrt(sigma * sigma + 1.0), c_noise=timestep_of(sigma))


def epsilon_preconditioning(sigma: Tensor) -> Preconditioning:
    """``epsilon_scalings`` for a batch of noise levels float32[b]."""
    sigma = sigma.float()
    one = torch.ones_like(sigma)
    return Preconditioning(skip=one, out=-sigma, c_in=(sigma.square() + 1).rsqrt(), c_noise=timesteps_of(sigma))


def uniform_timestep_sigmas(u: Tensor) -> Tensor:
    """Quantiles ``u`` in [0,1) -> noise levels of uniformly drawn timesteps, as float32: DDPM's training."""
    index = (u.double() * TIMESTEPS).long().clamp(0, TIMESTEPS - 1)
    return torch.from_numpy(sigma_table()[index.cpu().numpy()].astype(np.float32))
