"""Preparation of ``sa animate``: inputs opened, settings that fit, faces and people found, a request to render."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stableanimator_cli.animate import reference_face
from stableanimator_cli.animate.anchor import anchor_people, anchor_pose
from stableanimator_cli.animate.driving import open_driving
from stableanimator_cli.animate.driving_frames import Driving, report_crop
from stableanimator_cli.animate.inputs import read_reference
from stableanimator_cli.animate.people import most_faces, named_people
from stableanimator_cli.animate.people_faces import (
    faces_for_unet,
    hidden_faces,
    people_in_video,
    read_other_faces,
    warn_of_shared_face,
    with_people,
)
from stableanimator_cli.animate.reference_face import ReferenceFace
from stableanimator_cli.animate.workers import with_process_count
from stableanimator_cli.cards import Card
from stableanimator_cli.config.animate import AnimateConfig, SamplingConfig
from stableanimator_cli.config.parse import dump_guidance, dump_interval
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.detect.roles import require_detectors
from stableanimator_cli.diffusion.guidance import is_guided
from stableanimator_cli.engine.conditioning import PeopleFaces
from stableanimator_cli.engine.denoiser_calls import denoiser_calls
from stableanimator_cli.engine.device import DevicePlan, available_memory
from stableanimator_cli.engine.engine import Engine, EngineCache
from stableanimator_cli.engine.memory.estimators import estimator_of
from stableanimator_cli.engine.memory.fit import Choice, fit_to_limit
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.engine.parallel import WorkerGroup
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.media.image import unused_content
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenInputs:
    """Reference and motion of a run, with the settings that fit the memory limit.

    ``motion`` reads the motion once; ``detectors`` opens the detectors once, until ``free_detectors``; ``estimator``
    predicts memory with a config and the motion.
    """

    config: AnimateConfig
    model: ModelFolder
    plan: DevicePlan
    image: np.ndarray
    motion: Callable[[], Driving]
    detectors: Callable[[], Detectors]
    free_detectors: Callable[[], None]
    estimator: Callable[..., MemoryEstimator]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An engine and the rendering requested of it, with ``face_sets`` of face tokens (``MemoryEstimator``)."""

    engine: Engine
    request: RenderRequest
    driving: Driving
    face: ReferenceFace
    face_sets: int
    texture_error: float | None


def open_inputs(
    config: AnimateConfig,
    model: ModelFolder,
    reporter: Reporter,
    *,
    workers: WorkerGroup | None = None,
    plan_only: bool = False,
    card: Card | None = None,
) -> OpenInputs:
    """Read the reference, and choose settings below ``--max-memory``. Raises ``SaError``."""
    for warning in model.warnings:
        reporter.warning(warning)
    plan = DevicePlan.of(config.device, card)
    config = config if card else with_process_count(config, plan, workers)
    image = read_reference(config.reference)
    for message in unused_content(config.reference):
        reporter.info(message)
    requested = config

    def open_detectors() -> Any:
        """The detectors; for a plan only what opening them raises."""
        if plan_only:
            return require_detectors(model)
        return Detectors.open(model, str(plan.device), faces=False, arena=False)

    detectors = functools.cache(open_detectors)
    read_motion = functools.cache(
        lambda: open_driving(
            requested, reporter, detectors=detectors, reference=image, count_only=plan_only, facts=model.facts,
            people=functools.partial(people_in_video, requested, image, str(plan.device)),
        )
    )  # fmt: skip
    sized = functools.partial(
        estimator_of, model, device=plan.device, dtype=plan.dtype, size=config.size,
        available=card.bytes if card else available_memory(plan.device),
    )  # fmt: skip

    def estimator(config: AnimateConfig, driving: Driving, *, frames: int, face_sets: int) -> MemoryEstimator:
        face_box = reference_face.largest_face_box(config, driving)
        return sized(frames=frames, face_sets=face_sets, detected_size=driving.detected_size, face_box=face_box)

    choices: tuple[Choice, ...] = ()
    if config.device.max_memory is not None:
        driving = read_motion()
        frames = len(driving.skeletons) + (config.windows.anchor == "reference")
        sets = 1 + (most_faces(config, driving.people) if model.facts.embeds_face else 0)
        config, choices = fit_to_limit(config, estimator(config, driving, frames=frames, face_sets=sets))
        plan = DevicePlan.of(config.device, card)
        for choice in choices:
            reporter.info(f"to fit: {choice}")
    return OpenInputs(
        config=config, model=model, plan=plan, image=image, motion=read_motion, detectors=detectors,
        free_detectors=detectors.cache_clear, estimator=estimator, choices=choices,
    )  # fmt: skip


