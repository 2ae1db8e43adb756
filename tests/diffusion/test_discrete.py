"""Epsilon-prediction at discrete timesteps: against diffusers' DDIM scheduler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from stableanimator_cli.diffusion.discrete import (
    TIMESTEPS,
    ddim_sigmas,
    ddim_timesteps,
    epsilon_preconditioning,
    epsilon_scalings,
    sigma_table,
    timestep_of,
    timesteps_of,
    uniform_timestep_sigmas,
)
from stableanimator_cli.diffusion.guidance import windowed_denoiser
from stableanimator_cli.diffusion.sampler import sample_euler
from stableanimator_cli.diffusion.schedule import initial_scale
from stableanimator_cli.diffusion.windows import plan_windows


def scheduler(steps: int, **settings: Any) -> DDIMScheduler:
    """As AnimateDiff's and MagicAnimate's: linear betas, leading timesteps with an offset of 1."""
    ddim = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1, clip_sample=False, **settings
    )
    ddim.set_timesteps(steps)
    return ddim


def network(x: Tensor, timestep: float) -> Tensor:
    """A stand-in of the network: bounded, dependent on both arguments."""
    return torch.tanh(x * 1.3 + math.sin(timestep / 100)) * 0.8 + 0.1 * x


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 50, 1000])
def test_timesteps_and_levels_are_those_of_ddim(steps):
    ddim = scheduler(steps)
    timesteps = ddim_timesteps(steps)
    assert timesteps.tolist() == ddim.timesteps.clamp(max=TIMESTEPS - 1).tolist()
    shares = ddim.alphas_cumprod[timesteps.copy()].double()
    torch.testing.assert_close(ddim_sigmas(steps)[:-1].double(), ((1 - shares) / shares).sqrt(), rtol=1e-6, atol=0)
    assert float(ddim_sigmas(steps)[-1]) == 0
    assert ddim.final_alpha_cumprod == 1


@pytest.mark.parametrize("steps", [2, 10, 25])
def test_euler_on_scaled_latents_is_ddim(steps):
    """x / sqrt(a) of DDIM's latents are those of the sampler, within 1e-5 of their size."""
    ddim = scheduler(steps)
    noise = torch.randn((5, 4, 6, 6), generator=torch.Generator().manual_seed(3))
    expected = noise.double()
    for timestep in ddim.timesteps:
        output = network(expected, float(timestep))
        expected = ddim.step(output, timestep, expected, return_dict=False)[0]
    sigmas = ddim_sigmas(steps)
    plan = plan_windows(5, length=5, overlap=0)
    denoise = windowed_denoiser(
        lambda x, c_noise, window, conditional: network(x, c_noise), plan,
        guidance=(1.0, 1.0), scalings=epsilon_scalings,
    )  # fmt: skip
    x = noise.double() * initial_scale(float(sigmas[0]))
    actual = sample_euler(denoise, x, sigmas)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_levels_of_the_table_have_whole_timesteps_and_others_lie_between():
    levels = torch.tensor(sigma_table(), dtype=torch.float32)
    assert timesteps_of(levels).tolist() == list(range(TIMESTEPS))
    between = math.sqrt(sigma_table()[400] * sigma_table()[401])
    assert timestep_of(between) == pytest.approx(400.5, abs=1e-3)
    assert timestep_of(1e-6) == 0
    assert timestep_of(1e6) == TIMESTEPS - 1


def test_the_scalings_recover_clean_latents_from_the_true_noise():
    clean, noise = (torch.randn(7, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    sigmas = torch.tensor([0.03, 0.7, 14.0])
    batch = epsilon_preconditioning(sigmas)
    for index, sigma in enumerate(sigmas.tolist()):
        scale = epsilon_scalings(sigma)
        noisy = clean + sigma * noise
        torch.testing.assert_close(scale.skip * noisy + scale.out * noise, clean, rtol=1e-4, atol=1e-4)
        assert scale.c_in * math.sqrt(1 + sigma**2) == pytest.approx(1)  # unit variance, DDIM's latents
        for name in ("skip", "out", "c_in", "c_noise"):
            assert float(getattr(batch, name)[index]) == pytest.approx(getattr(scale, name), rel=1e-5)


def test_training_draws_every_timestep_equally():
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    counts = torch.bincount(timesteps_of(uniform_timestep_sigmas(u)).long(), minlength=TIMESTEPS)
    assert counts.tolist() == [4] * TIMESTEPS


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_without_timesteps_is_refused(steps):
    with pytest.raises(ValueError, match="expected 1 to 1000"):
        ddim_timesteps(steps)
