"""Render frames from a reference image and a motion: used by animation, validation and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig
from stableanimator_cli.diffusion.sampler import Refine, StepCallback
from stableanimator_cli.diffusion.schedule import keyed_noise, repeated_noise
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.engine.conditioning import PeopleFaces, PoseFrames
from stableanimator_cli.engine.decoder import require_finite
from stableanimator_cli.engine.engine import Distribute, Engine
from stableanimator_cli.records import STRIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRequest:
    """Inputs and settings of one rendering.

    ``image`` uint8[h,w,3] for the image encoder; ``resized``: the same at the output's size; ``face`` float32[512],
    several people's, or None; ``poses``: one skeleton image per frame; ``plan``: the windows over them.
    ``has_anchor``: frame 0 of ``poses`` is the reference's own and is dropped from the output. ``retry_counts``: per
    frame, the retry its noise is keyed by.
    ``hidden_faces`` float[k,4] (x0, y0, x1, y1 in pixels of ``resized``) are replaced with noise in the reference's
    latents; None: no face is.
    ``streams``: further videos of as many frames that a backbone is conditioned on, as crops of the driving ``face``.
    """

    image: np.ndarray
    resized: np.ndarray
    face: np.ndarray | PeopleFaces | None
    poses: PoseFrames
    plan: WindowPlan
    sampling: SamplingConfig
    decode: DecodeConfig
    noise_period: int
    has_anchor: bool = False
    retry_counts: tuple[int, ...] = ()
    hidden_faces: np.ndarray | None = None
    streams: Mapping[str, PoseFrames] = field(default_factory=dict)

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
class SampleOptions:
    """Hooks of a sampling, and the state from which it resumes.

    ``on_window`` is called after each window of each step; ``on_step`` with the latents after each step, the denoised
    estimate that it used, and the step. ``refine`` receives the denoised latents of every step (face optimisation).
    ``distribute``: see ``Engine.denoiser``.
    ``latents`` resume a sampling of the same request at ``first_step``, one of its ``resumable_steps``. All noise is
    keyed, so nothing else is needed but, by ``dpmpp_2m``, the ``denoised`` estimate of the step before, and ``extra``:
    a backbone that needs more than latents updates it before each ``on_step``, and reads it when it resumes.
    """

    on_window: Callable[[], None] | None = None
    on_step: StepCallback | None = None
    refine: Refine | None = None
    distribute: Distribute | None = None
    latents: Tensor | None = None
    denoised: Tensor | None = None
    first_step: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)


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
    engine: Engine, request: RenderRequest, timings: Timings, options: SampleOptions | None = None
) -> Iterator[np.ndarray]:
    """Yield uint8[h,w,3] frames in order: ``sample``, then ``decode``."""
    latents = sample(engine, request, timings, options)
    yield from decode(engine, request, latents, timings)


def sample(engine: Engine, request: RenderRequest, timings: Timings, options: SampleOptions | None = None) -> Tensor:
    """Encode and denoise: denoised latents float32[t,c,h/8,w/8] in the sampler's scale, on the engine's device.

    Raises ``CheckFailed`` if the result is not finite.
    """
    x = engine.backbone.sample(engine, request, timings, options or SampleOptions())
    check_finite(x, engine)
    return x


def check_finite(latents: Tensor, engine: Engine) -> None:
    """Raise ``CheckFailed`` unless all latents are numbers; the steps that follow would not mend it."""
    hint = ", and try --guidance and --churn nearer to their defaults"
    require_finite(latents, "denoising", hint=hint, dtype=engine.plan.dtype)


def decode(engine: Engine, request: RenderRequest, latents: Tensor, timings: Timings) -> Iterator[np.ndarray]:
    """Decode latents of ``sample`` to uint8[h,w,3] frames as they are consumed; an anchor in front is dropped."""
    return engine.backbone.decode(engine, request, latents, timings)
