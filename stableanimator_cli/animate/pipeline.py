"""Pipeline of ``sa animate`` after validation: read inputs, sample, decode, write, record."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from stableanimator_cli.animate import identity_gate, reference_face, result
from stableanimator_cli.animate.checkpoint import CheckpointManager
from stableanimator_cli.animate.driving import open_driving, report_crop
from stableanimator_cli.animate.identity_gate import GateResult, Identity
from stableanimator_cli.animate.job import AnimateJob
from stableanimator_cli.animate.reference_face import FacesRefined
from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.sampling import identity_meter, sample_until_gate_passes
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.parse import Size
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.capture import Detectors, pose_of
from stableanimator_cli.diffusion.guidance import window_branches
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine import parallel
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.memory.fit import Choice, fit_to_limit
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.render import RenderRequest, decode
from stableanimator_cli.errors import BadInput, CheckFailed, ConfigError, Interrupted, ModelMissing, NoPerson, SaError
from stableanimator_cli.files import locked_output
from stableanimator_cli.media import VideoWriter, WriterBehind, read_picture
from stableanimator_cli.motion.geometry import ResizeTransform, resize_transform
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.progress import NullReporter, Reporter, WarningLog
from stableanimator_cli.records import ModelFolder

SMALLEST_REFERENCE = 32  # pixels per side


def run_pipeline(
    config: AnimateConfig,
    model: ModelFolder,
    *,
    use_face: bool,
    plan_only: bool = False,
    restart: bool = False,
    reporter: Reporter | None = None,
    workers: parallel.WorkerGroup | None = None,
) -> Animation | AnimationPlan:
    """Run a validated config. ``use_face`` is the result of ``validate``. Without ``workers`` (torchrun's processes)
    as many as ``--gpus`` are spawned."""
    reporter = WarningLog(reporter or NullReporter())
    for warning in model.warnings:
        reporter.warning(warning)
    size = config.size
    assert size is not None  # resolve_config sets it
    plan = DevicePlan.of(config.device)
    config = _with_process_count(config, plan, workers)
    with contextlib.ExitStack() as stack:
        if not plan_only:
            stack.enter_context(locked_output(config.output, "sa animate"))
        image = read_reference(config.reference)
        detectors = functools.cache(lambda: Detectors.open(model, str(plan.device), faces=False))
        read_motion = functools.cache(
            lambda: open_driving(
                config.motion, kind=config.motion_kind, frames=config.frames, fps=config.fps, size=size,
                resize=config.resize, reporter=reporter, detectors=detectors, reference=image, count_only=plan_only,
            )
        )  # fmt: skip
        choices: tuple[Choice, ...] = ()
        if config.device.max_memory is not None:
            frames = len(read_motion().skeletons) + (config.windows.anchor == "reference")
            config, choices = fit_to_limit(config, _memory_estimator(model, plan, size, frames))
            plan = DevicePlan.of(config.device)
            for choice in choices:
                reporter.info(f"to fit: {choice}")
        checkpoints = None if plan_only else CheckpointManager(config, model, plan, reporter, restart=restart)
        transform = resize_transform((image.shape[1], image.shape[0]), size, config.resize)
        report_crop(transform, config.reference, reporter)
        engine = stack.enter_context(Engine.open(model, plan, id_mode=config.id_adapter or "distribution"))
        # the face before the motion, which may be long: a missing face is reported at once
        if plan_only:
            face = reference_face.check_reference_face(config, engine, reporter)
        else:
            face = reference_face.detect_reference_face(config, engine, image, reporter)
        driving = read_motion()
        poses = driving.skeletons
        if config.windows.anchor == "reference":
            poses = poses.with_anchor(_anchor_pose(config, detectors, image, transform))
        x0, y0, x1, y1 = (round(side) for side in transform.box)
        windows = config.windows
        request = RenderRequest(
            picture=image[y0:y1, x0:x1],  # the image encoder sees the animated part at full detail
            fitted=transform.apply_image(image, resample="lanczos"),
            face=face.vector if use_face else None,
            poses=poses,
            plan=plan_windows(len(poses), length=windows.length, overlap=windows.overlap, blend=windows.blend),
            sampling=config.sampling,
            decode=config.decode,
            noise_period=windows.length,
            has_anchor=windows.anchor == "reference",
        )
        if not use_face and face.vector is not None:
            reporter.warning(f"model {model.name!r} was trained without faces: the UNet gets no face embedding")
        if checkpoints is None:
            memory = _memory_estimator(model, plan, size, len(poses)).of(config)
            return AnimationPlan.of(config, model, plan, request, driving, memory, choices)
        refine = reference_face.build_face_optimization(config, engine, image, face, driving, reporter)
        onnx.warn_of_fallbacks(reporter)
        group = stack.enter_context(_worker_group(config, request, workers, reporter))
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
                distribute=None if group is None else group.distribute,
            )
        )


def _with_process_count(config: AnimateConfig, plan: DevicePlan, workers: parallel.WorkerGroup | None) -> AnimateConfig:
    """Set ``--gpus`` to the number of processes. Raises ``ConfigError`` if they lack a device each."""
    requested = config.device.gpus
    if workers is not None and requested not in (1, workers.world):
        hint = "torchrun starts them: leave --gpus out"
        raise ConfigError("--gpus", requested, f"the {workers.world} processes that torchrun started", hint=hint)
    world = requested if workers is None else workers.world
    if world > 1:
        parallel.check(plan, config.device.device, world, here=workers is None)
    return replace(config, device=replace(config.device, gpus=world))


def _memory_estimator(model: ModelFolder, plan: DevicePlan, size: Size, frames: int) -> MemoryEstimator:
    return MemoryEstimator(model=model, device=plan.device, dtype=plan.dtype, size=size, frames=frames)


def read_reference(path: Path) -> np.ndarray:
    """Read the reference image, RGB uint8[h,w,3]. Raises ``BadInput`` if it is missing, damaged or too small."""
    image = read_picture(path)
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_REFERENCE:
        raise BadInput(
            path,
            f"{width}x{height} pixels",
            f"an image of {SMALLEST_REFERENCE} pixels a side or more",
            hint="use a larger image of the person",
        )
    return image


def _anchor_pose(
    config: AnimateConfig, detectors: Callable[[], Detectors], image: np.ndarray, transform: ResizeTransform
) -> np.ndarray:
    """Draw the reference's own skeleton at the output's size: MimicMotion's anchor of every window."""
    try:
        keypoints = pose_of(image, detectors())
    except ModelMissing as error:
        hint = f"{error.hint}, or --anchor first, which needs no detectors"
        raise ModelMissing(f"{error.message}, which --anchor reference needs", hint=hint) from None
    if keypoints is None:
        raise NoPerson(
            f"{config.reference}: nobody found, and --anchor reference needs the person's own pose",
            hint="use --anchor first, or an image that shows the whole person",
        )
    keypoints = keypoints.copy()
    keypoints[:, :2] = transform.apply_points(keypoints[:, :2])
    return draw_skeleton(keypoints[None], transform.target)


@contextlib.contextmanager
def _worker_group(
    config: AnimateConfig, request: RenderRequest, workers: parallel.WorkerGroup | None, reporter: Reporter
) -> Iterator[parallel.WorkerGroup | None]:
    """The processes that help to denoise: torchrun's, or spawned here if there is work for more than one."""
    world, branches = config.device.gpus, len(window_branches(request.plan, config.sampling.guidance))
    if world > branches:
        reporter.info(f"{branches} of {world} processes have work: one per window and guidance branch")
    if workers is None and min(world, branches) > 1:
        with parallel.spawned_group(min(world, branches)) as group:
            yield group
    else:
        yield workers


def sample_and_write(job: AnimateJob) -> Animation:
    """Sample, retry windows that fail the gate, decode and write; resumes from ``job.checkpoints``.

    The video is written even if the gate fails after all retries: ``CheckFailed`` is raised after it.
    """
    config, restored, steps = job.config, job.checkpoints.restored, job.config.sampling.steps
    height, width = job.request.fitted.shape[:2]
    started = time.perf_counter()
    job.reporter.info(
        f"{job.request.frames} frames of {width}x{height}, {len(job.request.plan)} window(s), "
        f"{steps} steps on {job.engine.plan.describe()}"
    )
    if restored is not None:
        job.engine.calls.update(restored.calls)
        retry = f" of retry {len(restored.attempts)}" if restored.attempts else ""
        job.reporter.info(f"resuming after {restored.state.step} of {steps} steps{retry}; --restart starts over")
    try:
        state, gate = sample_until_gate_passes(job)
        identity = _write_video(job, state.latents) or gate.identity
        onnx.warn_of_fallbacks(job.reporter)  # of networks that were first opened to measure the result
        faces = FacesRefined.of(job.refine, state.log, job.request.frames)
        if faces is not None:
            faces.report(job.reporter)
        job.timings.seconds["total"] = time.perf_counter() - started
        animation = result.write(job, log=state.log, faces=faces, identity=identity, gate=gate)
    except KeyboardInterrupt:
        if not job.checkpoints.saved:
            raise
        hint = "run the same command to resume; --restart starts over"
        raise Interrupted(f"{config.output}: interrupted", hint=hint) from None
    except parallel.RankLost as lost:
        raise _rank_error(job, lost) from None
    job.checkpoints.delete()
    if gate.failed:
        raise _gate_error(job, gate)
    return animation


def _rank_error(job: AnimateJob, lost: parallel.RankLost) -> SaError:
    """A lost rank's own error if it reported one, else that it is lost; with how to resume."""
    message = f"{job.config.output}: {lost.message}"
    how = "run the same command to resume" if job.checkpoints.saved else "run the same command again"
    hint = f"{how}, with any --gpus"
    if lost.reported is None:
        return Interrupted(message, hint=hint)
    lost.reported.message, lost.reported.args = message, (message,)
    lost.reported.hint = f"{lost.reported.hint}; {hint}" if lost.reported.hint else hint
    return lost.reported


def _gate_error(job: AnimateJob, gate: GateResult) -> CheckFailed:
    mean = float("nan") if gate.identity is None else gate.identity.mean
    without = len(set(gate.failed) & set(gate.unmeasured))
    return CheckFailed(
        f"{job.config.output}: similarity to the reference is {mean:.3f} on average and below "
        f"{job.config.refine.min_csim} in {len(gate.failed)} of {len(job.request.plan)} window(s) "
        f"after {len(gate.attempts)} retries" + (f"; {without} of them show no face" if without else ""),
        hint="the video was written; try --gate-retries N, another --seed, --preset released, or a larger face",
    )


def _write_video(job: AnimateJob, latents: Tensor) -> Identity | None:
    """Decode into the video and the preview. Returns the similarity curve of the preview, None without one.

    Both files are encoded in threads while the next frames are decoded.
    """
    config, request, fps = job.config, job.request, job.driving.fps
    height, width = request.fitted.shape[:2]
    audio = job.driving.audio if config.audio == "keep" else None
    measures = config.preview and job.face.vector is not None and "face" in job.engine.model.files
    if config.preview and not measures:
        missing = "face in the reference" if job.face.vector is None else "face recogniser in the model"
        job.reporter.info(f"{config.preview_path.name} has no similarity curve: no {missing}")
    meter, values = (identity_meter(job) if measures else None), []
    with contextlib.ExitStack() as stack:
        video = VideoWriter(
            config.output, (width, height), fps,
            audio_from=audio and audio[0], audio_range=audio and audio[1:], tag={"sa.kind": "animation"},
        )  # fmt: skip
        writer = stack.enter_context(WriterBehind(video))
        preview = None
        if config.preview:
            size = (3 * width, height + (identity_gate.STRIP if meter else 0))
            preview = stack.enter_context(WriterBehind(VideoWriter(config.preview_path, size, fps)))
        bar = stack.enter_context(job.reporter.progress(request.frames, "decode", "frame"))
        for index, frame in enumerate(decode(job.engine, request, latents, job.timings)):
            writer.write(frame)
            if preview is not None:
                row = np.concatenate([request.fitted, request.poses.frame(index + request.has_anchor), frame], axis=1)
                if meter is not None:
                    values.append(meter.add(frame))
                    row = np.concatenate([row, identity_gate.strip(values, request.frames, 3 * width)])
                preview.write(row)
            bar.update()
    if meter is None:
        return None
    identity = meter.result()
    if identity.frames_with_face == 0 and config.refine.min_csim is None:  # else the gate has reported it
        job.reporter.warning(
            f"{config.preview_path.name} has an empty similarity curve: no frame of the video shows a face"
        )
    return identity
