"""Pipeline of ``sa animate`` after validation: read inputs, sample, decode, write, record."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stableanimator_cli.animate import fingerprint, reference_face, result
from stableanimator_cli.animate.checkpoint import BestSample, Checkpoint, CheckpointManager, SamplingState
from stableanimator_cli.animate.driving_frames import Driving
from stableanimator_cli.animate.identity_gate import FaceSimilarity, GateResult, retry_counts
from stableanimator_cli.animate.live_preview import LivePreview, OnPreview
from stableanimator_cli.animate.prepare import open_inputs, prepare
from stableanimator_cli.animate.reference_face import FacesRefined, ReferenceFace
from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.video import identity_meter, write_video
from stableanimator_cli.animate.workers import lost_rank_error, worker_group
from stableanimator_cli.cards import Card
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.diffusion.face_optimization import FaceOptimization
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.engine.device import emulation_warning
from stableanimator_cli.engine.engine import Distribute, Engine, EngineCache
from stableanimator_cli.engine.memory.duration import estimate_duration
from stableanimator_cli.engine.parallel import RankLost, WorkerGroup
from stableanimator_cli.engine.render import RenderRequest, SampleOptions, Timings, check_finite, decode, sample
from stableanimator_cli.errors import Interrupted
from stableanimator_cli.progress import NullReporter, Reporter, WarningLog
from stableanimator_cli.records import ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimateJob:
    """One run, resolved and checked. ``distribute`` is set if other processes denoise too."""

    config: AnimateConfig
    engine: Engine
    request: RenderRequest
    driving: Driving
    face: ReferenceFace
    refine: FaceOptimization | None
    checkpoints: CheckpointManager
    reporter: WarningLog
    live: LivePreview | None = None
    texture_error: float | None = None
    distribute: Distribute | None = None
    timings: Timings = field(default_factory=Timings)

    @property
    def resumed(self) -> int:
        """Number of times that the run was resumed."""
        restored = self.checkpoints.restored
        return 0 if restored is None else restored.resumed + 1


@torch.inference_mode(False)  # tensors that a caller's inference mode creates cannot have gradients
def run_pipeline(
    config: AnimateConfig,
    model: ModelFolder,
    *,
    use_face: bool,
    plan_only: bool = False,
    restart: bool = False,
    reporter: Reporter | None = None,
    workers: WorkerGroup | None = None,
    engines: EngineCache | None = None,
    on_preview: OnPreview | None = None,
    card: Card | None = None,
) -> Animation | AnimationPlan:
    """Run a validated config whose output is locked. ``use_face`` is the result of ``validate``.

    Without ``workers`` (torchrun's processes) as many as ``--gpus`` are spawned. ``engines`` keeps the model loaded for
    the next run, and ``on_preview`` receives live previews. ``card``: a plan for that card, which need not be here.
    """
    reporter = WarningLog(reporter or NullReporter())
    with contextlib.ExitStack() as stack:
        engines = engines or stack.enter_context(EngineCache())
        inputs = open_inputs(config, model, reporter, workers=workers, plan_only=plan_only, card=card)
        config = inputs.config
        checkpoints = None if plan_only else CheckpointManager(config, model, inputs.plan, reporter, restart=restart)
        if not plan_only:
            weight_digests(model)  # damaged numbers load without an error, and would blame the reference
        prepared = prepare(inputs, engines, use_face=use_face, plan_only=plan_only, reporter=reporter)
        engine, request, face, driving = prepared.engine, prepared.request, prepared.face, prepared.driving
        estimator = inputs.estimator(config, driving, frames=request.plan.total, face_sets=prepared.face_sets)
        if checkpoints is None:
            memory = estimator.of(config)
            refined = reference_face.refined_steps(config, model)
            duration = estimate_duration(
                estimator, config, engine.backbone.count_calls(request), refined_steps=refined, card=card
            )
            return AnimationPlan.of(config, engine, request, driving, memory, duration, inputs.choices)
        checkpoints.set_people(fingerprint.people(config, driving.people, face.people))
        refine = reference_face.build_face_optimization(
            config, engine, inputs.image, face, driving, reporter, estimator
        )
        onnx.warn_of_fallbacks(reporter)
        group = stack.enter_context(worker_group(config, request, workers, reporter))
        return sample_and_write(
            AnimateJob(
                config=config,
                engine=engine,
                request=request,
                driving=driving,
                face=face,
                refine=refine,
                checkpoints=checkpoints,
                reporter=reporter,
                live=LivePreview(config, engine, reporter, has_anchor=request.has_anchor, on_preview=on_preview),
                texture_error=prepared.texture_error,
                distribute=None if group is None else group.distribute,
            )
        )


def sample_and_write(job: AnimateJob) -> Animation:
    """Sample, retry windows that fail the gate, decode and write; resumes from ``job.checkpoints``.

    The video is written even if the gate fails after all retries: ``CheckFailed`` is raised after it.
    """
    config, restored, steps = job.config, job.checkpoints.restored, job.engine.backbone.total_steps(job.request)
    height, width = job.request.resized.shape[:2]
    started = time.perf_counter()
    job.reporter.info(
        f"{job.request.frames} frames of {width}x{height}, {len(job.request.plan)} window(s), "
        f"{config.sampling.steps} steps on {job.engine.plan.describe()}"
    )
    slow = emulation_warning(job.engine.plan.device, job.engine.plan.dtype)
    if slow is not None:
        job.reporter.warning(slow)
    if restored is not None:
        job.engine.calls.update(restored.calls)
        retry = f" of retry {len(restored.attempts)}" if restored.attempts else ""
        job.reporter.info(f"resuming after {restored.state.step} of {steps} steps{retry}; --restart starts over")
    try:
        state, gate = sample_until_gate_passes(job)
        identity = write_video(job, state.latents) or gate.identity
        onnx.warn_of_fallbacks(job.reporter)  # of networks that were first opened to measure the result
        faces = FacesRefined.of(job.refine, state.log, job.request.frames, steps // config.sampling.steps)
        if faces is not None:
            faces.report(job.reporter, takes_keypoints=job.engine.model.facts.skeleton is not None)
        job.timings.seconds["total"] = time.perf_counter() - started
        animation = result.write(job, log=state.log, faces=faces, identity=identity, gate=gate)
    except KeyboardInterrupt:
        if not job.checkpoints.saved:
            raise
        hint = "run the same command to resume; --restart starts over"
        raise Interrupted(f"{config.target}: interrupted", hint=hint) from None
    except RankLost as lost:
        raise lost_rank_error(lost, config.target, saved=job.checkpoints.saved) from None
    job.checkpoints.delete()
    if job.live is not None:
        job.live.remove()
    if gate.failed:
        raise gate.error(config.target, config.refine.min_csim, len(job.request.plan))
    return animation


def sample_until_gate_passes(job: AnimateJob) -> tuple[SamplingState, GateResult]:
    """Sample; with ``--min-csim`` measure, and sample failing windows with new noise. Returns the best result."""
    minimum, retries = job.config.refine.min_csim, job.config.refine.gate_retries
    plan, restored = job.request.plan, job.checkpoints.restored
    attempts, best, state = ((), None, None) if restored is None else (restored.attempts, restored.best, restored.state)
    resumable = job.engine.backbone.resumable_steps(job.config.sampling)
    latest: Checkpoint | None = None

    def save(state: SamplingState) -> None:
        nonlocal latest
        if state.step not in resumable:  # the next step needs features that no checkpoint holds
            return
        calls = Counter(job.engine.calls)
        latest = Checkpoint(state=state, attempts=attempts, best=best, calls=calls, resumed=job.resumed)
        if job.checkpoints.due():
            check_finite(state.latents, job.engine)  # resumed from it, the run would fail again
            job.checkpoints.save(latest)

    while True:
        try:
            state = _sample(job, replace(job.request, retry_counts=retry_counts(attempts, plan)), state, save)
        except RankLost:  # the latents of this process are intact
            if latest is not None:
                job.checkpoints.save(latest)
            raise
        if minimum is None:
            return state, GateResult()
        identity = _measure_identity(job, state.latents)
        retried = {window for windows in attempts for window in windows}  # these windows showed a face before
        earlier = None if best is None else best.identity
        failed = tuple(identity.failing(plan, minimum, job.request.has_anchor, retried, earlier))
        if best is None or identity.rank(failed) < best.identity.rank(best.failed):
            best = BestSample(state=state, identity=identity, failed=failed)
        if not failed or len(attempts) >= retries:
            unmeasured = tuple(best.identity.unmeasured(plan, job.request.has_anchor))
            gate = GateResult(identity=best.identity, failed=best.failed, unmeasured=unmeasured, attempts=attempts)
            if warning := gate.warning(minimum):
                job.reporter.warning(warning)
            return best.state, gate
        attempts, state = (*attempts, failed), _rewound(job, state, failed)
        job.reporter.info(
            f"identity {identity.mean:.3f}: window(s) {', '.join(str(w + 1) for w in failed)} below {minimum}, "
            f"sampled again ({len(attempts)} of {retries})"
        )


def _rewound(job: AnimateJob, state: SamplingState, failed: tuple[int, ...]) -> SamplingState | None:
    """The part of a sampling before the ``failed`` windows, None if there is none: another sampling starts over."""
    rewound = job.engine.backbone.rewind(job.request, failed, state.latents, state.extra)
    if rewound is None:
        return None
    return SamplingState(latents=rewound.latents, step=rewound.step, log=state.log[: rewound.log], extra=rewound.extra)


def _sample(
    job: AnimateJob, request: RenderRequest, state: SamplingState | None, save: Callable[[SamplingState], None]
) -> SamplingState:
    """Sample the video once, from ``state`` if given. ``save`` receives the state after each step."""
    sampling, refine, total = request.sampling, job.refine, job.engine.backbone.total_steps(request)
    first = 0 if state is None else state.step
    latents = None if state is None else state.latents.to(job.engine.plan.device)
    if state is not None and latents is not None and first == total:
        return replace(state, latents=latents)
    log = [] if state is None else list(state.log)
    if refine is not None:  # each sampling has its own log, and its own targets if it detects faces
        targets = refine.targets if refine.detect is None else [] if state is None else list(state.targets)
        refine = replace(refine, log=log, targets=targets)

    extra = {} if state is None else dict(state.extra)

    def state_after(step: int, latents: Tensor, denoised: Tensor | None = None) -> SamplingState:
        detected = () if refine is None or refine.detect is None else tuple(refine.targets)
        needed = denoised if sampling.sampler == "dpmpp_2m" else None
        return SamplingState(
            latents=latents, step=step, denoised=needed, log=tuple(log), targets=detected, extra=dict(extra)
        )

    remaining = job.engine.backbone.remaining_windows(request, first)
    with job.reporter.progress(remaining, "denoise", "window") as bar:
        current = first + 1

        def on_step(latents: Tensor, denoised: Tensor, step: Step) -> None:
            nonlocal current
            current = step.index + 2
            save(state_after(step.index + 1, latents, denoised))
            if job.live is not None:
                job.live.after_step(latents, denoised, step)

        def on_window() -> None:
            bar.update(1, step=f"{min(current, total)}/{total}")

        options = SampleOptions(
            on_window=on_window, on_step=on_step, refine=refine, distribute=job.distribute,
            latents=latents, denoised=None if state is None else state.denoised, first_step=first, extra=extra,
        )  # fmt: skip
        latents = sample(job.engine, request, job.timings, options)
    return state_after(total, latents)


def _measure_identity(job: AnimateJob, latents: Tensor) -> FaceSimilarity:
    """Similarity per frame, from a separate decoding: frames are not stored."""
    meter = identity_meter(job)
    with job.reporter.progress(job.request.frames, "measure identity", "frame") as bar:
        for frame in decode(job.engine, job.request, latents, job.timings):
            bar.update(1, csim=meter.add(frame))
    return meter.result()
