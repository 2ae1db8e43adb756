"""``sa animate`` from flags to files: resolve, check everything that is cheap, render, write, record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate import face, fitting
from stableanimator_cli.animate.ablation import uses_face
from stableanimator_cli.animate.driving import open_driving, say_cut
from stableanimator_cli.animate.making import Making, make
from stableanimator_cli.animate.record import Animation, AnimationPlan
from stableanimator_cli.animate.skeletons import Skeletons
from stableanimator_cli.animate.state import Keeper
from stableanimator_cli.config import AnimateConfig, DecodeConfig, WindowConfig, resolve
from stableanimator_cli.config_refine import PRESETS
from stableanimator_cli.config_toml import read_toml, refuse_unknown_keys
from stableanimator_cli.diffusion.guidance import pairs_of
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine import parallel, parallel_helper
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import STRIDE, Engine
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.engine.weights import NETWORKS
from stableanimator_cli.errors import BadInput, ConfigError, NoPerson
from stableanimator_cli.media import read_picture
from stableanimator_cli.motion.geometry import Fit, fit
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.talk import Silent, Talk, rank_here

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
    restart: bool = False,
    talk: Talk | None = None,
) -> Animation | AnimationPlan:
    """Animate REFERENCE after MOTION. ``flags`` by option name, None where not given; see ``config.AnimateConfig``.

    Writes ``OUT.mp4`` (and ``OUT.preview.mp4``) and ``OUT.json``, each whole or not at all. A run that was broken off
    is gone on with (``state.py``), unless ``restart``. Raises ``SaError``. Of several processes that torchrun started
    the first does all this and has the result; the others help it to denoise and end here, without a word.
    """
    if rank_here() > 0:
        parallel_helper.help_out()
        raise SystemExit(0)
    with parallel.launched() as ranks:
        config, model = _resolved(flags, config_file)
        return carry_out(config, model, plan_only=plan_only, restart=restart, talk=talk, ranks=ranks)


def carry_out(
    config: AnimateConfig,
    model: ModelFolder,
    *,
    plan_only: bool = False,
    restart: bool = False,
    talk: Talk | None = None,
    ranks: parallel.Ranks | None = None,
) -> Animation | AnimationPlan:
    """``run`` once its settings are resolved. ``ranks`` are there already, or as many as ``--gpus`` are started."""
    talk = talk or Silent()
    size = config.size or (512, 512)
    _check(config, size)
    _check_layers(config, model)
    with_face = uses_face(config, model)
    device = DevicePlan.of(config.device)
    config, chosen = fitting.chosen(config, model, device, talk)
    device = DevicePlan.of(config.device)
    config = _counted(config, device, ranks)
    keeper = None if plan_only else Keeper(config, model, device, talk, restart=restart)
    picture = _reference(config.reference)
    there = fit((picture.shape[1], picture.shape[0]), size, config.resize)
    say_cut(there, config.reference, talk)
    with Engine.open(model, device, id_mode=config.id_adapter or "distribution") as engine:
        # the face before the motion, which may be long: no face is said at once
        subject = face.planned(config, engine, talk) if plan_only else face.found(config, engine, picture, talk)
        driving = open_driving(
            config.motion,
            kind=config.motion_kind,
            frames=config.frames,
            fps=config.fps,
            size=size,
            resize=config.resize,
            talk=talk,
            model=model,
            device=str(device.device),
            reference=picture,
            planned=plan_only,
        )
        poses = driving.skeletons
        if config.windows.anchor == "reference":
            poses = poses.behind(_own_pose(config, engine, picture, there))
        request = _request(config, picture, there, poses, subject.vector if with_face else None)
        if keeper is None:
            memory = fitting.predicted(config, model, device, len(poses))
            return AnimationPlan.of(config, model, device, request, driving, memory, chosen)
        refine = face.refinement(config, engine, picture, subject, driving, talk)
        job = Making(
            config=config,
            engine=engine,
            request=request,
            driving=driving,
            subject=subject,
            refine=refine,
            keeper=keeper,
            talk=talk,
        )
        with _spread(job, ranks):
            return make(job)


def _counted(config: AnimateConfig, device: DevicePlan, ranks: parallel.Ranks | None) -> AnimateConfig:
    """The same with ``--gpus`` as many processes as there will be, each of which has a device."""
    asked = config.device.gpus
    if ranks is not None and asked not in (1, ranks.world):
        hint = "torchrun starts them: leave --gpus out"
        raise ConfigError("--gpus", asked, f"the {ranks.world} processes that are here", hint=hint)
    world = asked if ranks is None else ranks.world
    if world > 1:
        parallel.check(device, config.device.device, world, here=ranks is None)
    return replace(config, device=replace(config.device, gpus=world))


@contextmanager
def _spread(job: Making, ranks: parallel.Ranks | None) -> Iterator[None]:
    """Within it the ranks take part in denoising; none is started that would have nothing to do."""
    world, pairs = job.config.device.gpus, len(pairs_of(job.request.plan, job.config.sampling.guidance))
    if world > pairs:
        job.talk.note(f"{pairs} of {world} processes have work: one a window and guidance branch")
    if ranks is not None:
        job.engine.share = ranks.share
        yield
    elif min(world, pairs) > 1:
        with parallel.started(min(world, pairs)) as ranks:
            job.engine.share = ranks.share
            yield
    else:
        yield


def _resolved(flags: Mapping[str, Any], config_file: Path | None) -> tuple[AnimateConfig, ModelFolder]:
    """The model first, since its card holds defaults; then flags over file over card.

    Who names a window and no overlap gets an overlap that fits it; the same holds for decode chunks.
    """
    file = {} if config_file is None else read_toml(config_file)
    refuse_unknown_keys(AnimateConfig, file, config_file or "")
    named = flags.get("model") or file.get("model")
    if named is not None and not isinstance(named, str):
        raise ConfigError(f"{config_file}: model", named, "a name of the catalogue or a folder, as text")
    model = catalogue.open_model(named or catalogue.default_model(NETWORKS), NETWORKS)
    preset = flags.get("preset") or file.get("preset") or model.defaults.get("preset") or "standard"
    defaults = {**model.defaults, **PRESETS.get(preset, {})}  # an unknown one is refused with the other choices below
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
    if config.device.cuda_graphs and config.sampling.cache_features > 1:
        hint = "what is recorded is the whole network: leave one of the two out"
        raise ConfigError("--cuda-graphs", True, "no --cache-features", hint=hint)
    if config.refine.redraw and config.sampling.noise == "repeat":
        raise ConfigError("--redraw", config.refine.redraw, "0 with --noise repeat", hint="use --noise fresh")
    if config.refine.redraw and config.refine.min_csim is None:
        raise ConfigError("--redraw", config.refine.redraw, "0 without --min-csim", hint="add --min-csim 0.5 or so")
    _check_output(config)


def _check_layers(config: AnimateConfig, model: ModelFolder) -> None:
    """Deep features must leave something of the network to take them from."""
    unet, layers = model.configs["unet"], config.sampling.cache_layers
    per, blocks = unet.get("layers_per_block", 2), len(unet.get("up_block_types", range(4)))
    most = sum(per) + len(per) if isinstance(per, list | tuple) else blocks * (per + 1)
    if config.sampling.cache_features > 1 and layers > most:
        raise ConfigError("sampling.cache_layers", layers, f"1 to {most}, the layers of this model's way up")


def _check_output(config: AnimateConfig) -> None:
    """The video, its preview and its record must have a place, and must not take that of what the user gave."""
    output, parent = config.output, config.output.absolute().parent
    if output.is_dir():
        raise ConfigError("--output", str(output), "a file, not a folder", hint=f"try {output / 'out.mp4'}")
    if output.suffix.lower() not in (".mp4", ".mov", ".m4v"):
        raise ConfigError(
            "--output", str(output), "a name ending in .mp4 or .mov", hint=f"try {output.with_suffix('.mp4')}"
        )
    if not parent.is_dir():
        raise ConfigError("--output", str(output), "a file in a folder that exists", hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError("--output", str(output), "a file in a folder that may be written", hint="choose another -o")
    if config.motion.is_dir() and parent.samefile(config.motion):
        raise ConfigError("--output", str(output), "a file outside of the motion's folder, whose files are its frames")
    written = {"video": output, "record": config.record_path}
    if config.preview:
        written["preview"] = config.preview_path
    for what, path in written.items():
        if path.is_dir():
            raise ConfigError("--output", str(output), f"no folder in the place of the {what} {path}")
        for given in (config.reference, config.motion, config.face_embedding):
            if given is not None and given.exists() and path.exists() and path.samefile(given):
                raise ConfigError(
                    "--output", str(output), f"another name: its {what} {path} would take the place of {given}"
                )


def _reference(path: Path) -> np.ndarray:
    picture = read_picture(path)
    height, width = picture.shape[:2]
    if min(height, width) < SMALLEST_PICTURE:
        raise BadInput(
            path,
            f"{width}x{height} pixels",
            f"a picture of {SMALLEST_PICTURE} pixels a side or more",
            hint="use a larger picture of the person",
        )
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


def _request(
    config: AnimateConfig, picture: np.ndarray, there: Fit, poses: Skeletons, face: np.ndarray | None
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
        tile=windows.length,
        anchored=windows.anchor == "reference",
    )
