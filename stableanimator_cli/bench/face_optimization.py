"""Speed of both modes of face optimisation on one clip, and the error of a crop relative to the full frame.

The clip is a drawn figure of the test split, encoded by the measured VAE, so that the ground truth is known. The
recogniser is the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.counters import count_flops, track_memory
from stableanimator_cli.bench.harness import Rounds
from stableanimator_cli.bench.results import Table
from stableanimator_cli.diffusion.face_optimization import (
    Box,
    FaceOptimization,
    FaceOptimizationSettings,
    RefineLogEntry,
)
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.conditioning import to_signed
from stableanimator_cli.engine.decoder import FaceDecoder
from stableanimator_cli.engine.device import peak_memory
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.face_optimization import SMALLEST, FaceBox, face_optimization, pixel_boxes
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.puppets.scene import sample_scene

MODES = ("full", "crop")
STEP = Step(index=0, total=25, sigma=1.0, sigma_next=0.5)  # the first of 25: the highest rate
GIB = 2**30
PEAK = (
    "GiB alive are counted, without weights. The peak is the GPU allocator's; on a CPU it is the process's so far (the "
    "crop ran first)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineCase:
    """The refined clip: ``size`` (width, height), ``frames`` decoded in chunks of ``chunk``, Adam's ``iterations`` per
    step, ``margin`` and ``mask_dilation`` in latents, ``face`` a side in pixels (None for the drawn face), ``figure``
    of the test split."""

    size: tuple[int, int] = (512, 512)
    frames: int = 4
    chunk: int = 4
    iterations: int = 3
    margin: int = 8
    mask_dilation: int = 4
    face: int | None = None
    figure: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnClip:
    """``target`` [t,3,h,w] in [-1,1] as drawn, its scaled ``latents``, ``boxes`` float[t,1,4] of the face, and
    ``reference``, another image of the figure."""

    target: Tensor
    latents: Tensor
    boxes: np.ndarray
    reference: FaceBox


def draw_clip(engine: Engine, case: RefineCase) -> DrawnClip:
    """A figure of the test split whose face is seen in every frame, through the engine's VAE."""
    framing = "whole" if min(case.size) >= 256 else "half"  # a face that is small in a large frame, as it mostly is
    scene = sample_scene("test", case.figure, framing=framing, size=case.size, frames=case.frames, behaviour="wave")
    frames = list(scene.clip())
    boxes = np.stack([frame.face_boxes for frame in frames])
    front = scene.reference((512, 512))
    if case.face is not None:
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        boxes = np.concatenate([centre - case.face / 2, centre + case.face / 2 - 1], axis=-1)
    seen = [box is not None for box in pixel_boxes(boxes[:, 0], case.size)]
    if not all(seen):
        raise ConfigError(
            "--face", case.face, f"a face of {SMALLEST} pixels or more that every frame shows",
            hint="try a larger --size, or another --figure",
        )  # fmt: skip
    truth = to_signed(np.stack([frame.image for frame in frames]))
    with engine.resident("vae"), torch.no_grad():
        vae: Any = engine.networks["vae"]
        like = next(vae.parameters())
        means = [vae.encode(frame[None].to(like)).latent_dist.mode() for frame in truth]
    clean = torch.cat(means).float() * vae.config["scaling_factor"]
    return DrawnClip(
        target=truth, latents=clean, boxes=boxes, reference=FaceBox(image=front.image, box=front.face_boxes[0])
    )


