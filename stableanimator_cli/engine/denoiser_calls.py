"""Calls of the denoiser in a sampling, known before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stableanimator_cli.config.animate import SamplingConfig
from stableanimator_cli.diffusion.guidance import is_guided
from stableanimator_cli.diffusion.noise_levels import SCHEDULES
from stableanimator_cli.diffusion.sampler import Churn, iterate_steps


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """One call: its ``step``, whether it is ``guided`` (two branches per window), whether it computes the full network
    (a ``refresh`` of ``diffusion.deepcache``), and its window ``placement``, modulo their number."""

    step: int
    guided: bool
    refresh: bool
    placement: int


def denoiser_calls(sampling: SamplingConfig) -> tuple[DenoiserCall, ...]:
    """All calls of a sampling, in order.

    With ``cache_features`` N every N-th step is a refresh, in both calls of a Heun step. So is the first call after
    guidance starts or ends, as another process may have computed the window before. Windows shift per refreshing step,
    because deep features belong to a window.
    """
    low, high = sampling.guidance_interval or (0.0, math.inf)
    guided = is_guided(*sampling.guidance)
    calls: list[DenoiserCall] = []
    for step, sigma in _steps_and_sigmas(sampling):
        in_interval = guided and low < sigma <= high
        changed = bool(calls) and calls[-1].guided != in_interval
        placement, since_refresh = divmod(step, sampling.cache_features)
        calls.append(DenoiserCall(step, in_interval, changed or since_refresh == 0, placement))
    return tuple(calls)


def resumable_steps(sampling: SamplingConfig) -> frozenset[int]:
    """Steps that a sampling can resume at from its checkpoint: those that start with a refresh, and the end."""
    first_calls = {call.step: call for call in reversed(denoiser_calls(sampling))}
    return frozenset(step for step, call in first_calls.items() if call.refresh) | {sampling.steps}


def churn_of(sampling: SamplingConfig) -> Churn:
    return Churn(
        amount=sampling.churn,
        sigma_min=sampling.churn_min,
        sigma_max=sampling.churn_max,
        noise=sampling.churn_noise,
    )


def _steps_and_sigmas(sampling: SamplingConfig) -> list[tuple[int, float]]:
    """Step and noise level of each call."""
    steps = list(iterate_steps(SCHEDULES[sampling.schedule](sampling.steps)))
    if sampling.sampler != "heun":
        return [(step.index, step.sigma) for step in steps]
    churn = churn_of(sampling)
    pairs = [
        (step.index, sigma)
        for step in steps
        for sigma in (step.sigma * (1 + churn.gamma(step.sigma, step.total)), step.sigma_next)
    ]
    return [(index, sigma) for index, sigma in pairs if sigma > 0]
