"""Backbones that are pipelines of diffusers and make long videos in segments: each continues the last frames of the one
before, after these are decoded.

The loop is ours, with the pipeline's own preparation, transformer and scheduler: it can stop after any step and resume
with the same bits, and without face optimisation it is equal to the pipeline's own call. Face optimisation acts through
the scheduler (``diffusion.scheduler_hook``).
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import CLIPVisionModel, UMT5EncoderModel

from stableanimator_cli.config.animate import SamplingConfig, WindowConfig
from stableanimator_cli.diffusion.face_optimization import FaceOptimization, Target
from stableanimator_cli.diffusion.sampler import Refine, Step
from stableanimator_cli.diffusion.schedule import keyed_noise
from stableanimator_cli.diffusion.scheduler_hook import Axes, refined, why_not_refined
from stableanimator_cli.diffusion.windows import Window, WindowPlan
from stableanimator_cli.engine.backbones import Build, Rewound
from stableanimator_cli.engine.backbones.diffusers_folder import build_network, check_scheduler, load_network, place
from stableanimator_cli.engine.backbones.scheduler_state import pack_scheduler, restore_scheduler
from stableanimator_cli.engine.backbones.wan_decoders import WanDecoder, WanFaceDecoder
from stableanimator_cli.engine.decoder import require_finite, to_uint8
from stableanimator_cli.engine.device import DevicePlan, memory_guard
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings
from stableanimator_cli.engine.weights import building, network_config
from stableanimator_cli.nets.id_adapter import IDMode
from stableanimator_cli.records import ModelFolder

FOLD = Axes("1 c t h w", skip=1)
"""Latents of a segment: the first along time is the reference image's."""
_SCHEDULER, _GENERATOR, _STARTS, _LOGS = "scheduler/", "generator", "generator at/", "log at/"
"""Names of what resuming needs (``SampleOptions.extra``). The last two: the generator's state and the length of the log
at the start of each segment, from which the identity gate samples again."""


class Segment(Protocol):
    """One segment, prepared: ``predict`` is the model output for latents [1,c,t,h,w] at a timestep, guided."""

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor: ...


class Rendering(Protocol):
    """A rendering with everything encoded that its segments share."""

    scheduler: Any
    shape: tuple[int, ...]  # of the latents of a segment, [1,c,t,h,w]

    def segment(self, frames: list[int], previous: Tensor | None) -> Segment:
        """Prepare the segment of these ``frames`` of the motion; ``previous`` are the last decoded frames [t,3,h,w] of
        the segment before, in [-1,1], None for the first."""
        ...