def warn_of_unused_guidance(sampling: SamplingConfig, reporter: Reporter) -> None:
    """Report a ``--guidance-interval`` that no step is in: few steps have levels far apart, and those of a backbone end
    below its limits."""
    if sampling.guidance_interval is None or not is_guided(*sampling.guidance):
        return
    if not any(call.guided for call in denoiser_calls(sampling)):
        interval = dump_interval(sampling.guidance_interval)
        reporter.warning(
            f"nothing is guided: --guidance-interval {interval} holds no noise level of {sampling.steps} step(s)"
        )


def warn_of_unguided(engine: Engine, request: RenderRequest, reporter: Reporter) -> None:
    """Report what a run without guidance does not use: a ``--negative-prompt``, and numbers below 1 (some backbones are
    guided by these too)."""
    sampling, calls = request.sampling, engine.backbone.count_calls(request)
    if calls[engine.model.facts.denoiser.lower()] != calls["windows"]:
        return
    used = dump_guidance(sampling.guidance)
    if max(sampling.guidance) < 1:
        reporter.warning(f"--guidance {used} is that of 1 here: nothing is guided")
    if sampling.negative_prompt:
        reporter.warning(f"--negative-prompt is not used: --guidance {used} is none; add --guidance 3 or so")


def prepare(
    inputs: OpenInputs, engines: EngineCache, *, use_face: bool, plan_only: bool, reporter: Reporter
) -> Prepared:
    """Open the engine, detect the face and read the motion. ``plan_only`` detects nothing. Raises ``SaError``."""
    config, model, image = inputs.config, inputs.model, inputs.image
    transform = resize_transform((image.shape[1], image.shape[0]), config.size, config.resize)
    report_crop(transform, config.reference, reporter)
    warn_of_unused_guidance(config.sampling, reporter)
    engine = engines.open(model, inputs.plan, id_mode=config.id_adapter or "distribution")
    texture_error, hidden, others = None, (), {}
    # the reference before the motion, which may be long: a missing face is reported at once
    if plan_only:
        face = reference_face.check_reference_face(config, engine, reporter)
    else:
        texture_error = reference_face.check_texture(config, engine, image, reporter)
        face = reference_face.detect_reference_face(config, engine, image, reporter)
        reference_face.require_faces_to_hide(config, face)
        others = read_other_faces(config, engine, reporter)
    driving = inputs.motion()
    if plan_only and driving.people is not None:
        named_people(config.people, driving.people, driving.numbers, config.motion)
    elif not plan_only:
        face = with_people(face, config, image, driving, others, reporter)
        hidden = hidden_faces(config, model, image, driving, face, reporter)
    warn_of_shared_face(config, model, driving, face, reporter)
    poses, anchor = driving.skeletons, None
    if config.windows.anchor == "reference" and face.people and driving.people is not None:
        skeleton, anchor = anchor_people(
            config.reference, image, transform, inputs.detectors, face.people, driving.people
        )
        poses = poses.with_anchor(skeleton)
    elif config.windows.anchor == "reference":
        poses = poses.with_anchor(
            anchor_pose(config.reference, image, transform, inputs.detectors, plan_only=plan_only)
        )
    inputs.free_detectors()  # the motion is known: their memory is freed
    x0, y0, x1, y1 = (round(side) for side in transform.box)
    windows = config.windows
    request = RenderRequest(
        image=image[y0:y1, x0:x1],  # the image encoder sees the animated part at full detail
        resized=transform.apply_image(image, resample="lanczos"),
        face=faces_for_unet(face, driving.people, anchor) if use_face and model.facts.embeds_face else None,
        poses=poses,
        plan=engine.backbone.plan_windows(len(poses), windows),
        sampling=config.sampling,
        decode=config.decode,
        noise_period=windows.length,
        has_anchor=windows.anchor == "reference",
        hidden_faces=reference_face.boxes_of(hidden, transform),
        streams=driving.streams,
    )
    warn_of_unguided(engine, request, reporter)
    if not use_face and face.vector is not None:
        reporter.warning(f"model {model.name!r} was trained without faces: the UNet gets no face embedding")
    faces = len(request.face.vectors) if isinstance(request.face, PeopleFaces) else 0
    if plan_only and use_face and model.facts.embeds_face:
        faces = most_faces(config, driving.people)
    return Prepared(
        engine=engine, request=request, driving=driving, face=face, face_sets=1 + faces, texture_error=texture_error
    )
