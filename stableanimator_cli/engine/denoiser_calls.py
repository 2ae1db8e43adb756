"""How often a sampling asks its denoiser, and for what: known before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stableanimator_cli.config.animate import SamplingConfig
from stableanimator_cli.diffusion.guidance import is_guided
from stableanimator_cli.diffusion.sampler import Churn, iterate_steps
from stableanimator_cli.diffusion.schedule import karras_sigmas


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """One time that the denoiser is asked: in which ``step``, whether it is ``guided`` (two branches a window), and
    whether the network is computed ``whole`` or takes deep features of an earlier one (``diffusion.reuse``). ``turn``:
    which placement of a plan's windows answers."""

    step: int
    guided: bool
    whole: bool
    turn: int


def evaluations_of(sampling: SamplingConfig) -> tuple[DenoiserCall, ...]:
    """All evaluations of a run in order.

    With ``cache_features`` N every N-th step is computed whole, in both evaluations where it has two (Heun). So is the
    first evaluation after guidance begins or ends: who answered for a window before may be another process then.
    Windows that move do so from step to step, or from one N-th step to the next: deep features are of a window.
    """
    low, high = sampling.guidance_interval or (0.0, math.inf)
    guided = is_guided(*sampling.guidance)
    found: list[DenoiserCall] = []
    for step, level in _levels(sampling):
        pulled = guided and low < level <= high
        turned = bool(found) and found[-1].guided != pulled
        turn, since = divmod(step, sampling.cache_features)
        found.append(DenoiserCall(step, pulled, turned or since == 0, turn))
    return tuple(found)


def resumable_steps(sampling: SamplingConfig) -> frozenset[int]:
    """Steps that a sampling can be taken up at knowing nothing but its latents: those that begin whole, and the end."""
    firsts: dict[int, bool] = {}
    for evaluation in evaluations_of(sampling):
        firsts.setdefault(evaluation.step, evaluation.whole)
    return frozenset(step for step, whole in firsts.items() if whole) | {sampling.steps}


def churn_of(sampling: SamplingConfig) -> Churn:
    return Churn(
        amount=sampling.churn,
        sigma_min=sampling.churn_min,
        sigma_max=sampling.churn_max,
        noise=sampling.churn_noise,
    )


def _levels(sampling: SamplingConfig) -> list[tuple[int, float]]:
    """Step and noise level of each time that the denoiser is asked."""
    steps = list(iterate_steps(karras_sigmas(sampling.steps)))
    if sampling.sampler == "euler":
        return [(step.index, step.sigma) for step in steps]
    churn = churn_of(sampling)
    pairs = [
        (step.index, level)
        for step in steps
        for level in (step.sigma * (1 + churn.gamma(step.sigma, step.total)), step.sigma_next)
    ]
    return [(index, level) for index, level in pairs if level > 0]
