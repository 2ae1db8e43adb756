"""Sample until the identity gate passes, with a checkpoint after each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from stableanimator_cli.animate.checkpoint import BestSample, Checkpoint, SamplingState
from stableanimator_cli.animate.identity_gate import GateResult, Identity, IdentityMeter
from stableanimator_cli.animate.job import AnimateJob
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.diffusion.windows import WindowPlan
from stableanimator_cli.engine.denoiser_calls import evaluations_of, resumable_steps
from stableanimator_cli.engine.parallel import RankLost
from stableanimator_cli.engine.render import Callbacks, RenderRequest, decode, sample


def sample_until_gate_passes(job: AnimateJob) -> tuple[SamplingState, GateResult]:
    """Sample; with ``--min-csim`` measure, and sample failing windows with new noise. Returns the best result."""
    minimum, retries = job.config.refine.min_csim, job.config.refine.gate_retries
    plan, restored = job.request.plan, job.checkpoints.restored
    attempts, best, state = ((), None, None) if restored is None else (restored.attempts, restored.best, restored.state)
    resumable = resumable_steps(job.config.sampling)
    latest: Checkpoint | None = None

    def save(state: SamplingState) -> None:
        nonlocal latest
        if state.step not in resumable:  # the next step needs features that no checkpoint holds
            return
        calls = Counter(job.engine.calls)
        latest = Checkpoint(state=state, attempts=attempts, best=best, calls=calls, resumed=job.resumed)
        if job.checkpoints.due():
            job.checkpoints.save(latest)

    while True:
        try:
            state = _sample(job, replace(job.request, retry_counts=_retry_counts(attempts, plan)), state, save)
        except RankLost:  # the latents of this process are intact
            if latest is not None:
                job.checkpoints.save(latest)
            raise
        if minimum is None:
            return state, GateResult()
        identity = _measure_identity(job, state.latents)
        retried = {window for windows in attempts for window in windows}  # these windows showed a face before
        failed = tuple(identity.failing(plan, minimum, job.request.has_anchor, retried))
        if best is None or _rank(identity, failed) < _rank(best.identity, best.failed):
            best = BestSample(state=state, identity=identity, failed=failed)
        if not failed or len(attempts) >= retries:
            return best.state, _gate_result(job, best, attempts)
        attempts, state = (*attempts, failed), None
        job.reporter.info(
            f"identity {identity.mean:.3f}: window(s) {', '.join(str(w + 1) for w in failed)} below {minimum}, "
            f"sampled again ({len(attempts)} of {retries})"
        )


def _rank(identity: Identity, failed: Sequence[int]) -> tuple[int, float]:
    """Sort key, best first: the fewest failing windows, then the greatest mean."""
    return len(failed), float("inf") if np.isnan(identity.mean) else -identity.mean


def _gate_result(job: AnimateJob, best: BestSample, attempts: tuple[tuple[int, ...], ...]) -> GateResult:
    """The gate's result, with a warning about windows that could not be measured."""
    minimum = job.config.refine.min_csim
    unmeasured = tuple(best.identity.unmeasured(job.request.plan, job.request.has_anchor))
    if best.identity.frames_with_face == 0 and not best.failed:
        job.reporter.warning(f"--min-csim {minimum} could not be measured: no frame of the video shows a face")
    elif unmeasured:
        windows = ", ".join(str(window + 1) for window in unmeasured)
        job.reporter.warning(f"--min-csim {minimum} could not be measured in window(s) {windows}, which show no face")
    return GateResult(identity=best.identity, failed=best.failed, unmeasured=unmeasured, attempts=attempts)


def _retry_counts(attempts: Sequence[Sequence[int]], plan: WindowPlan) -> tuple[int, ...]:
    """Per frame, the retry that its noise is keyed by: the last one of a window with the frame; 0 without a retry."""
    counts = [0] * plan.total
    for attempt, windows in enumerate(attempts, 1):
        for frame in {frame for window in windows for frame in plan.windows[window].frames}:
            counts[frame] = attempt
    return tuple(counts)


def _sample(
    job: AnimateJob, request: RenderRequest, state: SamplingState | None, save: Callable[[SamplingState], None]
) -> SamplingState:
    """Sample the video once, from ``state`` if given. ``save`` receives the state after each step."""
    sampling, refine = request.sampling, job.refine
    first = 0 if state is None else state.step
    latents = None if state is None else state.latents.to(job.engine.plan.device)
    if state is not None and latents is not None and first == sampling.steps:
        return replace(state, latents=latents)
    log = [] if state is None else list(state.log)
    if refine is not None:  # each sampling has its own log, and its own targets if it detects faces
        targets = refine.targets if refine.detect is None else [] if state is None else list(state.targets)
        refine = replace(refine, log=log, targets=targets)

    def state_after(step: int, latents: Tensor) -> SamplingState:
        detected = () if refine is None or refine.detect is None else tuple(refine.targets)
        return SamplingState(latents=latents, step=step, log=tuple(log), targets=detected)

    remaining = len(request.plan) * sum(call.step >= first for call in evaluations_of(sampling))
    with job.reporter.progress(remaining, "denoise", "window") as bar:
        current = first + 1

        def on_step(latents: Tensor, step: Step) -> None:
            nonlocal current
            current = step.index + 2
            save(state_after(step.index + 1, latents))

        callbacks = Callbacks(window=lambda: bar.update(1, step=f"{current}/{sampling.steps}"), step=on_step)
        latents = sample(
            job.engine, request, job.timings, callbacks,
            refine=refine, latents=latents, first_step=first, distribute=job.distribute,
        )  # fmt: skip
    return state_after(sampling.steps, latents)


def _measure_identity(job: AnimateJob, latents: Tensor) -> Identity:
    """Similarity per frame, from a separate decoding: frames are not kept in memory."""
    meter = identity_meter(job)
    with job.reporter.progress(job.request.frames, "measure identity", "frame") as bar:
        for frame in decode(job.engine, job.request, latents, job.timings):
            bar.update(1, csim=meter.add(frame))
    return meter.result()


def identity_meter(job: AnimateJob) -> IdentityMeter:
    assert job.face.vector is not None  # a gate without a face is refused before sampling
    return IdentityMeter(job.engine.faces(), job.face.vector)
