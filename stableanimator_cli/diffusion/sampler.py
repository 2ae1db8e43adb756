"""Samplers: functions of a denoiser, with a hook on the denoised estimate for face optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step: ``index`` of ``total``, from noise level ``sigma`` to ``sigma_next``."""

    index: int
    total: int
    sigma: float
    sigma_next: float


Denoise = Callable[[Tensor, float], Tensor]  # noisy latents [t,c,h,w], sigma -> denoised estimate [t,c,h,w]
Refine = Callable[[Tensor, Step], Tensor]  # denoised estimate, step -> refined estimate
Noise = Callable[[int], Tensor]  # step index -> unit noise like the latents
StepCallback = Callable[[Tensor, Tensor, Step], None]  # latents after a step, its denoised estimate, the step


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """EDM's stochasticity: S_churn over the whole run, S_min, S_max (noise levels that churn) and S_noise."""

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """gamma of Algorithm 1, line 4: noise added before a step, relative to sigma."""
        in_range = self.sigma_min <= sigma <= self.sigma_max
        return min(self.amount / steps, math.sqrt(2) - 1) if in_range else 0.0


def iterate_steps(sigmas: Tensor, first_step: int = 0) -> Iterator[Step]:
    levels = [float(s) for s in sigmas]
    for index in range(first_step, len(levels) - 1):
        yield Step(index, len(levels) - 1, levels[index], levels[index + 1])


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    refine: Refine | None = None,
    callback: StepCallback | None = None,
    first_step: int = 0,
) -> Tensor:
    """Integrate the probability-flow ODE with Euler's method, as the reference implementation does. Latents in float32.

    To resume at ``first_step``, pass the latents that ``callback`` received after the step before.
    """
    for step in iterate_steps(sigmas, first_step):
        denoised = denoise(x, step.sigma)
        if refine is not None:
            denoised = refine(denoised, step)
        x = x + (x - denoised) / step.sigma * (step.sigma_next - step.sigma)
        if callback is not None:
            callback(x, denoised, step)
    return x


def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    churn: Churn | None = None,
    refine: Refine | None = None,
    callback: StepCallback | None = None,
    first_step: int = 0,
) -> Tensor:
    """Algorithm 1 of the paper (EDM's Algorithm 2): churn, Euler step, Heun correction.

    The second evaluation is not refined (Algorithm 1 optimises the first estimate only). ``noise(i)`` is drawn only in
    steps that churn. ``first_step`` is as for ``sample_euler``: the latents are the whole state of a step.
    """
    churn = churn or Churn()
    for step in iterate_steps(sigmas, first_step):
        gamma = churn.gamma(step.sigma, step.total)
        sigma_hat = step.sigma * (1 + gamma)
        if gamma > 0:
            std = math.sqrt(sigma_hat**2 - step.sigma**2) * churn.noise
            x = x + std * noise(step.index).to(x)
        denoised = denoise(x, sigma_hat)
        if refine is not None:
            denoised = refine(denoised, step)
        d = (x - denoised) / sigma_hat
        euler = x + (step.sigma_next - sigma_hat) * d
        if step.sigma_next > 0:
            d_prime = (euler - denoise(euler, step.sigma_next)) / step.sigma_next
            x = x + (step.sigma_next - sigma_hat) * (d + d_prime) / 2
        else:
            x = euler
        if callback is not None:
            callback(x, denoised, step)
    return x


def sample_dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    refine: Refine | None = None,
    callback: StepCallback | None = None,
    first_step: int = 0,
    previous: Tensor | None = None,
) -> Tensor:
    """DPM-Solver++(2M) of Lu et al. 2022 (Algorithm 2) in EDM's noise levels: second order with one evaluation a step.

    The refined estimates are those that it extrapolates. To resume at ``first_step``, pass the latents and, as
    ``previous``, the denoised estimate that ``callback`` received after the step before. The first step, the last
    one to noise level 0, and one after a step between equal levels are of first order.
    """
    levels = [float(sigma) for sigma in sigmas]
    for step in iterate_steps(sigmas, first_step):
        denoised = denoise(x, step.sigma)
        if refine is not None:
            denoised = refine(denoised, step)
        target = denoised
        # Two levels may be equal: a discrete schedule has its highest one twice with as many steps as timesteps.
        before = levels[step.index - 1] if previous is not None else step.sigma
        if previous is not None and before > step.sigma and step.sigma_next > 0:
            # Steps are even in -log sigma at best: ``ratio`` is this one's length over the last one's, halved.
            ratio = math.log(step.sigma / step.sigma_next) / math.log(before / step.sigma) / 2
            target = (1 + ratio) * denoised - ratio * previous
        x = target + (x - target) * (step.sigma_next / step.sigma)
        previous = denoised
        if callback is not None:
            callback(x, denoised, step)
    return x
