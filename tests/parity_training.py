"""Recordings of the reference implementation's training: noise levels, the picture encoder's resizing, the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stableanimator_cli.diffusion.training import (
    denoising_loss,
    interpolated_cosine_sigmas,
    preconditioning,
    stratified_quantiles,
)
from stableanimator_cli.engine.conditioning import antialiased_resize

Row = tuple[str, float, float]  # what was compared, the error, its limit


def noise(t: dict[str, Tensor], args: dict[str, Any]) -> list[Row]:
    """Levels of a stratified batch from recorded uniforms, of single draws from a seed, and the resize to 224."""
    batch = len(t["uniform"])
    ours = interpolated_cosine_sigmas(stratified_quantiles(t["uniform"], torch.arange(batch), batch))
    generator = torch.Generator().manual_seed(args["seed"] + 1)
    draws = torch.stack([torch.rand(1, generator=generator)[0] for _ in t["single_draws_seed12"]])
    single = interpolated_cosine_sigmas(stratified_quantiles(draws, torch.zeros(len(draws)), 1))
    return [
        ("sigmas, relative", _relative(ours, t["sigmas_batch4096"]), 1e-4),
        ("single draws, relative", _relative(single, t["single_draws_seed12"]), 1e-4),
        ("resize", float((antialiased_resize(t["resize_in"], 224, 224) - t["resize_out"]).abs().max()), 1e-4),
    ]


def loss(t: dict[str, Tensor]) -> list[Row]:
    """From latents, noise and the network's recorded answer to the loss."""
    sigma = t["sigmas"].flatten()
    scale = preconditioning(sigma)
    noisy = t["latents"] + sigma.view(-1, 1, 1, 1, 1) * t["noise"]
    skip, out, c_in = (x.view(-1, 1, 1, 1, 1) for x in (scale.skip, scale.out, scale.c_in))
    estimate = skip * noisy + out * t["model_pred"]
    ours = denoising_loss(estimate, t["latents"], sigma, t["masks_latent"], "released").mean()
    return [
        ("scaled input", float((c_in * noisy - t["model_input_scaled"]).abs().max()), 1e-5),
        ("timesteps", float((scale.c_noise - t["timesteps"]).abs().max()), 1e-6),
        ("mask", float((t["masks"][..., ::8, ::8] - t["masks_latent"]).abs().max()), 0.0),
        ("loss", float((ours - t["loss"]).abs()), 1e-5),
    ]


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs() / theirs).max())
