"""Classifier-free guidance per frame, and denoisers from a network, windows and guidance.

One evaluation calls the network once or twice per window. These calls are independent, so one process or several may
compute them. Outputs are summed in the order of the plan in either case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stableanimator_cli.diffusion import schedule
from stableanimator_cli.diffusion.sampler import Denoise
from stableanimator_cli.diffusion.schedule import Scalings
from stableanimator_cli.diffusion.windows import Window, WindowPlan

# scaled latents [t,c,h,w] of the window's frames, c_noise, the window, conditional branch? -> output [t,c,h,w]
Predict = Callable[[Tensor, float, Window, bool], Tensor]
WindowBranch = tuple[Window, bool]  # a window, conditional branch?
ScalingsOf = Callable[[float], Scalings]  # of a noise level; ``schedule.scalings`` are SVD's
# noisy latents [t,c,h,w], sigma -> output of each window branch, in order
WindowOutputs = Callable[[Tensor, float], Iterator[Tensor]]


def guidance_per_frame(first: float, last: float, frames: int) -> Tensor:
    """One strength per frame, linear from ``first`` to ``last`` -> float32[frames,1,1,1]."""
    return torch.linspace(first, last, frames).view(-1, 1, 1, 1)


def is_guided(first: float, last: float) -> bool:
    """Guidance of 1 or less everywhere is the conditional branch alone: one call instead of two."""
    return max(first, last) > 1.0


def window_branches(plan: WindowPlan, guidance: tuple[float, float]) -> tuple[WindowBranch, ...]:
    """Network calls of one evaluation: each window's conditional branch, then its unconditional one."""
    branches = (True, False) if is_guided(*guidance) else (True,)
    return tuple((window, conditional) for window in plan for conditional in branches)


def window_outputs(
    predict: Predict, branches: Sequence[WindowBranch], scalings: ScalingsOf = schedule.scalings
) -> WindowOutputs:
    """Call the network lazily, one window branch after the other."""
    placed: list[Tensor] = []  # frames per branch, moved to the device once

    def compute(x: Tensor, sigma: float) -> Iterator[Tensor]:
        if not placed:
            placed.extend(torch.tensor(window.frames).to(x.device) for window, _ in branches)
        scale = scalings(sigma)
        for (window, conditional), index in zip(branches, placed, strict=True):
            yield predict(x[index] * scale.c_in, scale.c_noise, window, conditional).to(x.dtype)

    return compute


def with_guidance_interval(interval: tuple[float, float], guided: Denoise, plain: Denoise) -> Denoise:
    """``guided`` if LO < sigma <= HI, else ``plain``, the conditional branch alone (Kynkaanniemi et al. 2024).

    An approximation that halves the network calls outside the interval.
    """
    low, high = interval

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return (guided if low < sigma <= high else plain)(x, sigma)

    return denoise


def alternate(denoisers: Sequence[Denoise], indices: Iterator[int]) -> Denoise:
    """Use ``denoisers[index]``, modulo their number, for the next of ``indices``: windows that shift between steps."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return denoisers[next(indices) % len(denoisers)](x, sigma)

    return denoise


def windowed_denoiser(
    predict: Predict,
    plan: WindowPlan,
    *,
    guidance: tuple[float, float],
    scalings: ScalingsOf = schedule.scalings,
    on_window: Callable[[], None] | None = None,
) -> Denoise:
    """A denoiser over the full video from a network that sees one window; see ``blended_denoiser``."""
    outputs = window_outputs(predict, window_branches(plan, guidance), scalings)
    return blended_denoiser(outputs, plan, guidance=guidance, scalings=scalings, on_window=on_window)


def blended_denoiser(
    outputs: WindowOutputs,
    plan: WindowPlan,
    *,
    guidance: tuple[float, float],
    scalings: ScalingsOf = schedule.scalings,
    on_window: Callable[[], None] | None = None,
) -> Denoise:
    """A denoiser over the full video from the ``outputs`` of ``window_branches(plan, guidance)``; see ``blender``."""
    blend = blender(plan, guidance=guidance, on_window=on_window)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        scale = scalings(sigma)
        return scale.skip * x + scale.out * blend(x, outputs(x, sigma))

    return denoise


def blender(
    plan: WindowPlan, *, guidance: tuple[float, float], on_window: Callable[[], None] | None = None
) -> Callable[[Tensor, Iterator[Tensor]], Tensor]:
    """(latents [t,c,h,w], outputs of ``window_branches(plan, guidance)``) -> the output of the full video.

    Each window has a conditional output and, if guided, an unconditional one. They are combined per frame
    (u + g (c - u)) and blended by the plan's weights. ``on_window`` is called after each window.
    """
    strength = guidance_per_frame(*guidance, plan.total)
    guided = is_guided(*guidance)
    placed: list[tuple[Tensor, Tensor, Tensor]] = []  # moved to the device once

    def blend(x: Tensor, outputs: Iterator[Tensor]) -> Tensor:
        if not placed:
            for window in plan:
                index = torch.tensor(window.frames)
                weights = torch.tensor(window.weights, dtype=x.dtype).view(-1, 1, 1, 1)
                placed.append((index.to(x.device), weights.to(x.device), strength[index].to(x)))
        output = torch.zeros_like(x)
        for index, weights, strength_t in placed:
            window_output = next(outputs)
            if guided:
                unconditional = next(outputs)
                window_output = unconditional + strength_t * (window_output - unconditional)
            output.index_add_(0, index, window_output * weights)
            if on_window is not None:
                on_window()
        return output

    return blend
