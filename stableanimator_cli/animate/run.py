"""``sa animate`` from flags to files: resolve, check everything that is cheap, render, write, record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate import record
from stableanimator_cli.animate.driving import Driving, open_driving, say_cut
from stableanimator_cli.animate.record import Animation, AnimationPlan
from stableanimator_cli.animate.skeletons import Skeletons
from stableanimator_cli.config import AnimateConfig, DecodeConfig, WindowConfig, resolve
from stableanimator_cli.config_toml import read_toml
from stableanimator_cli.detect.face import load_embedding
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import STRIDE, Engine
from stableanimator_cli.engine.render import RenderRequest, Stages, Watch, calls_of, decode, sample
from stableanimator_cli.engine.weights import NETWORKS
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing, NoFace, NoPerson
from stableanimator_cli.media import VideoWriter, read_picture
from stableanimator_cli.motion.geometry import Fit, fit
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.talk import Progress, Silent, Talk

SMALLEST_PICTURE = 32  # pixels a side, below which nobody can be seen in a reference
_PAIRS = (
    ("window", "overlap", "windows", "length", WindowConfig().overlap),
    ("decode_chunk", "decode_overlap", "decode", "chunk", DecodeConfig().overlap),
)
SMALLEST_OUTPUT = 64  # pixels a side, below which the UNet's coarsest level is empty


def run(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    plan_only: bool = False,
    talk: Talk | None = None,
) -> Animation | AnimationPlan:
    """Animate REFERENCE after MOTION. ``flags`` by option name, None where not given; see ``config.AnimateConfig``.

    Writes ``OUT.mp4`` (and ``OUT.preview.mp4``) and ``OUT.json``, each whole or not at all. Raises ``SaError``.
    """
    talk = talk or Silent()
    config, model = _resolved(flags, config_file)
    size = config.size or (512, 512)
    _check(config, size)
    picture = _reference(config.reference)
    there = fit((picture.shape[1], picture.shape[0]), size, config.resize)
    say_cut(there, config.reference, talk)
    driving = open_driving(
        config.motion,
        kind=config.motion_kind,
        frames=config.frames,
        fps=config.fps,
        size=size,
        resize=config.resize,
        talk=talk,
    )
    device = DevicePlan.of(config.device)
    with Engine.open(model, device, id_mode=config.id_adapter or "distribution") as engine:
        poses = driving.skeletons
        if config.windows.anchor == "reference":
            poses = poses.behind(_own_pose(config, engine, picture, there))
        request = _request(config, picture, there, poses)
        if plan_only:
            return AnimationPlan.of(config, model, device, request, driving)
        request = replace(request, face=_face(config, engine, picture, talk))
        return _rendered(config, engine, request, driving, talk)


def _resolved(flags: Mapping[str, Any], config_file: Path | None) -> tuple[AnimateConfig, ModelFolder]:
    """The model first, since its card holds defaults; then flags over file over card.

    Who names a window and no overlap gets an overlap that fits it; the same holds for decode chunks.
    """
    file = {} if config_file is None else read_toml(config_file)
    named = flags.get("model") or file.get("model")
    model = catalogue.open_model(named or catalogue.default_model(NETWORKS), NETWORKS)
    defaults = dict(model.defaults)
    for whole, part, table, key, usual in _PAIRS:
        length = flags.get(whole) or file.get(table, {}).get(key)
        if isinstance(length, int):
            defaults[part] = min(int(defaults.get(part, usual)), max(0, length // 4))
    return resolve(AnimateConfig, flags, config_file, defaults), model


def _check(config: AnimateConfig, size: tuple[int, int]) -> None:
    """Everything about the output that can be refused before minutes of work."""
    width, height = size
    if width % STRIDE or height % STRIDE or min(size) < SMALLEST_OUTPUT:
        near = (max(SMALLEST_OUTPUT, round(side / STRIDE) * STRIDE) for side in size)
        raise ConfigError(
            "--size",
            f"{width}x{height}",
            f"sides that are multiples of {STRIDE}, {SMALLEST_OUTPUT} or more",
            hint="try " + "x".join(map(str, near)),
        )
    if config.sampling.churn > 0 and config.sampling.sampler != "heun":
        raise ConfigError("--churn", config.sampling.churn, "0 with --sampler euler", hint="add --sampler heun")
    if config.output.suffix.lower() not in (".mp4", ".mov", ".m4v"):
        raise ConfigError("--output", str(config.output), "a name ending in .mp4 or .mov")
    if config.output.is_dir():
        raise ConfigError("--output", str(config.output), "a file, not a folder")
    if not config.output.absolute().parent.is_dir():
        parent = config.output.absolute().parent
        raise ConfigError("--output", str(config.output), "a file in a folder that exists", hint=f"mkdir -p {parent}")
    if config.output.exists() and any(
        given.exists() and config.output.samefile(given) for given in (config.reference, config.motion)
    ):
        raise ConfigError("--output", str(config.output), "a file other than the inputs")


def _reference(path: Path) -> np.ndarray:
    picture = read_picture(path)
    height, width = picture.shape[:2]
    if min(height, width) < SMALLEST_PICTURE:
        raise BadInput(path, f"{width}x{height} pixels", f"a picture of {SMALLEST_PICTURE} pixels a side or more")
    return picture


def _own_pose(config: AnimateConfig, engine: Engine, picture: np.ndarray, there: Fit) -> np.ndarray:
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


def _request(config: AnimateConfig, picture: np.ndarray, there: Fit, poses: Skeletons) -> RenderRequest:
    x0, y0, x1, y1 = (round(side) for side in there.box)
    windows = config.windows
    return RenderRequest(
        picture=picture[y0:y1, x0:x1],  # the image encoder sees what will be animated, at full detail
        fitted=there.apply_image(picture, resample="lanczos"),
        face=None,
        poses=poses,
        plan=plan_windows(len(poses), length=windows.length, overlap=windows.overlap, blend=windows.blend),
        sampling=config.sampling,
        decode=config.decode,
        tile=windows.length,
        anchored=windows.anchor == "reference",
    )


def _face(config: AnimateConfig, engine: Engine, picture: np.ndarray, talk: Talk) -> np.ndarray | None:
    """The vector of the largest face: given, or found in the whole picture; None only where that was allowed."""
    if config.face_embedding is not None:
        return load_embedding(config.face_embedding)
    try:
        faces = engine.faces().faces(picture)
    except ModelMissing:
        if not config.allow_no_face:
            raise
        talk.warn(f"model {engine.model.name} has no face detector here: animating without a face, as allowed")
        return None
    if faces:
        if len(faces) > 1:
            talk.note(f"{config.reference.name}: {len(faces)} faces, the largest is kept")
        return faces[0].embedding
    if config.allow_no_face:
        talk.note(f"{config.reference.name}: no face found: animating without one, as allowed")
        return None
    raise NoFace(
        f"{config.reference}: no face found",
        hint="use a picture where the face is larger and seen from the front, or --allow-no-face",
    )


def _rendered(
    config: AnimateConfig, engine: Engine, request: RenderRequest, driving: Driving, talk: Talk
) -> Animation:
    height, width = request.fitted.shape[:2]
    started = time.perf_counter()
    stages = Stages()
    talk.note(
        f"{request.frames} frames of {width}x{height}, {len(request.plan)} window(s), "
        f"{config.sampling.steps} steps on {engine.plan.describe()}"
    )
    audio = driving.audio if config.audio == "keep" else None
    with ExitStack() as files:
        writer = files.enter_context(
            VideoWriter(
                config.output,
                (width, height),
                driving.fps,
                audio_from=audio and audio[0],
                audio_range=audio and audio[1:],
                tag={"sa.kind": "animation"},
            )
        )
        preview = None
        if config.preview:
            preview = files.enter_context(VideoWriter(config.preview_path, (3 * width, height), driving.fps))
        with talk.progress(calls_of(request)["windows"], "denoise", "window") as bar:
            latents = sample(engine, request, stages, _watching(bar, config.sampling.steps))
        with talk.progress(request.frames, "decode", "frame") as bar:
            for index, frame in enumerate(decode(engine, request, latents, stages)):
                writer.write(frame)
                if preview is not None:
                    preview.write(np.concatenate([request.fitted, request.poses.frame(index + request.anchored), frame], axis=1))
                bar.update()
    stages.seconds["total"] = time.perf_counter() - started
    return record.write(config, engine, request, driving, stages)


def _watching(bar: Progress, steps: int) -> Watch:
    """A bar that counts windows and says which step they belong to."""
    step = 1

    def stepped(_: object, done: Step) -> None:
        nonlocal step
        step = done.index + 2

    return Watch(window=lambda: bar.update(1, step=f"{step}/{steps}"), step=stepped)