def build_hook(engine: Engine, case: RefineCase, clip: DrawnClip, mode: Any) -> FaceOptimization:
    """The hook of ``sa animate``, for one refined step."""
    settings = FaceOptimizationSettings(
        mode=mode, steps=(0, 1), iterations=case.iterations, chunk=case.chunk, mask_dilation=case.mask_dilation
    )
    return face_optimization(
        engine, settings, references=[clip.reference], boxes=clip.boxes, size=case.size, margin=case.margin
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CropError:
    """A crop against the full frame: maximum pixel difference (in [-1,1]) within the boxes before and after a refined
    step, and the cosine of both gradients where a crop lets latents move."""

    image_error: float
    after_error: float
    gradient_cosine: float


def crop_error(engine: Engine, case: RefineCase, clip: DrawnClip, refined: Tensor) -> CropError:
    """Error at the first iteration of a refined step; ``refined`` are the latents after it."""
    refine = build_hook(engine, case, clip, "crop")
    (target,) = refine.targets
    decoder, mask = refine.decoder, _movable_latents(clip, case)
    chunks = [range(n, min(n + case.chunk, len(clip.latents))) for n in range(0, len(clip.latents), case.chunk)]
    errors, products = [0.0, 0.0], torch.zeros(3)
    with engine.resident("vae", "recogniser"), torch.enable_grad(), decoder.with_recorded_stats(clip.latents, chunks):
        for chunk in chunks:
            boxes = [box for box in target.boxes[chunk.start : chunk.stop] if box is not None]
            union = (*np.min(boxes, 0)[:2].tolist(), *np.max(boxes, 0)[2:].tolist())
            gradients = []
            for mode in MODES:
                part = clip.latents[chunk.start : chunk.stop].clone().requires_grad_(True)
                pixels, (x, y) = decoder.pixels(part), (0, 0)
                if mode == "crop":
                    pixels, (x, y) = decoder.crop(part, chunk, union)
                vectors = refine.embed(pixels.float().clamp(-1, 1), [_shift_box(box, x, y) for box in boxes])
                (1 - F.cosine_similarity(vectors, target.vector.to(vectors)[None])).sum().backward()
                assert part.grad is not None
                gradients.append(part.grad * mask[chunk.start : chunk.stop])
            full, crop = (gradient.flatten().double() for gradient in gradients)
            products += torch.stack([full @ crop, full @ full, crop @ crop]).float().cpu()
            with torch.no_grad():
                for index, latents in enumerate((clip.latents, refined)):
                    part = latents[chunk.start : chunk.stop]
                    cut, corner = decoder.crop(part, chunk, union)
                    errors[index] = max(errors[index], _max_difference(decoder.pixels(part), cut, corner, boxes))
    cosine = float(products[0] / (products[1] * products[2]).sqrt())
    return CropError(image_error=errors[0], after_error=errors[1], gradient_cosine=cosine)


def _shift_box(box: Box, x: int, y: int) -> Box:
    return box[0] - x, box[1] - y, box[2] - x, box[3] - y


def _max_difference(full: Tensor, cut: Tensor, corner: tuple[int, int], boxes: list[Box]) -> float:
    """Maximum difference within the boxes between full frames and crops whose origin is ``corner``."""
    found = 0.0
    for frame, part, box in zip(full, cut, boxes, strict=True):
        x0, y0, x1, y1 = _shift_box(box, *corner)
        inside = frame[:, box[1] : box[3] + 1, box[0] : box[2] + 1]
        found = max(found, float((inside - part[:, y0 : y1 + 1, x0 : x1 + 1]).abs().max()))
    return found


def _face_pixels(clip: DrawnClip, case: RefineCase) -> Tensor:
    """bool[t,1,h,w]: pixels of the faces."""
    width, height = case.size
    inside = torch.zeros(len(clip.target), 1, height, width, dtype=torch.bool)
    for index, box in enumerate(pixel_boxes(clip.boxes[:, 0], case.size)):
        if box is not None:
            inside[index, :, box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return inside


def _movable_latents(clip: DrawnClip, case: RefineCase) -> Tensor:
    """[t,1,h/8,w/8]: 1 where a crop lets latents move."""
    cells = F.max_pool2d(_face_pixels(clip, case).float(), FaceDecoder.scale)
    return F.max_pool2d(cells, 2 * case.mask_dilation + 1, stride=1, padding=case.mask_dilation).to(clip.latents.device)


def psnr(a: Tensor, b: Tensor, where: Tensor) -> float:
    """PSNR of images [t,3,h,w] in [-1,1] over the pixels ``where`` [t,1,h,w]; infinite for equal ones."""
    off = (a.clamp(-1, 1) - b.clamp(-1, 1)).double()[where.expand_as(a)].square().mean()
    return float("inf") if off == 0 else float(10 * torch.log10(4 / off))


def decode_frames(engine: Engine, clip: DrawnClip, latents: Tensor, chunk: int) -> Tensor:
    """All frames as they are encoded into the video, on the CPU."""
    with engine.resident("vae"), torch.no_grad():
        return torch.cat([engine.decoder.pixels(part).float().cpu() for part in latents.split(chunk)])


@dataclass(frozen=True, slots=True)
class _ModeRun:
    """A refined step in one mode: its hook, its log entry, the latents after it, network calls, FLOPs, and bytes."""

    refine: FaceOptimization
    log: RefineLogEntry
    latents: Tensor
    calls: dict[str, int]
    flops: int
    live_bytes: int
    peak_bytes: int | None


def measure_face_optimization(bench: BenchRun, engine: Engine, case: RefineCase) -> list[Table]:
    """Measure speed, error and effect of both modes on one clip."""
    clip = draw_clip(engine, case)
    # the smaller mode first: the peak of a process never falls
    runs = {mode: _run_mode(bench, engine, case, clip, mode) for mode in reversed(MODES)}
    variants = {mode: lambda refine=runs[mode].refine: refine(clip.latents, STEP) for mode in MODES}
    timed = bench.time(variants, warm_up=0)
    near = crop_error(engine, case, clip, runs["crop"].latents)
    width, height = case.size
    what = f"{case.frames} frames of {width}x{height} in chunks of {case.chunk}, {case.iterations} iterations"
    face = clip.boxes[0, 0]
    note = f"One refined step of {what}; the face is {face[2] - face[0]:.0f}x{face[3] - face[1]:.0f} pixels in frame 0."
    crop = {
        "margin": case.margin,
        "greatest error in the box": near.image_error,
        "the same after the step": near.after_error,
        "gradient cosine": near.gradient_cosine,
    }
    return [
        Table(
            title="Face optimisation, both modes",
            rows=[_speed_row(bench, mode, runs[mode], timed, near) for mode in MODES],
            note=f"{note} {bench.rounds} round(s), interleaved. {PEAK}",
        ),
        Table(
            title="A crop against the full frame",
            rows=[crop],
            note="Pixels in [-1,1]. After a step the norms' statistics are those from before it. Gradients are "
            "compared where a crop lets latents move.",
        ),
        Table(
            title="What a refined step does",
            rows=_effect_rows(engine, case, clip, runs),
            note="PSNR in decibels of the decoded frames; `full` moves every latent of a frame, background included.",
        ),
    ]


def _run_mode(bench: BenchRun, engine: Engine, case: RefineCase, clip: DrawnClip, mode: str) -> _ModeRun:
    if engine.plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.plan.device)
    refine = build_hook(engine, case, clip, mode)
    engine.calls.clear()
    after: list[Tensor] = []
    live = track_memory(lambda: after.append(refine(clip.latents, STEP)))
    log, calls, peak = refine.log[-1], dict(engine.calls), peak_memory(engine.plan.device)
    bench.tick()
    flops = count_flops(lambda: refine(clip.latents, STEP))  # this run warms up
    bench.tick()
    return _ModeRun(refine, log, after[0], calls, flops, live.peak, peak.get("device", peak.get("host")))


def _speed_row(bench: BenchRun, mode: str, run: _ModeRun, timed: Rounds, near: CropError) -> dict[str, Any]:
    return {
        "mode": mode,
        "s per refined step": timed.median(mode),
        "times faster than full": timed.ratio("full", mode) if mode != "full" else None,
        "TFLOP": run.flops / 1e12,
        "% of roof": bench.roof().percent(run.flops, timed.median(mode)),
        "GiB alive": run.live_bytes / GIB,
        "GiB peak": None if run.peak_bytes is None else run.peak_bytes / GIB,
        "full decodes": run.calls.get("refine_decode", 0),
        "statistics decodes": run.calls.get("refine_observe", 0),
        "crop decodes": run.calls.get("refine_crop", 0),
        "error in the box": near.image_error if mode == "crop" else 0.0,
    }


def _effect_rows(engine: Engine, case: RefineCase, clip: DrawnClip, runs: dict[str, _ModeRun]) -> list[dict[str, Any]]:
    before, inside = decode_frames(engine, clip, clip.latents, case.chunk), _face_pixels(clip, case)
    rows = []
    for mode in MODES:
        now, log = decode_frames(engine, clip, runs[mode].latents, case.chunk), runs[mode].log
        rows.append(
            {
                "mode": mode,
                "similarity before": log.before,
                "after": log.after,
                "dB face against before": psnr(now, before, inside),
                "dB background against before": psnr(now, before, ~inside),
                "dB face against truth": psnr(now, clip.target, inside),
                "dB background against truth": psnr(now, clip.target, ~inside),
            }
        )
    unrefined = {
        "mode": "not refined",
        "similarity before": runs["full"].log.before,
        "dB face against truth": psnr(before, clip.target, inside),
        "dB background against truth": psnr(before, clip.target, ~inside),
    }
    return [*rows, unrefined]
