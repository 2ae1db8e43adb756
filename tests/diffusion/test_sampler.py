"""Samplers against the closed form for Gaussian data, whose denoiser and probability-flow ODE are known exactly.

Data N(mu, s^2): D(x, sigma) = (s^2 x + sigma^2 mu) / (s^2 + sigma^2), and along the ODE
x(sigma) = mu + (x(sigma_0) - mu) sqrt((s^2 + sigma^2) / (s^2 + sigma_0^2)).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from torch import Tensor

from stableanimator_cli.diffusion.sampler import Churn, Step, iterate_steps, sample_dpmpp_2m, sample_euler, sample_heun
from stableanimator_cli.diffusion.schedule import ays_sigmas, karras_sigmas, scalings

MU, S = 0.7, 0.5
SHAPE = (2, 4, 3, 3)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    return (S**2 * x + sigma**2 * MU) / (S**2 + sigma**2)


def start(sigmas: Tensor) -> Tensor:
    noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    return MU + noise * math.hypot(S, float(sigmas[0]))


def exact(x: Tensor, sigmas: Tensor, upto: int = -1) -> Tensor:
    first, last = float(sigmas[0]), float(sigmas[upto])
    return MU + (x - MU) * math.hypot(S, last) / math.hypot(S, first)


def no_noise(step: int) -> Tensor:
    raise AssertionError(f"noise drawn at step {step}")


def error(sampler: str, steps: int) -> float:
    sigmas = karras_sigmas(steps, sigma_min=0.002, sigma_max=20.0).double()
    x = start(sigmas)
    run = sample_euler(gaussian, x, sigmas) if sampler == "euler" else sample_heun(gaussian, x, sigmas, noise=no_noise)
    return float((run - exact(x, sigmas)).abs().max())


def test_euler_equals_its_own_recurrence_in_closed_form():
    """For this denoiser one Euler step multiplies x - mu by 1 + (sigma' - sigma) sigma / (s^2 + sigma^2)."""
    sigmas = karras_sigmas(7).double()
    x = start(sigmas)
    levels = itertools.pairwise(sigmas.tolist())
    factor = math.prod(1 + (after - now) * now / (S**2 + now**2) for now, after in levels)
    assert torch.allclose(sample_euler(gaussian, x, sigmas), MU + (x - MU) * factor, rtol=1e-9, atol=1e-9)


def test_both_samplers_come_to_the_exact_solution():
    assert error("euler", 400) < 0.02
    assert error("heun", 100) < 0.004


def test_euler_is_of_first_and_heun_of_second_order():
    euler = [error("euler", steps) for steps in (40, 80, 160)]
    heun = [error("heun", steps) for steps in (40, 80, 160)]
    assert [a / b for a, b in itertools.pairwise(euler)] == pytest.approx([2, 2], rel=0.15)
    assert [a / b for a, b in itertools.pairwise(heun)] == pytest.approx([4, 4], rel=0.25)
    assert heun[0] < euler[0] / 5


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_one_step_is_the_denoisers_answer(sampler):
    sigmas = karras_sigmas(1).double()
    x = start(sigmas)
    run = sample_euler(gaussian, x, sigmas) if sampler == "euler" else sample_heun(gaussian, x, sigmas, noise=no_noise)
    assert torch.allclose(run, gaussian(x, float(sigmas[0])), atol=1e-9)


def test_steps_are_numbered_and_end_at_zero():
    sigmas = karras_sigmas(4)
    steps = list(iterate_steps(sigmas))
    assert [(s.index, s.total) for s in steps] == [(k, 4) for k in range(4)]
    assert [s.sigma for s in steps] == sigmas[:-1].tolist()
    assert [s.sigma_next for s in steps] == sigmas[1:].tolist()


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_hook_is_called_once_a_step_with_the_first_estimate(sampler):
    sigmas = karras_sigmas(5).double()
    asked: list[tuple[float, Tensor]] = []
    refined: list[tuple[Step, Tensor]] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        clean = gaussian(x, sigma)
        asked.append((sigma, clean))
        return clean

    def refine(clean: Tensor, step: Step) -> Tensor:
        refined.append((step, clean))
        return clean

    x = start(sigmas)
    if sampler == "euler":
        sample_euler(denoise, x, sigmas, refine=refine)
        first = asked
    else:
        sample_heun(denoise, x, sigmas, noise=no_noise, refine=refine)
        first = asked[::2]  # every second evaluation is Heun's correction, but the last step has none
        assert len(asked) == 2 * 5 - 1
    assert [step for step, _ in refined] == list(iterate_steps(sigmas))
    for (step, given), (sigma, answer) in zip(refined, first, strict=True):
        assert sigma == step.sigma
        assert given is answer


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_what_the_hook_returns_is_what_is_stepped_towards(sampler):
    """With the estimate replaced in the last step, the result is that replacement: sigma goes to zero there."""
    sigmas = karras_sigmas(3).double()
    wanted = torch.full(SHAPE, 9.0, dtype=torch.float64)

    def refine(clean: Tensor, step: Step) -> Tensor:
        return wanted if step.index == step.total - 1 else clean

    x = start(sigmas)
    if sampler == "euler":
        result = sample_euler(gaussian, x, sigmas, refine=refine)
    else:
        result = sample_heun(gaussian, x, sigmas, noise=no_noise, refine=refine)
    assert torch.allclose(result, wanted)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_who_observes_sees_the_latents_after_every_step(sampler):
    sigmas = karras_sigmas(3).double()
    seen: list[tuple[Tensor, Step]] = []
    x = start(sigmas)
    if sampler == "euler":
        result = sample_euler(gaussian, x, sigmas, callback=lambda x, denoised, step: seen.append((x, step)))
    else:
        result = sample_heun(
            gaussian, x, sigmas, noise=no_noise, callback=lambda x, denoised, step: seen.append((x, step))
        )
    assert [step.index for _, step in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][0], result)


