"""Sampling, the identity gate, decoding and writing: from a request to the files of a run."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from stableanimator_cli.animate import identity, record
from stableanimator_cli.animate.driving import Driving
from stableanimator_cli.animate.face import Subject
from stableanimator_cli.animate.identity import Identity, IdentityCurve
from stableanimator_cli.animate.record import Animation
from stableanimator_cli.config import AnimateConfig
from stableanimator_cli.diffusion.face_optimization import FaceOptimization
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Stages, Watch, calls_of, decode, sample
from stableanimator_cli.errors import CheckFailed
from stableanimator_cli.media import VideoWriter
from stableanimator_cli.talk import Progress, Talk


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """One run's parts, resolved and checked."""

    config: AnimateConfig
    engine: Engine
    request: RenderRequest
    driving: Driving
    subject: Subject
    refine: FaceOptimization | None
    talk: Talk


def make(job: Making) -> Animation:
    """Sample, draw again what fails the gate, decode and write. The video is written even where the gate fails in the
    end: ``CheckFailed`` comes after it, with what was done."""
    height, width = job.request.fitted.shape[:2]
    started = time.perf_counter()
    stages = Stages()
    job.talk.note(
        f"{job.request.frames} frames of {width}x{height}, {len(job.request.plan)} window(s), "
        f"{job.config.sampling.steps} steps on {job.engine.plan.describe()}"
    )
    latents, refine, gate = _gated(job, stages)
    curve = _write(job, latents, stages)
    stages.seconds["total"] = time.perf_counter() - started
    report = record.write(
        job.config, job.engine, job.request, job.driving, stages, refine=refine, identity=curve or gate.identity,
        redrawn=gate.attempts,
    )  # fmt: skip
    if gate.failed:
        least = job.config.refine.min_csim
        mean = gate.identity.mean if gate.identity is not None else float("nan")
        raise CheckFailed(
            f"{job.config.output}: similarity to the reference is {mean:.3f} on average and below {least} in "
            f"{len(gate.failed)} of {len(job.request.plan)} window(s) after {len(gate.attempts)} re-draw(s)",
            hint="the video was written; try --redraw N, another --seed, --preset released, or a larger face",
        )
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the identity gate saw: ``attempts`` lists the windows that were drawn again, a row a re-draw."""

    identity: Identity | None = None
    failed: tuple[int, ...] = ()
    attempts: tuple[tuple[int, ...], ...] = ()


def _gated(job: Making, stages: Stages) -> tuple[Tensor, FaceOptimization | None, Gate]:
    """Sample; with ``--min-csim`` measure, and sample again with new noise where windows fail. The best is kept."""
    least, redraws = job.config.refine.min_csim, job.config.refine.redraw
    latents, refine = _sampled(job, job.request, stages)
    if least is None:
        return latents, refine, Gate()
    measured = _measured(job, latents, stages)
    gate = Gate(identity=measured, failed=tuple(measured.failing(job.request.plan, least, job.request.anchored)))
    drawn = [0] * job.request.plan.total
    best = latents, refine, gate
    while gate.failed and len(gate.attempts) < redraws:
        attempts = (*gate.attempts, gate.failed)
        job.talk.note(
            f"identity {gate.identity.mean if gate.identity else float('nan'):.3f}: window(s) "
            f"{', '.join(str(w + 1) for w in gate.failed)} below {least}, drawn again ({len(attempts)} of {redraws})"
        )
        for frame in {frame for window in gate.failed for frame in job.request.plan.windows[window].frames}:
            drawn[frame] = len(attempts)
        latents, refine = _sampled(job, replace(job.request, drawn=tuple(drawn)), stages)
        measured = _measured(job, latents, stages)
        failed = tuple(measured.failing(job.request.plan, least, job.request.anchored))
        gate = Gate(identity=measured, failed=failed, attempts=attempts)
        kept = best[2]
        better = kept.identity is None or len(failed) < len(kept.failed) or measured.mean > kept.identity.mean
        best = (latents, refine, gate) if better or not failed else (*best[:2], replace(kept, attempts=attempts))
    return best


def _sampled(job: Making, request: RenderRequest, stages: Stages) -> tuple[Tensor, FaceOptimization | None]:
    refine = job.refine
    if refine is not None:  # each attempt has its own log, and looks for faces itself where it must
        refine = replace(refine, log=[], targets=refine.targets if refine.find is None else [])
    with job.talk.progress(calls_of(request)["windows"], "denoise", "window") as bar:
        watch = _watching(bar, job.config.sampling.steps)
        return sample(job.engine, request, stages, watch, refine=refine), refine


def _measured(job: Making, latents: Tensor, stages: Stages) -> Identity:
    """Similarity by frame, from a decode of its own: frames are not kept in memory."""
    curve = _curve(job)
    with job.talk.progress(job.request.frames, "measure identity", "frame") as bar:
        for frame in decode(job.engine, job.request, latents, stages):
            value = curve.add(frame)
            bar.update(1, csim=value)
    return curve.result()


def _curve(job: Making) -> IdentityCurve:
    if job.subject.vector is None:
        raise CheckFailed(
            f"--min-csim {job.config.refine.min_csim}: the run has no face to compare with",
            hint="leave --min-csim out, or use a reference that shows a face",
        )
    return IdentityCurve(job.engine.faces(), job.subject.vector)


def _write(job: Making, latents: Tensor, stages: Stages) -> Identity | None:
    """Decode into the video, and into the preview with its curve where faces can be read."""
    config, request = job.config, job.request
    height, width = request.fitted.shape[:2]
    audio = job.driving.audio if config.audio == "keep" else None
    reads = config.preview and job.subject.vector is not None and "face" in job.engine.model.files
    curve, values = (_curve(job) if reads else None), []
    with ExitStack() as files:
        writer = files.enter_context(
            VideoWriter(
                config.output,
                (width, height),
                job.driving.fps,
                audio_from=audio and audio[0],
                audio_range=audio and audio[1:],
                tag={"sa.kind": "animation"},
            )
        )
        preview = None
        if config.preview:
            size = (3 * width, height + (identity.STRIP if curve else 0))
            preview = files.enter_context(VideoWriter(config.preview_path, size, job.driving.fps))
        with job.talk.progress(request.frames, "decode", "frame") as bar:
            for index, frame in enumerate(decode(job.engine, request, latents, stages)):
                writer.write(frame)
                if preview is not None:
                    row = np.concatenate([request.fitted, request.poses.frame(index + request.anchored), frame], axis=1)
                    if curve is not None:
                        values.append(curve.add(frame))
                        row = np.concatenate([row, identity.strip(values, request.frames, 3 * width)])
                    preview.write(row)
                bar.update()
    return curve.result() if curve is not None else None


def _watching(bar: Progress, steps: int) -> Watch:
    """A bar that counts windows and says which step they belong to."""
    step = 1

    def stepped(_: object, done: Step) -> None:
        nonlocal step
        step = done.index + 2

    return Watch(window=lambda: bar.update(1, step=f"{step}/{steps}"), step=stepped)
