"""Sampling, the identity gate, decoding and writing: from a request to the files of a run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from stableanimator_cli.animate import identity_gate, result
from stableanimator_cli.animate.checkpoint import BestSample, Checkpoint, CheckpointManager, SamplingState
from stableanimator_cli.animate.driving import Driving
from stableanimator_cli.animate.identity_gate import Identity, IdentityMeter
from stableanimator_cli.animate.reference_face import FacesRefined, ReferenceFace
from stableanimator_cli.animate.result import Animation
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.diffusion.face_optimization import FaceOptimization
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.engine.denoiser_calls import resumable_steps
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.parallel import RankLost
from stableanimator_cli.engine.render import Begun, Callbacks, RenderRequest, Timings, count_calls, decode, sample
from stableanimator_cli.errors import CheckFailed, Interrupted, SaError
from stableanimator_cli.media import VideoWriter, WriterBehind
from stableanimator_cli.progress import WarningLog


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimateJob:
    """One run's parts, resolved and checked."""

    config: AnimateConfig
    engine: Engine
    request: RenderRequest
    driving: Driving
    subject: ReferenceFace
    refine: FaceOptimization | None
    keeper: CheckpointManager
    reporter: WarningLog


def sample_and_write(job: AnimateJob) -> Animation:
    """Sample, draw again what fails the gate, decode and write. The video is written even where the gate fails in the
    end: ``CheckFailed`` comes after it, with what was done. Goes on where ``job.keeper`` found an earlier run."""
    height, width = job.request.fitted.shape[:2]
    started = time.perf_counter()
    stages = Timings()
    found, steps = job.keeper.found, job.config.sampling.steps
    job.reporter.info(
        f"{job.request.frames} frames of {width}x{height}, {len(job.request.plan)} window(s), "
        f"{steps} steps on {job.engine.plan.describe()}"
    )
    resumed = 0
    if found is not None:
        resumed = found.resumed + 1
        job.engine.calls.update(found.calls)
        again = f" of re-draw {len(found.attempts)}" if found.attempts else ""
        job.reporter.info(f"going on after {found.now.step} of {steps} steps{again}; --restart would begin anew")
    try:
        drawn, gate = _sample_until_gate_passes(job, stages, resumed)
        curve = _write(job, drawn.latents, stages)
        onnx.warn_of_fallbacks(job.reporter)  # of networks that were first opened to measure what was made
        faces = FacesRefined.of(job.refine, drawn.log, job.request.frames)
        if faces is not None:
            faces.report(job.reporter)
        stages.seconds["total"] = time.perf_counter() - started
        report = result.write(
            job.config, job.engine, job.request, job.driving, stages, refine=job.refine, faces=faces,
            refined=drawn.log, identity=curve or gate.identity, gate=gate.to_json(job.config.refine.min_csim),
            redrawn=gate.attempts, resumed=resumed, warnings=job.reporter.warnings,
        )  # fmt: skip
    except KeyboardInterrupt:
        if not job.keeper.kept:
            raise
        raise Interrupted(
            f"{job.config.output}: interrupted", hint="the same command goes on; --restart begins anew"
        ) from None
    except RankLost as lost:
        raise _told(job, lost) from None
    job.keeper.done()
    if gate.failed:
        least = job.config.refine.min_csim
        mean = gate.identity.mean if gate.identity is not None else float("nan")
        without = len(set(gate.failed) & set(gate.unmeasured))
        raise CheckFailed(
            f"{job.config.output}: similarity to the reference is {mean:.3f} on average and below {least} in "
            f"{len(gate.failed)} of {len(job.request.plan)} window(s) after {len(gate.attempts)} re-draw(s)"
            + (f"; {without} of them show no face" if without else ""),
            hint="the video was written; try --gate-retries N, another --seed, --preset released, or a larger face",
        )
    return report