def test_churn_puts_back_noise_of_the_right_variance():
    """After churn x must be as noisy as sigma (1 + gamma) says: added variance (sigma_hat^2 - sigma^2) S_noise^2."""
    sigmas = torch.tensor([10.0, 4.0, 0.0], dtype=torch.float64)
    churn = Churn(amount=0.5, noise=1.1)
    gamma = 0.25
    assert churn.gamma(10.0, 2) == gamma
    levels: list[float] = []
    inputs: list[Tensor] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        inputs.append(x)
        return torch.zeros_like(x)

    unit = torch.randn((50, 40, 40), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.zeros_like(unit)
    sample_heun(denoise, x, sigmas, noise=lambda step: unit, churn=churn)
    assert levels[0] == pytest.approx(12.5)
    assert levels[1:] == pytest.approx([4.0, 5.0])
    assert float(inputs[0].var()) == pytest.approx((12.5**2 - 10**2) * 1.1**2, rel=0.02)


def test_churn_is_limited_and_keeps_to_its_levels():
    churn = Churn(amount=1000, sigma_min=1, sigma_max=50)
    assert churn.gamma(10, 25) == pytest.approx(math.sqrt(2) - 1)
    assert [churn.gamma(sigma, 25) for sigma in (0.5, 50.1)] == [0, 0]
    assert [Churn(amount=5).gamma(sigma, 25) for sigma in (0.002, 700)] == [0.2, 0.2]


def test_noise_is_drawn_only_in_steps_that_churn():
    sigmas = torch.tensor([100.0, 20.0, 5.0, 0.5, 0.0], dtype=torch.float64)
    drawn: list[int] = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.zeros(SHAPE, dtype=torch.float64)

    sample_heun(gaussian, start(sigmas), sigmas, noise=noise, churn=Churn(amount=1, sigma_min=1, sigma_max=50))
    assert drawn == [1, 2]


def test_the_distribution_stays_right_under_churn():
    """Stochastic sampling of a Gaussian ends in that Gaussian."""
    sigmas = karras_sigmas(60, sigma_min=0.01, sigma_max=30.0).double()
    generator = torch.Generator().manual_seed(2)
    shape = (20000,)
    x = MU + torch.randn(shape, dtype=torch.float64, generator=generator) * math.hypot(S, 30.0)
    end = sample_heun(
        gaussian,
        x,
        sigmas,
        noise=lambda _: torch.randn(shape, dtype=torch.float64, generator=generator),
        churn=Churn(amount=20),
    )
    assert float(end.mean()) == pytest.approx(MU, abs=0.02)
    assert float(end.std()) == pytest.approx(S, abs=0.02)


def multistep(x: Tensor, sigmas: Tensor, **options) -> Tensor:
    return sample_dpmpp_2m(gaussian, x, sigmas, **options)


def test_the_multistep_solver_is_of_second_order_with_one_evaluation_a_step():
    """Levels even in log sigma, as the method assumes, down to a last one that is not zero."""

    def error_of(steps: int) -> float:
        sigmas = torch.logspace(math.log10(20), math.log10(0.05), steps + 1, dtype=torch.float64)
        x = start(sigmas)
        return float((multistep(x, sigmas) - exact(x, sigmas)).abs().max())

    errors = [error_of(steps) for steps in (40, 80, 160)]
    assert [a / b for a, b in itertools.pairwise(errors)] == pytest.approx([4, 4], rel=0.25)


@pytest.mark.parametrize("schedule", [karras_sigmas, ays_sigmas])
def test_the_multistep_solver_is_that_of_diffusers(schedule):
    sigmas = schedule(9).double()
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=1.0, prediction_type="v_prediction", euler_at_final=True)
    scheduler.set_timesteps(9)
    scheduler.sigmas = sigmas
    theirs = ours = start(sigmas)
    for timestep, sigma in zip(scheduler.timesteps, sigmas[:-1].tolist(), strict=True):
        scale = scalings(sigma)
        output = (gaussian(theirs, sigma) - scale.skip * theirs) / scale.out
        scheduler.is_scale_input_called = True
        theirs = scheduler.step(output, timestep, theirs).prev_sample
    assert torch.allclose(multistep(ours, sigmas), theirs, rtol=1e-9, atol=1e-9)


def test_the_multistep_solver_extrapolates_refined_estimates():
    sigmas = karras_sigmas(3).double()
    wanted = torch.full(SHAPE, 9.0, dtype=torch.float64)
    seen: list[Tensor] = []
    multistep(
        start(sigmas), sigmas, refine=lambda clean, step: wanted, callback=lambda x, clean, step: seen.append(clean)
    )
    assert all(clean is wanted for clean in seen)
    assert torch.allclose(multistep(start(sigmas), sigmas, refine=lambda clean, step: wanted), wanted)


def test_the_multistep_solver_passes_equal_levels():
    """DDIM's levels of 1000 steps begin with the highest one twice: a step of no length, then one of first order."""
    levels = [20.0, 20.0, 5.0, 1.0, 0.0]
    x = start(torch.tensor(levels))
    assert torch.equal(multistep(x, torch.tensor(levels)), multistep(x, torch.tensor(levels[1:])))
