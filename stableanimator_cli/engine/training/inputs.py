"""From a batch of the loader to a step's tensors: encodes what is not cached and draws what is random.

Every draw is keyed by (seed, purpose, the sample's index in the whole training) and made on the CPU: ranks, micro
batches and resumed runs see the same noise.
"""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from stableanimator_cli.diffusion.schedule import keyed_noise
from stableanimator_cli.diffusion.training import (
    interpolated_cosine_sigmas,
    keyed_uniform,
    log_normal_sigmas,
    stratified_quantiles,
)
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.training.model import StepInputs, TrainingParts, TrainingSettings

ENCODED_AT_ONCE = 4  # frames in the VAE's encoder
_LOG_VARIANCE = (-30.0, 20.0)  # as diffusers bounds a posterior's


class SampleBatch(Protocol):
    """The part of ``train.batch.Batch`` that a step needs; its docstring says what each field is."""

    @property
    def index(self) -> Tensor: ...
    @property
    def pixels(self) -> Tensor | None: ...
    @property
    def moments(self) -> Tensor | None: ...
    @property
    def reference_pixels(self) -> Tensor | None: ...
    @property
    def reference_moments(self) -> Tensor | None: ...
    @property
    def clip_pixels(self) -> Tensor | None: ...
    @property
    def image_token(self) -> Tensor | None: ...
    @property
    def face(self) -> Tensor: ...
    @property
    def has_face(self) -> Tensor: ...
    @property
    def poses(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def reference_box(self) -> Tensor: ...


def step_inputs(parts: TrainingParts, batch: SampleBatch, seed: int, global_batch: int) -> StepInputs:
    """``global_batch`` samples of all ranks make one step; ``batch`` is this rank's share, or a part of it.

    Latents are drawn anew from the posterior each time, the reference is its posterior's mode (as in animation).
    """
    settings, keys = parts.settings, [int(index) for index in batch.index]
    latents = _latents(parts, batch, seed, keys)
    reference = _reference(parts, batch, seed, keys)
    if settings.reference_degrade > 0:
        chosen = keyed_uniform(seed, "degrade", keys) < settings.reference_degrade
        spots = keyed_noise(seed, "degraded", keys, tuple(reference.shape[1:]))
        reference = degrade_faces(reference, batch.reference_box, chosen, spots)
    keeps = kept(keyed_uniform(seed, "dropout", keys), settings)
    told = torch.tensor([settings.fps - 1, settings.motion_bucket, settings.noise_aug], dtype=torch.float32)
    inputs = {
        "latents": latents,
        "noise": keyed_noise(seed, "noise", keys, tuple(latents.shape[1:])),
        "sigma": sigmas(settings, seed, batch.index, global_batch),
        "reference": reference,
        "image": _image_token(parts, batch).float(),
        "face": batch.face.float(),
        "has_face": batch.has_face.float(),
        "poses": batch.poses,
        "mask": batch.mask.float(),
        "time_ids": told.expand(len(keys), 3),
    }
    on_device = {name: value.to(parts.device, non_blocking=True) for name, value in (inputs | keeps).items()}
    return StepInputs(**on_device)


def sigmas(settings: TrainingSettings, seed: int, index: Tensor, global_batch: int) -> Tensor:
    """Noise levels float32[b], one a stratum of the global batch."""
    u = stratified_quantiles(keyed_uniform(seed, "sigma", index.tolist()), index % global_batch, global_batch)
    if settings.sigma == "lognormal":
        return log_normal_sigmas(u, settings.sigma_mean, settings.sigma_deviation)
    return interpolated_cosine_sigmas(u)


def kept(u: Tensor, settings: TrainingSettings) -> dict[str, Tensor]:
    """Dropout from one number a sample, as ``TrainingSettings`` tells it: ``keep_*`` float32[b] by name."""
    share = settings.dropout_share
    no_image = u < 2 * share
    no_reference = (u >= share) & (u < 3 * share)
    nothing = no_image & no_reference if settings.dropout == "full" else torch.zeros_like(no_image)
    drops = {"image": no_image, "reference": no_reference, "face": nothing, "pose": nothing}
    return {f"keep_{name}": (~dropped).float() for name, dropped in drops.items()}


def degrade_faces(reference: Tensor, boxes: Tensor, chosen: Tensor, noise: Tensor) -> Tensor:
    """Where ``chosen`` [b] and a face is known, the latents inside its box [b,4] become noise of their own mean and
    deviation, channel by channel: light and colour stay, and who it is must come from elsewhere. [b,c,h,w]."""
    reference = reference.clone()
    height, width = reference.shape[-2:]
    for k, box in enumerate(boxes):
        if bool(chosen[k]) and bool(box.isfinite().all()):
            (x0, y0), (x1, y1) = box[:2].floor().int().tolist(), box[2:].ceil().int().tolist()
            rows, columns = slice(max(0, y0), min(height, y1)), slice(max(0, x0), min(width, x1))
            part = reference[k, :, rows, columns]
            if part.shape[1] and part.shape[2]:
                deviation, mean = torch.std_mean(part, dim=(1, 2), correction=0, keepdim=True)
                reference[k, :, rows, columns] = mean + deviation * noise[k, :, rows, columns].to(part)
    return reference


def _latents(parts: TrainingParts, batch: SampleBatch, seed: int, keys: list[int]) -> Tensor:
    moments = batch.moments
    if moments is None:
        if batch.pixels is None:
            raise ValueError("a batch holds neither pixels nor moments of its video")
        shape = batch.pixels.shape[:2]
        moments = _encode(parts, batch.pixels.flatten(0, 1)).unflatten(0, shape)
    mean, log_variance = moments.float().chunk(2, dim=2)
    deviation = (0.5 * log_variance.clamp(*_LOG_VARIANCE)).exp()
    return (mean + deviation * keyed_noise(seed, "posterior", keys, tuple(mean.shape[1:]))) * parts.scaling


def _reference(parts: TrainingParts, batch: SampleBatch, seed: int, keys: list[int]) -> Tensor:
    moments = batch.reference_moments
    if moments is None:
        if batch.reference_pixels is None:
            raise ValueError("a batch holds neither pixels nor moments of its reference")
        noise = keyed_noise(seed, "reference", keys, tuple(batch.reference_pixels.shape[1:]))
        moments = _encode(parts, batch.reference_pixels + parts.settings.noise_aug * noise)
    return moments.float().chunk(2, dim=1)[0]


def _image_token(parts: TrainingParts, batch: SampleBatch) -> Tensor:
    if batch.image_token is not None:
        return batch.image_token
    if batch.clip_pixels is None:
        raise ValueError("a batch holds neither image tokens nor pixels for them")
    with torch.no_grad(), parts.networks.resident("image_encoder"):
        encoder = parts.networks["image_encoder"]
        weight = next(encoder.parameters())
        return encoder(pixel_values=batch.clip_pixels.to(weight.device, weight.dtype)).image_embeds[:, None]


def _encode(parts: TrainingParts, pixels: Tensor) -> Tensor:
    """Posterior moments [n,2c,h/8,w/8] of [n,3,h,w], on the CPU in float32, a few frames at a time."""
    hint = "cache latents once with --cache latents,embeddings, or train at a smaller size"
    with torch.no_grad(), parts.networks.resident("vae"), memory_guard("encoding a batch's frames", hint):
        vae: AutoencoderKLTemporalDecoder = parts.networks["vae"]
        weight = next(vae.parameters())
        parts_of = [
            vae.encode(few.to(weight.device, weight.dtype), return_dict=False)[0].parameters.float().cpu()
            for few in pixels.split(ENCODED_AT_ONCE)
        ]
    return torch.cat(parts_of)