def _told(job: AnimateJob, lost: RankLost) -> SaError:
    """A lost rank's own error where it had one, else that it is lost; and that the run can go on."""
    message = f"{job.config.output}: {lost.message}"
    how = "the same command goes on" if job.keeper.kept else "nothing is lost but the time: repeat the command"
    hint = f"{how}, with any --gpus"
    if lost.told is None:
        return Interrupted(message, hint=hint)
    lost.told.message, lost.told.args = message, (message,)
    lost.told.hint = f"{lost.told.hint}; {hint}" if lost.told.hint else hint
    return lost.told


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Result of the identity gate: windows that ``failed`` and that showed no face (``unmeasured``) in the drawing that
    is used, and in ``attempts`` the windows of each re-draw."""

    identity: Identity | None = None
    failed: tuple[int, ...] = ()
    unmeasured: tuple[int, ...] = ()
    attempts: tuple[tuple[int, ...], ...] = ()

    def to_json(self, least: float | None) -> dict[str, Any] | None:
        if self.identity is None:
            return None
        passed = "passed" if self.identity.frames_with_face else "not measurable"
        result = "failed" if self.failed else passed
        windows = {"failed_windows": list(self.failed), "windows_without_face": list(self.unmeasured)}
        return {"min_csim": least, "result": result, **windows}


def _sample_until_gate_passes(job: AnimateJob, stages: Timings, resumed: int) -> tuple[SamplingState, GateResult]:
    """Sample; with ``--min-csim`` measure, and sample again with new noise where windows fail. The best is kept."""
    least, redraws = job.config.refine.min_csim, job.config.refine.gate_retries
    plan, found = job.request.plan, job.keeper.found
    attempts, best = ((), None) if found is None else (found.attempts, found.best)
    begun = None if found is None else found.now
    latest: list[Checkpoint] = []
    resumable = resumable_steps(job.config.sampling)
    while True:

        def keep(
            now: SamplingState, attempts: tuple[tuple[int, ...], ...] = attempts, best: BestSample | None = best
        ) -> None:
            if now.step not in resumable:  # the next one needs features that no state holds
                return
            calls = Counter(job.engine.calls)
            latest[:] = [Checkpoint(now=now, attempts=attempts, best=best, calls=calls, resumed=resumed)]
            if job.keeper.due():
                job.keeper.keep(latest[0])

        try:
            drawn = _sampled(job, replace(job.request, retry_counts=_counts(attempts, plan)), stages, begun, keep)
        except RankLost:  # what this process holds is whole: nothing is lost after the last step to go on from
            if latest:
                job.keeper.keep(latest[0])
            raise
        if least is None:
            return drawn, GateResult()
        measured = _measured(job, drawn.latents, stages)
        shown = {window for windows in attempts for window in windows}  # it was drawn again: it had a face to fail with
        failed = tuple(measured.failing(plan, least, job.request.has_anchor, shown))
        if best is None or _rank(measured, failed) < _rank(best.identity, best.failed):
            best = BestSample(drawn=drawn, identity=measured, failed=failed)
        if not failed or len(attempts) >= redraws:
            return best.drawn, _judged(job, best, attempts)
        attempts, begun = (*attempts, failed), None
        job.reporter.info(
            f"identity {measured.mean:.3f}: window(s) {', '.join(str(w + 1) for w in failed)} below {least}, "
            f"drawn again ({len(attempts)} of {redraws})"
        )


def _rank(identity: Identity, failed: Sequence[int]) -> tuple[int, float]:
    """A drawing with fewer failing windows is better, then one with a greater mean; the smallest rank is the best."""
    return len(failed), float("inf") if np.isnan(identity.mean) else -identity.mean


def _judged(job: AnimateJob, best: BestSample, attempts: tuple[tuple[int, ...], ...]) -> GateResult:
    """The gate's result, with a warning for what it could not measure."""
    least, plan = job.config.refine.min_csim, job.request.plan
    unmeasured = tuple(best.identity.unmeasured(plan, job.request.has_anchor))
    if best.identity.frames_with_face == 0 and not best.failed:
        job.reporter.warning(f"--min-csim {least} could not be measured: no frame of the video shows a face")
    elif unmeasured:
        windows = ", ".join(str(window + 1) for window in unmeasured)
        job.reporter.warning(f"--min-csim {least} could not be measured in window(s) {windows}, which show no face")
    return GateResult(identity=best.identity, failed=best.failed, unmeasured=unmeasured, attempts=attempts)


def _counts(attempts: Sequence[Sequence[int]], plan: WindowPlan) -> tuple[int, ...]:
    """By frame, the re-draw that its noise comes from: the last one that had a window of it, 0 for the first noise."""
    drawn = [0] * plan.total
    for count, windows in enumerate(attempts, 1):
        for frame in {frame for window in windows for frame in plan.windows[window].frames}:
            drawn[frame] = count
    return tuple(drawn)


