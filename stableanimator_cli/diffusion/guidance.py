"""Classifier-free guidance per frame, and the denoiser that windows and guidance make of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stableanimator_cli.diffusion.sampler import Denoise
from stableanimator_cli.diffusion.schedule import scalings
from stableanimator_cli.diffusion.windows import Window, WindowPlan

# scaled latents [t,c,h,w] of the window's frames, c_noise, the window, conditional branch? -> output [t,c,h,w]
Predict = Callable[[Tensor, float, Window, bool], Tensor]


def guidance_of_frames(first: float, last: float, frames: int) -> Tensor:
    """One strength a frame, linear from ``first`` to ``last`` -> float32[frames,1,1,1]."""
    return torch.linspace(first, last, frames).view(-1, 1, 1, 1)


def is_guided(first: float, last: float) -> bool:
    """Guidance of 1 or less everywhere is the conditional branch alone: one call instead of two."""
    return max(first, last) > 1.0


def windowed_denoiser(
    predict: Predict, plan: WindowPlan, *, guidance: tuple[float, float], done: Callable[[], None] | None = None
) -> Denoise:
    """A denoiser over the whole video from a network that sees one window.

    Every window is asked once (conditional branch) or twice (and unconditional), answers are blended by the plan's
    weights, guided per frame (u + g (c - u)) and turned into the clean estimate. ``done`` is called after each window.
    """
    strength = guidance_of_frames(*guidance, plan.total)
    guided = is_guided(*guidance)
    placed: list[tuple[Window, Tensor, Tensor, Tensor]] = []  # moved to the latents' device once, not once a step

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if not placed:
            for window in plan:
                index = torch.tensor(window.frames)
                weights = torch.tensor(window.weights, dtype=x.dtype).view(-1, 1, 1, 1)
                placed.append((window, index.to(x.device), weights.to(x.device), strength[index].to(x)))
        scale = scalings(sigma)
        output = torch.zeros_like(x)
        for window, index, weights, pull in placed:
            latents = x[index] * scale.c_in
            answer = predict(latents, scale.c_noise, window, True).to(x.dtype)
            if guided:
                free = predict(latents, scale.c_noise, window, False).to(x.dtype)
                answer = free + pull * (answer - free)
            output.index_add_(0, index, answer * weights)
            if done is not None:
                done()
        return scale.skip * x + scale.out * output

    return denoise
