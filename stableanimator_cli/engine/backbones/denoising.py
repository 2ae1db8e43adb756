"""Sampling and decoding of backbones that are denoisers of windows, with the engine's conditioning and samplers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from stableanimator_cli.config.animate import SamplingConfig, WindowConfig
from stableanimator_cli.diffusion.deepcache import DeepFeatureCache
from stableanimator_cli.diffusion.noise_levels import SCHEDULES
from stableanimator_cli.diffusion.sampler import Step, sample_dpmpp_2m, sample_euler, sample_heun
from stableanimator_cli.diffusion.schedule import initial_scale, keyed_noise
from stableanimator_cli.diffusion.training import Prediction
from stableanimator_cli.diffusion.windows import WindowPlan, plan_windows
from stableanimator_cli.engine.backbones import Build
from stableanimator_cli.engine.decoder import Decoder, FaceDecoder
from stableanimator_cli.engine.denoiser_calls import churn_of, denoiser_calls, resumable_steps
from stableanimator_cli.engine.device import DevicePlan, memory_guard, synchronize
from stableanimator_cli.engine.engine import Engine, apply_plan
from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings, initial_noise
from stableanimator_cli.engine.weights import arguments, building, loaders, network_config, read_tensors
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.nets.face_encoder import FaceEncoder, FaceEncoderConfig
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.nets.pose_net import PoseNet
from stableanimator_cli.records import ModelFolder


def animation_builders(
    model: ModelFolder, config: Mapping[str, Any], *, unet: Callable[[int], nn.Module], vae: Build
) -> dict[str, Build]:
    """Builders of ``records.NETWORKS``: ``unet`` (of the number of face tokens) with ``config``, ``vae``, and ours.

    Raises ``ModelDamaged`` for a config that lacks a width or describes no network.
    """
    vision = _vision_config(model)
    face = {k: v for k, v in model.configs.get("face_encoder", {}).items() if not k.startswith("_")}
    # widths of connected networks; the reference's layout has no config for them
    face |= {
        "cross_attention_dim": _value(model, "unet", config, "cross_attention_dim"),
        "clip_embeddings_dim": _value(model, "image_encoder", vision, "projection_dim"),
    }
    built: dict[str, Build] = {
        "unet": lambda: unet(face.get("num_tokens", 4)),
        "pose_net": lambda: PoseNet(noise_latent_channels=config["block_out_channels"][0]),
        "face_encoder": lambda: FaceEncoder(FaceEncoderConfig(**face)),
        "vae": vae,
        "image_encoder": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)),
    }
    return {role: lambda role=role, build=build: _built(model, role, build) for role, build in built.items()}


def _built(model: ModelFolder, role: str, build: Build) -> nn.Module:
    with building(model.files.get(role, model.path / role)):
        return build()


def _vision_config(model: ModelFolder) -> dict[str, Any]:
    """The image encoder's config, which is a part of CLIP's if the file holds both encoders."""
    config = network_config(model, "image_encoder")
    vision = config.get("vision_config")
    return config if vision is None else {**arguments(vision), "projection_dim": config.get("projection_dim")}


def _value(model: ModelFolder, role: str, config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise ModelDamaged(
            f"{model.path}: the config of {role} has no {key!r}",
            hint="compare the config with the one that the weights came with",
        )
    return config[key]


class Denoising:
    """All of ``DenoisingBackbone`` but the networks and the scalings."""

    prediction: Prediction = "v"

    def configs(self, model: ModelFolder) -> Mapping[str, Mapping[str, Any]]:
        return model.configs

    def networks(self, model: ModelFolder, plan: DevicePlan, id_mode: IDMode) -> dict[str, Build]:
        return apply_plan(loaders(model, plan.dtype, id_mode), plan)

    def read(self, model: ModelFolder, role: str) -> dict[str, Tensor]:
        return read_tensors(model.files[role])

    def count_calls(self, request: RenderRequest) -> dict[str, int]:
        """``unet_shallow``, if any, are the calls of ``unet`` that use cached deep features."""
        frames, windows, decoding = request.frames, len(request.plan), request.decode
        calls = denoiser_calls(request.sampling)
        shallow = sum(1 + call.guided for call in calls if not call.refresh)
        chunks = 1 + max(0, -(-(frames - decoding.chunk) // (decoding.chunk - decoding.overlap)))
        return {
            "unet": sum(1 + call.guided for call in calls) * windows,
            **({"unet_shallow": shallow * windows} if shallow else {}),
            "windows": len(calls) * windows,
            "vae_encode": 1,
            "image_encoder": 1,
            "vae_decode": chunks,
        }

    def remaining_windows(self, request: RenderRequest, first_step: int) -> int:
        calls = denoiser_calls(request.sampling)
        return len(request.plan) * sum(call.step >= first_step for call in calls)

    def plan_windows(self, frames: int, windows: WindowConfig) -> WindowPlan:
        return plan_windows(frames, length=windows.length, overlap=windows.overlap, blend=windows.blend)

    def total_steps(self, request: RenderRequest) -> int:
        return request.sampling.steps

    def resumable_steps(self, sampling: SamplingConfig) -> frozenset[int]:
        return resumable_steps(sampling)

    def rewind(
        self, request: RenderRequest, windows: Sequence[int], latents: Tensor, extra: Mapping[str, Tensor]
    ) -> None:
        """Windows are denoised together: nothing remains."""

    def decoder(self, vae: Any, calls: Counter[str]) -> Decoder:
        return Decoder(vae, calls)

    def face_decoder(self, vae: Any, calls: Counter[str], *, checkpointed: bool, margin: int) -> FaceDecoder:
        return FaceDecoder(vae, calls, checkpointed=checkpointed, margin=margin)

    def sample(self, engine: Engine, request: RenderRequest, timings: Timings, options: SampleOptions) -> Tensor:
        sampling = request.sampling
        started = time.perf_counter()
        conditioning = engine.encode(
            request.image, request.resized, request.face, request.poses, sampling, request.hidden_faces
        )
        synchronize(engine.plan.device)
        timings.seconds["encode"] = time.perf_counter() - started

        started = time.perf_counter()
        sigmas = SCHEDULES[sampling.schedule](sampling.steps)
        channels = conditioning.reference.shape[1]
        if options.latents is None:
            x = initial_noise(request, channels).to(engine.plan.device) * initial_scale(float(sigmas[0]))
        else:
            x = options.latents.to(engine.plan.device)

        def after_step(latents: Tensor, denoised: Tensor, step: Step) -> None:
            # a card may have computed little of what was launched, with CUDA graphs nothing of the whole sampling
            synchronize(engine.plan.device)
            if options.on_step is not None:
                options.on_step(latents, denoised, step)

        hint = "use a smaller --size or --window, --dtype bfloat16, or --offload model"
        with engine.resident("unet", "pose_net"), torch.no_grad(), memory_guard("denoising", hint):
            denoise = engine.denoiser(
                conditioning,
                request.plan,
                sampling.guidance,
                interval=sampling.guidance_interval,
                deep=DeepFeatureCache(sampling.cache_layers) if sampling.cache_features > 1 else None,
                calls=[call for call in denoiser_calls(sampling) if call.step >= options.first_step],
                on_window=options.on_window,
                distribute=options.distribute,
            )
            common: Any = {"refine": options.refine, "callback": after_step, "first_step": options.first_step}
            if sampling.sampler == "euler":
                x = sample_euler(denoise, x, sigmas, **common)
            elif sampling.sampler == "dpmpp_2m":
                previous = None if options.denoised is None else options.denoised.to(x)
                x = sample_dpmpp_2m(denoise, x, sigmas, previous=previous, **common)
            else:
                frames = range(-request.has_anchor, request.plan.total - request.has_anchor)
                x = sample_heun(
                    denoise,
                    x,
                    sigmas,
                    noise=lambda step: keyed_noise(sampling.seed, f"churn/{step}", frames, tuple(x.shape[1:])),
                    churn=churn_of(sampling),
                    **common,
                )
        timings.seconds["denoise"] = time.perf_counter() - started
        return x

    def decode(self, engine: Engine, request: RenderRequest, latents: Tensor, timings: Timings) -> Iterator[np.ndarray]:
        started = time.perf_counter()
        hint = f"use a smaller --decode-chunk (now {request.decode.chunk}), or --offload model"
        with engine.resident("vae"):
            frames = engine.decoder.frames(
                latents[int(request.has_anchor) :], chunk=request.decode.chunk, overlap=request.decode.overlap
            )
            while True:
                # gradients are disabled only while the network runs: not between frames, where the caller's code runs
                with torch.no_grad(), memory_guard("decoding", hint):
                    frame = next(frames, None)
                if frame is None:
                    break
                yield frame
        timings.seconds["decode"] = time.perf_counter() - started
        timings.calls = dict(engine.calls)
