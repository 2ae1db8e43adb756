"""Noise levels, scalings and the noise itself, which belongs to a seed and a frame."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from torch import Tensor

from stableanimator_cli.diffusion.schedule import (
    ays_sigmas,
    image_noise,
    initial_scale,
    karras_sigmas,
    keyed_noise,
    repeated_noise,
    scalings,
)

SHAPE = (4, 3, 5)


def scheduler(steps: int) -> EulerDiscreteScheduler:
    """Stable Video Diffusion's, as its config has it."""
    made = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )
    made.set_timesteps(steps)
    return made


# numpy's complaint is about how diffusers makes an array of a tensor
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 2, 3, 25, 50])
def test_noise_levels_are_those_of_diffusers_to_the_bit(steps):
    theirs = scheduler(steps)
    sigmas = karras_sigmas(steps)
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, theirs.sigmas)
    assert initial_scale(float(sigmas[0])) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-7)
    told = torch.tensor([scalings(float(sigma)).c_noise for sigma in sigmas[:-1]])
    assert torch.allclose(told, theirs.timesteps.float(), atol=1e-6)


def test_ten_levels_of_align_your_steps_are_those_of_diffusers():
    assert torch.equal(ays_sigmas(10), torch.tensor(AysSchedules["StableDiffusionVideoSigmas"]))


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 25])
def test_other_counts_interpolate_the_logarithms(steps):
    sigmas, published = ays_sigmas(steps), ays_sigmas(10)
    assert len(sigmas) == steps + 1
    assert (sigmas[0], sigmas[-1]) == (700, 0)
    assert (sigmas[:-1] > sigmas[1:]).all()
    if steps == 20:  # every second one is published, the others are geometric means
        assert torch.allclose(sigmas[::2], published)
        assert torch.allclose(sigmas[1:-2:2], (published[:-2] * published[1:-1]).sqrt())
    if steps == 5:
        assert torch.allclose(sigmas, published[::2])


@pytest.mark.parametrize("schedule", [karras_sigmas, ays_sigmas])
def test_fewer_than_one_step_is_refused(schedule):
    with pytest.raises(ValueError, match="0 steps"):
        schedule(0)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 1.0, 40.0, 700.0])
def test_a_perfect_network_gives_the_clean_latents_back(sigma):
    """v = (noise - sigma * clean) / sqrt(1 + sigma^2) at x = clean + sigma * noise."""
    clean, noise = (torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    x, scale = clean + sigma * noise, scalings(sigma)
    v = (noise - sigma * clean) / math.sqrt(1 + sigma**2)
    assert torch.allclose(scale.skip * x + scale.out * v, clean, atol=1e-9)
    assert float((scale.c_in * x).var()) == pytest.approx(1, abs=0.5)
    assert scale.c_in**2 * (1 + sigma**2) == pytest.approx(1)


def test_keyed_noise_belongs_to_seed_name_and_frame():
    whole = keyed_noise(3, "latents", range(10), SHAPE)
    assert torch.equal(keyed_noise(3, "latents", range(4), SHAPE), whole[:4])  # a shorter video is a prefix
    assert torch.equal(keyed_noise(3, "latents", [7, 2], SHAPE), whole[[7, 2]])  # however it is cut
    for other in (keyed_noise(4, "latents", range(10), SHAPE), keyed_noise(3, "churn/0", range(10), SHAPE)):
        assert (other - whole).abs().amax((1, 2, 3)).min() > 0.1


def test_keyed_noise_is_unit_noise_and_frames_are_independent():
    noise = keyed_noise(0, "latents", range(50), (4, 8, 8)).flatten(1)
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    correlations = torch.corrcoef(noise)[~torch.eye(50, dtype=torch.bool)]
    assert float(correlations.abs().max()) < 0.35


def test_streams_of_neighbouring_seeds_and_frames_do_not_meet():
    """Seed s, frame k + 1 must not be seed s + 1, frame k."""
    drawn = [keyed_noise(seed, "latents", [frame], (8,)) for seed in range(5) for frame in range(-1, 5)]
    assert len({tuple(row.flatten().tolist()) for row in drawn}) == 30


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    keyed_noise(0, "latents", range(3), SHAPE)
    repeated_noise(0, 5, 2, SHAPE, (1, 3, 8, 8))
    image_noise(0, (1, 3, 8, 8))
    assert torch.equal(torch.rand(3), expected)


def tile(seed: int, period: int, picture: tuple[int, ...]) -> Tensor:
    """The reference's order of draws from one generator."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(picture, generator=generator)
    return torch.randn((1, period, *SHAPE), generator=generator)[0]


@pytest.mark.parametrize("frames", [1, 3, 4, 9])
def test_repeated_noise_starts_every_period_anew_after_the_pictures_draw(frames):
    picture = (1, 3, 24, 40)
    noise = repeated_noise(6, frames, 4, SHAPE, picture)
    drawn = tile(6, 4, picture)
    assert noise.shape == (frames, *SHAPE)
    assert all(torch.equal(noise[k], drawn[k % 4]) for k in range(frames))
    assert torch.equal(image_noise(6, picture), torch.randn(picture, generator=torch.Generator().manual_seed(6)))
