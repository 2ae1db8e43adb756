"""Render frames from a reference image and a motion: used by animation, validation and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig
from stableanimator_cli.diffusion.deepcache import DeepFeatureCache
from stableanimator_cli.diffusion.sampler import Refine, StepCallback, sample_dpmpp_2m, sample_euler, sample_heun
from stableanimator_cli.diffusion.schedule import SCHEDULES, initial_scale, keyed_noise, repeated_noise
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.engine.conditioning import PoseFrames
from stableanimator_cli.engine.denoiser_calls import churn_of, denoiser_calls
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.engine import Distribute, Engine
from stableanimator_cli.errors import CheckFailed
from stableanimator_cli.records import STRIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRequest:
    """Inputs and settings of one rendering.

    ``image`` uint8[h,w,3] for the image encoder; ``resized``: the same at the output's size; ``face`` float32[512] or
    None; ``poses``: one skeleton image per frame; ``plan``: the windows over them. ``has_anchor``: frame 0 of ``poses``
    is the reference's own and is dropped from the output. ``retry_counts``: per frame, the retry its noise is keyed by.
    """

    image: np.ndarray
    resized: np.ndarray
    face: np.ndarray | None
    poses: PoseFrames
    plan: WindowPlan
    sampling: SamplingConfig
    decode: DecodeConfig
    noise_period: int
    has_anchor: bool = False
    retry_counts: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        """Frames of the output."""
        return self.plan.total - self.has_anchor


@dataclass(slots=True)
class Timings:
    """Seconds per stage of a rendering, and network calls; filled while frames are consumed."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """``window`` is called after each window of each step, ``step`` with the latents after each step, the
    denoised estimate that it used, and the step."""

    window: Callable[[], None] | None = None
    step: StepCallback | None = None


def count_calls(request: RenderRequest) -> dict[str, int]:
    """Count the calls of each network before anything is loaded.

    ``unet_shallow``, if any, are the calls of ``unet`` that use cached deep features.
    """
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


def initial_noise(request: RenderRequest, channels: int) -> Tensor:
    """Unit noise [t,c,h/8,w/8]: ``fresh`` is keyed by seed and frame, ``repeat`` is the reference implementation's."""
    height, width = request.resized.shape[:2]
    shape = (channels, height // STRIDE, width // STRIDE)
    total, seed = request.plan.total, request.sampling.seed
    if request.sampling.noise == "repeat":
        return repeated_noise(seed, total, request.noise_period, shape, (1, 3, height, width))
    # an anchor in front does not shift the noise of the output frames
    frames = range(-request.has_anchor, total - request.has_anchor)
    retries = request.retry_counts or (0,) * total
    names = ["latents" if retry == 0 else f"latents again {retry}" for retry in retries]
    return torch.cat([keyed_noise(seed, name, [frame], shape) for name, frame in zip(names, frames, strict=True)])


def render(
    engine: Engine,
    request: RenderRequest,
    timings: Timings,
    callbacks: Callbacks | None = None,
    *,
    refine: Refine | None = None,
) -> Iterator[np.ndarray]:
    """Yield uint8[h,w,3] frames in order: ``sample``, then ``decode``."""
    latents = sample(engine, request, timings, callbacks or Callbacks(), refine=refine)
    yield from decode(engine, request, latents, timings)


def sample(
    engine: Engine,
    request: RenderRequest,
    timings: Timings,
    callbacks: Callbacks,
    *,
    refine: Refine | None = None,
    latents: Tensor | None = None,
    denoised: Tensor | None = None,
    first_step: int = 0,
    distribute: Distribute | None = None,
) -> Tensor:
    """Encode and denoise: denoised latents float32[t,c,h/8,w/8] in the sampler's scale, on the engine's device.

    ``refine`` receives the denoised latents of every step (face optimisation). ``latents`` resume a sampling of the
    same request at ``first_step``, one of its ``resumable_steps``. All noise is keyed, so nothing else is needed but,
    by ``dpmpp_2m``, the ``denoised`` estimate of the step before.
    ``distribute``: see ``Engine.denoiser``.
    """
    sampling = request.sampling
    started = time.perf_counter()
    conditioning = engine.encode(request.image, request.resized, request.face, request.poses, sampling)
    timings.seconds["encode"] = time.perf_counter() - started

    started = time.perf_counter()
    sigmas = SCHEDULES[sampling.schedule](sampling.steps)
    channels = conditioning.reference.shape[1]
    if latents is None:
        x = initial_noise(request, channels).to(engine.plan.device) * initial_scale(float(sigmas[0]))
    else:
        x = latents.to(engine.plan.device)
    hint = "use a smaller --size or --window, --dtype bfloat16, or --offload model"
    with engine.resident("unet", "pose_net"), torch.no_grad(), memory_guard("denoising", hint):
        denoise = engine.denoiser(
            conditioning,
            request.plan,
            sampling.guidance,
            interval=sampling.guidance_interval,
            deep=DeepFeatureCache(sampling.cache_layers) if sampling.cache_features > 1 else None,
            calls=[call for call in denoiser_calls(sampling) if call.step >= first_step],
            on_window=callbacks.window,
            distribute=distribute,
        )
        if sampling.sampler == "euler":
            x = sample_euler(denoise, x, sigmas, refine=refine, callback=callbacks.step, first_step=first_step)
        elif sampling.sampler == "dpmpp_2m":
            previous = None if denoised is None else denoised.to(x)
            x = sample_dpmpp_2m(
                denoise, x, sigmas,
                refine=refine, callback=callbacks.step, first_step=first_step, previous=previous,
            )  # fmt: skip
        else:
            frames = range(-request.has_anchor, request.plan.total - request.has_anchor)
            x = sample_heun(
                denoise,
                x,
                sigmas,
                noise=lambda step: keyed_noise(sampling.seed, f"churn/{step}", frames, tuple(x.shape[1:])),
                churn=churn_of(sampling),
                refine=refine,
                callback=callbacks.step,
                first_step=first_step,
            )
    timings.seconds["denoise"] = time.perf_counter() - started
    if not torch.isfinite(x).all():
        raise CheckFailed(
            "denoising produced values that are not finite",
            hint="float16 overflows with some weights: try --dtype bfloat16 or float32",
        )
    return x


def decode(engine: Engine, request: RenderRequest, latents: Tensor, timings: Timings) -> Iterator[np.ndarray]:
    """Decode latents of ``sample`` to uint8[h,w,3] frames as they are consumed; an anchor in front is dropped."""
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
