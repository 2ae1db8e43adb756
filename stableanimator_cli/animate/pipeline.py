"""A run of ``sa animate`` once its settings are known and checked: open, look, render, write, record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stableanimator_cli.animate import fitting, reference_face
from stableanimator_cli.animate.ablation import uses_face
from stableanimator_cli.animate.checkpoint import CheckpointManager
from stableanimator_cli.animate.driving import open_driving, report_crop
from stableanimator_cli.animate.making import AnimateJob, sample_and_write
from stableanimator_cli.animate.pose_frames import PoseFrames
from stableanimator_cli.animate.result import Animation, AnimationPlan
from stableanimator_cli.animate.validate import reference_picture, size_of
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.diffusion.guidance import window_branches
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine import parallel
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.errors import ConfigError, NoPerson
from stableanimator_cli.files import locked_output
from stableanimator_cli.motion.geometry import ResizeTransform, resize_transform
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.progress import NullReporter, Reporter, WarningLog
from stableanimator_cli.records import ModelFolder


def run_pipeline(
    config: AnimateConfig,
    model: ModelFolder,
    *,
    plan_only: bool = False,
    restart: bool = False,
    reporter: Reporter | None = None,
    ranks: parallel.WorkerGroup | None = None,
) -> Animation | AnimationPlan:
    """What ``run`` says, of settings that ``settings.checked`` has seen. ``ranks`` are there already, or as many as
    ``--gpus`` are started."""
    reporter, size = WarningLog(reporter or NullReporter()), size_of(config)
    for warning in model.warnings:
        reporter.warning(warning)
    with_face = uses_face(config, model)
    device = DevicePlan.of(config.device)
    config, chosen = fitting.chosen(config, model, device, reporter)
    device = DevicePlan.of(config.device)
    config = _counted(config, device, ranks)
    with contextlib.ExitStack() as held:
        if not plan_only:
            held.enter_context(locked_output(config.output, "sa animate"))
        keeper = None if plan_only else CheckpointManager(config, model, device, reporter, restart=restart)
        picture = reference_picture(config.reference)
        there = resize_transform((picture.shape[1], picture.shape[0]), size, config.resize)
        report_crop(there, config.reference, reporter)
        engine = held.enter_context(Engine.open(model, device, id_mode=config.id_adapter or "distribution"))
        # the face before the motion, which may be long: no face is said at once
        subject = (
            reference_face.check_reference_face(config, engine, reporter)
            if plan_only
            else reference_face.detect_reference_face(config, engine, picture, reporter)
        )
        driving = open_driving(
            config.motion,
            kind=config.motion_kind,
            frames=config.frames,
            fps=config.fps,
            size=size,
            resize=config.resize,
            reporter=reporter,
            model=model,
            device=str(device.device),
            reference=picture,
            planned=plan_only,
        )
        poses = driving.skeletons
        if config.windows.anchor == "reference":
            poses = poses.with_anchor(_own_pose(config, engine, picture, there))
        request = _request(config, picture, there, poses, subject.vector if with_face else None)
        if not with_face and subject.vector is not None:
            reporter.warning(f"model {model.name!r} was trained without faces: the UNet gets no face embedding")
        if keeper is None:
            memory = fitting.predicted(config, model, device, len(poses))
            return AnimationPlan.of(config, model, device, request, driving, memory, chosen)
        refine = reference_face.build_face_optimization(config, engine, picture, subject, driving, reporter)
        onnx.warn_of_fallbacks(reporter)
        job = AnimateJob(
            config=config,
            engine=engine,
            request=request,
            driving=driving,
            subject=subject,
            refine=refine,
            keeper=keeper,
            reporter=reporter,
        )
        with _spread(job, ranks):
            return sample_and_write(job)


def _counted(config: AnimateConfig, device: DevicePlan, ranks: parallel.WorkerGroup | None) -> AnimateConfig:
    """The same with ``--gpus`` as many processes as there will be, each of which has a device."""
    asked = config.device.gpus
    if ranks is not None and asked not in (1, ranks.world):
        hint = "torchrun starts them: leave --gpus out"
        raise ConfigError("--gpus", asked, f"the {ranks.world} processes that are here", hint=hint)
    world = asked if ranks is None else ranks.world
    if world > 1:
        parallel.check(device, config.device.device, world, here=ranks is None)
    return replace(config, device=replace(config.device, gpus=world))


@contextlib.contextmanager
def _spread(job: AnimateJob, ranks: parallel.WorkerGroup | None) -> Iterator[None]:
    """Within it the ranks take part in denoising; none is started that would have nothing to do."""
    world, pairs = job.config.device.gpus, len(window_branches(job.request.plan, job.config.sampling.guidance))
    if world > pairs:
        job.reporter.info(f"{pairs} of {world} processes have work: one a window and guidance branch")
    if ranks is not None:
        job.engine.distribute = ranks.distribute
        yield
    elif min(world, pairs) > 1:
        with parallel.spawned_group(min(world, pairs)) as ranks:
            job.engine.distribute = ranks.distribute
            yield
    else:
        yield


def _own_pose(config: AnimateConfig, engine: Engine, picture: np.ndarray, there: ResizeTransform) -> np.ndarray:
    """The reference's own skeleton at the output's size: MimicMotion's anchor of every window."""
    points = engine.pose(picture)
    if points is None:
        raise NoPerson(
            f"{config.reference}: nobody found, and --anchor reference needs the person's own pose",
            hint="use --anchor first, or a picture that shows the whole person",
        )
    points = points.copy()
    points[:, :2] = there.apply_points(points[:, :2])
    return draw_skeleton(points[None], there.target)


def _request(
    config: AnimateConfig, picture: np.ndarray, there: ResizeTransform, poses: PoseFrames, face: np.ndarray | None
) -> RenderRequest:
    x0, y0, x1, y1 = (round(side) for side in there.box)
    windows = config.windows
    return RenderRequest(
        picture=picture[y0:y1, x0:x1],  # the image encoder sees what will be animated, at full detail
        fitted=there.apply_image(picture, resample="lanczos"),
        face=face,
        poses=poses,
        plan=plan_windows(len(poses), length=windows.length, overlap=windows.overlap, blend=windows.blend),
        sampling=config.sampling,
        decode=config.decode,
        noise_period=windows.length,
        has_anchor=windows.anchor == "reference",
    )