class SegmentBackbone(ABC):
    """All of ``Backbone`` but the preparation of a rendering (``open_rendering``).

    ``transformer`` is the class of the denoiser. ``networks_of_a_step`` are resident while a segment is denoised.
    ``denoiser_calls`` are the transformer's kinds of calls, by the names of ``count_calls``.
    """

    transformer: type[Any]
    networks_of_a_step: tuple[str, ...] = ("transformer",)
    denoiser_calls: tuple[str, ...] = ("transformer",)

    @property
    def _kinds(self) -> dict[str, type[Any]]:
        return {
            "transformer": self.transformer,
            "vae": AutoencoderKLWan,
            "text_encoder": UMT5EncoderModel,
            "image_encoder": CLIPVisionModel,
        }

    def builders(self, model: ModelFolder, id_mode: IDMode) -> dict[str, Build]:
        def build(role: str, kind: type[Any]) -> nn.Module:
            with building(model.files.get(role, model.path / role)):
                network = build_network(kind, network_config(model, role))
            return self.adapted(network, compiled=False) if role == "transformer" else network

        return {role: partial(build, role, kind) for role, kind in self._kinds.items()}

    def networks(self, model: ModelFolder, plan: DevicePlan, id_mode: IDMode) -> dict[str, Build]:
        """The VAE is float32: bfloat16 shows in its frames."""

        def load(role: str, kind: type[Any]) -> nn.Module:
            dtype = torch.float32 if role == "vae" else plan.dtype
            network = load_network(kind, model.files[role], dtype)
            if role != "transformer":
                return network
            return place(self.adapted(network, compiled=plan.config.compile == "blocks"), plan)

        return {role: partial(load, role, kind) for role, kind in self._kinds.items()}

    def adapted(self, transformer: nn.Module, *, compiled: bool) -> nn.Module:
        """The transformer with what differs from diffusers' own; ``compiled``: its blocks will be compiled."""
        return transformer

    @abstractmethod
    def open_rendering(self, engine: Engine, request: RenderRequest) -> Rendering:
        """Encode what the segments of a rendering share."""

    def latent_values(self, vae: Any, length: int, size: tuple[int, int]) -> int:
        """Numbers of a segment's latents; ``vae`` is the config of the VAE, ``size`` (width, height)."""
        scale = vae["scale_factor_spatial"]
        frames = (length - 1) // vae["scale_factor_temporal"] + 2
        return vae["z_dim"] * frames * (size[0] // scale) * (size[1] // scale)

    @abstractmethod
    def example_calls(
        self,
        model: ModelFolder,
        network: Callable[[str], Any],
        length: int,
        size: tuple[int, int],
        dtype: torch.dtype,
    ) -> dict[str, Callable[[], object]]:
        """One call of each network on ``meta`` tensors, by the names of ``count_calls``, to count memory and work.
        ``network`` gives the network of a role; a segment has ``length`` frames of ``size`` (width, height)."""

    def segment_bytes(
        self, transformer: Any, vae: Any, length: int, size: tuple[int, int], dtype: torch.dtype, offload: str
    ) -> int:
        """Bytes besides latents that a prepared segment keeps on the device; the first two are configs."""
        return 0

    def shown_frame(self, frame: int, total: int) -> int:
        """The frame of the motion at a position that may be beyond its end: back and forth, as the authors pad."""
        period = max(1, 2 * (total - 1))
        turned = frame % period
        return min(turned, period - turned) if total > 1 else 0

    def plan_windows(self, frames: int, windows: WindowConfig) -> WindowPlan:
        """Segments of at most ``windows.length`` frames that share ``windows.overlap``; the shared ones are those of
        the earlier segment."""
        found, start = [], 0
        while True:
            stop = min(start + windows.length, frames)
            dropped = windows.overlap if start else 0
            weights = (0.0,) * dropped + (1.0,) * (stop - start - dropped)
            found.append(Window(tuple(range(start, stop)), weights))
            if stop == frames:
                return WindowPlan(frames, tuple(found))
            start = stop - windows.overlap

    def total_steps(self, request: RenderRequest) -> int:
        return len(request.plan) * request.sampling.steps

    def resumable_steps(self, sampling: SamplingConfig) -> range:
        return range(1, 2**31)

    def remaining_windows(self, request: RenderRequest, first_step: int) -> int:
        return self.total_steps(request) - first_step

    def rewind(
        self, request: RenderRequest, windows: Sequence[int], latents: Tensor, extra: Mapping[str, Tensor]
    ) -> Rewound | None:
        """The segments before the first of ``windows``; those after it continue other frames."""
        first = min(windows)
        if first == 0 or f"{_STARTS}{first}" not in extra:
            return None
        past = {key: value for key, value in extra.items() if key.startswith((_STARTS, _LOGS))}
        return Rewound(
            latents=latents[:first], step=first * request.sampling.steps, extra=past, log=int(extra[f"{_LOGS}{first}"])
        )

    def decoder(self, vae: Any, calls: Counter[str]) -> WanDecoder:
        return WanDecoder(vae, calls)

    def face_decoder(self, vae: Any, calls: Counter[str], *, checkpointed: bool, margin: int) -> WanFaceDecoder:
        return WanFaceDecoder(vae, calls, checkpointed=checkpointed, margin=margin)

    def sample(self, engine: Engine, request: RenderRequest, timings: Timings, options: SampleOptions) -> Tensor:
        """Denoised latents float32[n,c,t,h,w] of the segments, of which the first along time are the reference's.

        ``options.latents`` are those of finished segments and of the current one; steps count through all segments.
        """
        steps, device = request.sampling.steps, engine.plan.device
        check_scheduler(engine.model.files["scheduler"], steps, refines=options.refine is not None)
        started = time.perf_counter()
        with torch.no_grad():
            rendering = self.open_rendering(engine, request)
        timings.seconds["encode"] = time.perf_counter() - started
        started = time.perf_counter()
        latents = options.latents
        first, step = divmod(options.first_step, steps)
        finished = [] if latents is None else [one.to(device) for one in latents[:first]]
        current = None if latents is None or step == 0 else latents[first].to(device)[None]
        generator = torch.Generator().manual_seed(request.sampling.seed)
        state = options.extra.get(f"{_STARTS}{first}" if step == 0 else _GENERATOR)
        if state is not None:
            generator.set_state(state.cpu())
        loop = _Loop(engine=engine, request=request, options=options, generator=generator)
        for index in range(first, len(request.plan)):
            start = request.plan.windows[index].frames[0]
            frames = [
                self.shown_frame(frame, request.plan.total) for frame in range(start, start + request.noise_period)
            ]
            with torch.no_grad(), memory_guard("denoising", _HINT):
                segment = rendering.segment(frames, self._tail(engine, request, finished))
                noise = None if current is not None else loop.noise(index, rendering.shape)
                with engine.resident(*self.networks_of_a_step):
                    x = loop.denoise(rendering.scheduler, segment, index, finished, current, noise, step)
            finished.append(x[0])
            current, step = None, 0
            del segment  # before the next one is prepared: it may be as large as the transformer
        timings.seconds["denoise"] = time.perf_counter() - started
        return torch.stack(finished)

    def decode(self, engine: Engine, request: RenderRequest, latents: Tensor, timings: Timings) -> Iterator[np.ndarray]:
        """Decode segment by segment; frames that an earlier segment has, and padding, are dropped."""
        started = time.perf_counter()
        with engine.resident("vae"):
            decoder = engine.backbone.decoder(engine.networks["vae"], engine.calls)
            for window, segment in zip(request.plan, latents, strict=True):
                needed = [frame for frame, weight in enumerate(window.weights) if weight > 0]
                parts, position = decoder.parts(_video(segment)), 0
                while position <= needed[-1]:
                    # gradients are disabled only while the network runs: not between frames, for the caller's code
                    with torch.no_grad(), memory_guard("decoding", _HINT):
                        frames = to_uint8(require_finite(next(parts), "decoding"))
                    yield from (frame for i, frame in enumerate(frames, position) if needed[0] <= i <= needed[-1])
                    position += len(frames)
        timings.seconds["decode"] = time.perf_counter() - started
        timings.calls = dict(engine.calls)

    def _tail(self, engine: Engine, request: RenderRequest, finished: list[Tensor]) -> Tensor | None:
        """The last frames [t,3,h,w] of the segment before, decoded: the first ones of the next."""
        if not finished:
            return None
        with engine.resident("vae"):
            decoder = engine.backbone.decoder(engine.networks["vae"], engine.calls)
            parts = [part[-_overlap(request.plan) :] for part in decoder.parts(_video(finished[-1]))]
            return torch.cat(parts)[-_overlap(request.plan) :]


_HINT = "use a smaller --size or --window, --dtype bfloat16, or --offload model or group"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loop:
    """The denoising of segments, with callbacks after each step."""

    engine: Engine
    request: RenderRequest
    options: SampleOptions
    generator: torch.Generator
    estimate: list[Tensor] = field(default_factory=list)

    def noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """The initial noise of a segment: the next draw of the seed's generator, as in the pipeline's own call. A
        segment that the identity gate samples again has noise of its own."""
        drawn = torch.randn(shape, generator=self.generator)
        counts = self.request.retry_counts
        # the least: frames at its ends may belong to a neighbour that was sampled again
        retry = min(counts[frame] for frame in self.request.plan.windows[index].frames) if counts else 0
        if retry:
            drawn = keyed_noise(self.request.sampling.seed, f"latents again {retry}", [index], shape[1:])
        return drawn.to(self.engine.plan.device)

    def denoise(
        self,
        scheduler: Any,
        segment: Segment,
        index: int,
        finished: list[Tensor],
        current: Tensor | None,
        noise: Tensor | None,
        first_step: int,
    ) -> Tensor:
        """Latents [1,c,t,h,w] of a segment, from ``noise``, or from ``current`` after ``first_step`` steps."""
        steps, device = self.request.sampling.steps, self.engine.plan.device
        scheduler.set_timesteps(steps, device=device)
        timesteps = scheduler.timesteps
        if first_step:
            stored = self.options.extra.items()
            restore_scheduler(
                scheduler,
                {key.removeprefix(_SCHEDULER): value for key, value in stored if key.startswith(_SCHEDULER)},
            )
        x = noise if current is None else current
        assert x is not None
        refine = self._segment_refine(index, resumed=first_step > 0)
        accepted = inspect.signature(scheduler.step).parameters
        more = {"generator": self.generator} if "generator" in accepted else {}  # UniPC has no such argument
        for number in range(first_step, len(timesteps)):
            timestep = timesteps[number]
            output = segment.predict(x, timestep)
            with self._refining(scheduler, refine):
                x = scheduler.step(output, timestep, x, return_dict=False, **more)[0]
            done = Step(index * steps + number, len(self.request.plan) * steps, 0.0, 0.0)
            self._after_step(scheduler, refine, done, [*finished, x[0]])
        return x

    def _refining(self, scheduler: Any, refine: Refine | None) -> AbstractContextManager[None]:
        """Face optimisation, and the estimate of the step for previews."""
        if refine is None and (self.options.on_step is None or why_not_refined(scheduler) is not None):
            return nullcontext()

        def watch(denoised: Tensor, step: Step) -> Tensor:
            better = denoised if refine is None else refine(denoised, step)
            self.estimate[:] = [better]
            return better

        return refined(scheduler, watch, fold=FOLD)

    def _after_step(self, scheduler: Any, refine: Refine | None, step: Step, latents: list[Tensor]) -> None:
        if self.options.on_window is not None:
            self.options.on_window()
        if isinstance(refine, FaceOptimization) and isinstance(self.options.refine, FaceOptimization) and refine.detect:
            self.options.refine.targets = refine.targets  # detected ones are part of a checkpoint
        if self.options.on_step is None:
            return
        done, left = divmod(step.index + 1, self.request.sampling.steps)
        self.options.extra[_GENERATOR] = self.generator.get_state()
        if left == 0:
            self.options.extra[f"{_STARTS}{done}"] = self.generator.get_state()
            entries = len(self.options.refine.log) if isinstance(self.options.refine, FaceOptimization) else 0
            self.options.extra[f"{_LOGS}{done}"] = torch.tensor(entries)
        for key in [key for key in self.options.extra if key.startswith(_SCHEDULER)]:
            del self.options.extra[key]
        self.options.extra.update({_SCHEDULER + name: value for name, value in pack_scheduler(scheduler).items()})
        self.options.on_step(torch.stack(latents), self.estimate[0] if self.estimate else _video(latents[-1]), step)

    def _segment_refine(self, index: int, *, resumed: bool) -> Refine | None:
        """Face optimisation of one segment: boxes of its own frames, None for dropped ones and for padding."""
        refine, window = self.options.refine, self.request.plan.windows[index]
        if not isinstance(refine, FaceOptimization):
            return refine
        settings = refine.settings
        compression: int = self.engine.networks["vae"].config["scale_factor_temporal"]
        chunk = self.request.noise_period if settings.mode == "full" else max(1, settings.chunk // compression)
        targets, detect = refine.targets if resumed else (), None
        if (search := refine.detect) is not None:
            own = {frame for frame, weight in enumerate(window.weights) if weight > 0}

            def search_own(denoised: Tensor, frames: Sequence[int]) -> Sequence[Target]:
                return search(denoised, [frame for frame in frames if frame in own])

            detect = search_own
        else:
            missing = (None,) * (self.request.noise_period - len(window.frames))
            targets = [
                Target(
                    boxes=tuple(
                        target.boxes[frame] if weight > 0 else None
                        for frame, weight in zip(window.frames, window.weights, strict=True)
                    )
                    + missing,
                    vector=target.vector,
                )
                for target in refine.targets
            ]
        return replace(refine, targets=targets, detect=detect, settings=replace(settings, chunk=chunk))


def _overlap(plan: WindowPlan) -> int:
    """Frames that a segment shares with the one before; 0 of one segment."""
    return sum(weight == 0 for weight in plan.windows[1].weights) if len(plan) > 1 else 0


def _video(latents: Tensor) -> Tensor:
    """Latents [c,t,h,w] of a segment without the reference's -> [t,c,h,w]."""
    return latents.transpose(0, 1)[1:]
