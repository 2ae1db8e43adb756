"""Turn a batch into the tensors of a step: encode what is not cached, draw the noise.

Every draw is made on the CPU and keyed by (seed, purpose, sample index), so ranks, micro-batches and resumed runs
see the same noise.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from stableanimator_cli.diffusion.discrete import uniform_timestep_sigmas
from stableanimator_cli.diffusion.schedule import keyed_noise
from stableanimator_cli.diffusion.training import (
    interpolated_cosine_sigmas,
    keyed_uniform,
    log_normal_sigmas,
    stratified_quantiles,
)
from stableanimator_cli.engine.conditioning import degrade_faces
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.training.batch import Batch
from stableanimator_cli.engine.training.model import StepInputs, TrainingParts, TrainingSettings

_ENCODE_CHUNK = 4  # frames per call of the VAE encoder
_LOG_VARIANCE = (-30.0, 20.0)  # the bounds of diffusers' DiagonalGaussianDistribution


def step_inputs(parts: TrainingParts, batch: Batch, seed: int, global_batch: int) -> StepInputs:
    """Tensors of one step, on the training device. ``global_batch`` counts the samples of all ranks.

    ``batch`` is this rank's share or a micro-batch of it. Video latents are sampled from the posterior; the reference
    is its posterior's mode, as in animation.
    """
    settings, keys = parts.settings, [int(index) for index in batch.index]
    latents = _latents(parts, batch, seed, keys)
    reference = _reference(parts, batch, seed, keys)
    if settings.reference_degrade > 0:
        chosen = keyed_uniform(seed, "degrade", keys) < settings.reference_degrade
        noise = keyed_noise(seed, "degraded", keys, tuple(reference.shape[1:]))
        reference = degrade_faces(reference, batch.reference_box, chosen, noise)
    time_ids = torch.tensor([settings.fps - 1, settings.motion_bucket, settings.noise_aug], dtype=torch.float32)
    inputs = {
        "latents": latents,
        "noise": keyed_noise(seed, "noise", keys, tuple(latents.shape[1:])),
        "sigma": sigmas(settings, seed, batch.index, global_batch),
        "reference": reference,
        "image": _image_token(parts, batch).float(),
        "face": batch.face.float(),
        "has_face": (batch.has_face if batch.regions is None else batch.has_face.any(dim=1)).float(),
        "poses": batch.poses,
        "mask": batch.mask.float(),
        "time_ids": time_ids.expand(len(keys), 3),
        **dropout_masks(keyed_uniform(seed, "dropout", keys), settings),
    }
    if batch.regions is not None:
        inputs["regions"] = batch.regions.float()
    return StepInputs(**{name: value.to(parts.device, non_blocking=True) for name, value in inputs.items()})


def sigmas(settings: TrainingSettings, seed: int, index: Tensor, global_batch: int) -> Tensor:
    """Noise levels float32[b], one per stratum of the global batch."""
    u = stratified_quantiles(keyed_uniform(seed, "sigma", index.tolist()), index % global_batch, global_batch)
    if settings.sigma == "lognormal":
        return log_normal_sigmas(u, settings.sigma_mean, settings.sigma_std)
    if settings.sigma == "timesteps":
        return uniform_timestep_sigmas(u)
    return interpolated_cosine_sigmas(u)


def dropout_masks(u: Tensor, settings: TrainingSettings) -> dict[str, Tensor]:
    """``keep_*`` float32[b] by name from one uniform number per sample (``TrainingSettings.dropout_prob``)."""
    p = settings.dropout_prob
    no_image = u < 2 * p
    no_reference = (u >= p) & (u < 3 * p)
    nothing = no_image & no_reference if settings.dropout == "full" else torch.zeros_like(no_image)
    drops = {"image": no_image, "reference": no_reference, "face": nothing, "pose": nothing}
    return {f"keep_{name}": (~dropped).float() for name, dropped in drops.items()}


def _latents(parts: TrainingParts, batch: Batch, seed: int, keys: list[int]) -> Tensor:
    moments = batch.moments
    if moments is None:
        if batch.pixels is None:
            raise ValueError("the batch has neither pixels nor moments")
        moments = _encode(parts, batch.pixels.flatten(0, 1)).unflatten(0, batch.pixels.shape[:2])
    mean, log_variance = moments.float().chunk(2, dim=2)
    std = (0.5 * log_variance.clamp(*_LOG_VARIANCE)).exp()
    return (mean + std * keyed_noise(seed, "posterior", keys, tuple(mean.shape[1:]))) * parts.scaling


def _reference(parts: TrainingParts, batch: Batch, seed: int, keys: list[int]) -> Tensor:
    moments = batch.reference_moments
    if moments is None:
        if batch.reference_pixels is None:
            raise ValueError("the batch has neither pixels nor moments of the reference")
        noise = keyed_noise(seed, "reference", keys, tuple(batch.reference_pixels.shape[1:]))
        moments = _encode(parts, batch.reference_pixels + parts.settings.noise_aug * noise)
    return moments.float().chunk(2, dim=1)[0]


def _image_token(parts: TrainingParts, batch: Batch) -> Tensor:
    if batch.image_token is not None:
        return batch.image_token
    if batch.clip_pixels is None:
        raise ValueError("the batch has neither image tokens nor CLIP pixels")
    with torch.no_grad(), parts.networks.resident("image_encoder"):
        encoder = parts.networks["image_encoder"]
        weight = next(encoder.parameters())
        return encoder(pixel_values=batch.clip_pixels.to(weight.device, weight.dtype)).image_embeds[:, None]


def _encode(parts: TrainingParts, pixels: Tensor) -> Tensor:
    """Posterior moments [n,2c,h/8,w/8] of [n,3,h,w], float32 on the CPU, encoded a few frames at a time."""
    hint = "cache latents with --cache latents,embeddings, or use a smaller --sizes"
    with torch.no_grad(), parts.networks.resident("vae"), memory_guard("encoding the frames of a batch", hint):
        vae: AutoencoderKLTemporalDecoder = parts.networks["vae"]
        weight = next(vae.parameters())
        chunks = [
            vae.encode(chunk.to(weight.device, weight.dtype), return_dict=False)[0].parameters.float().cpu()
            for chunk in pixels.split(_ENCODE_CHUNK)
        ]
    return torch.cat(chunks)