def _sampled(
    job: AnimateJob,
    request: RenderRequest,
    stages: Timings,
    begun: SamplingState | None,
    keep: Callable[[SamplingState], None],
) -> SamplingState:
    """One drawing of the whole video, from where ``begun`` left it. ``keep`` is told how far it is after each step."""
    steps, refine = job.config.sampling.steps, job.refine
    if begun is not None and begun.step == steps:
        return replace(begun, latents=begun.latents.to(job.engine.plan.device))
    log = [] if begun is None else list(begun.log)
    if refine is not None:  # each drawing has its own log, and looks for faces itself where it must
        looked = () if begun is None else begun.targets
        refine = replace(refine, log=log, targets=refine.targets if refine.detect is None else list(looked))

    def drawn(latents: Tensor, step: int) -> SamplingState:
        targets = () if refine is None or refine.detect is None else tuple(refine.targets)
        return SamplingState(latents=latents, step=step, log=tuple(log), targets=targets)

    first = 0 if begun is None else begun.step
    whole = count_calls(request)["windows"]
    done = first * whole // steps if request.sampling.sampler == "euler" else first * 2 * len(request.plan)
    with job.reporter.progress(whole - done, "denoise", "window") as bar:
        now = first + 1

        def stepped(latents: Tensor, step: Step) -> None:
            nonlocal now
            now = step.index + 2
            keep(drawn(latents, step.index + 1))

        watch = Callbacks(window=lambda: bar.update(1, step=f"{now}/{steps}"), step=stepped)
        from_here = None if begun is None else Begun(latents=begun.latents, step=begun.step)
        latents = sample(job.engine, request, stages, watch, refine=refine, begun=from_here)
    return drawn(latents, steps)


def _measured(job: AnimateJob, latents: Tensor, stages: Timings) -> Identity:
    """Similarity by frame, from a decode of its own: frames are not kept in memory."""
    curve = _curve(job)
    with job.reporter.progress(job.request.frames, "measure identity", "frame") as bar:
        for frame in decode(job.engine, job.request, latents, stages):
            value = curve.add(frame)
            bar.update(1, csim=value)
    return curve.result()


def _curve(job: AnimateJob) -> IdentityMeter:
    assert job.subject.vector is not None  # a gate without a face is refused before anything is sampled
    return IdentityMeter(job.engine.faces(), job.subject.vector)


def _write(job: AnimateJob, latents: Tensor, stages: Timings) -> Identity | None:
    """Decode into the video, and into the preview with its curve where faces can be read. Both are encoded in threads
    of their own while the next frames are decoded."""
    config, request = job.config, job.request
    height, width = request.fitted.shape[:2]
    audio = job.driving.audio if config.audio == "keep" else None
    reads = config.preview and job.subject.vector is not None and "face" in job.engine.model.files
    if config.preview and not reads:
        missing = "face in the reference" if job.subject.vector is None else "face recogniser in the model"
        job.reporter.info(f"{config.preview_path.name} has no similarity curve: no {missing}")
    curve, values = (_curve(job) if reads else None), []
    with ExitStack() as files:
        writer = files.enter_context(
            WriterBehind(
                VideoWriter(
                    config.output,
                    (width, height),
                    job.driving.fps,
                    audio_from=audio and audio[0],
                    audio_range=audio and audio[1:],
                    tag={"sa.kind": "animation"},
                )
            )
        )
        preview = None
        if config.preview:
            size = (3 * width, height + (identity_gate.STRIP if curve else 0))
            preview = files.enter_context(WriterBehind(VideoWriter(config.preview_path, size, job.driving.fps)))
        with job.reporter.progress(request.frames, "decode", "frame") as bar:
            for index, frame in enumerate(decode(job.engine, request, latents, stages)):
                writer.write(frame)
                if preview is not None:
                    row = np.concatenate(
                        [request.fitted, request.poses.frame(index + request.has_anchor), frame], axis=1
                    )
                    if curve is not None:
                        values.append(curve.add(frame))
                        row = np.concatenate([row, identity_gate.strip(values, request.frames, 3 * width)])
                    preview.write(row)
                bar.update()
    if curve is None:
        return None
    measured = curve.result()
    if measured.frames_with_face == 0 and config.refine.min_csim is None:  # the gate has reported it already
        job.reporter.warning(
            f"{config.preview_path.name} has an empty similarity curve: no frame of the video shows a face"
        )
    return measured
