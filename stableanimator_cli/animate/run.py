"""Entry point of ``sa animate``: mistakes that are cheap to find are reported before torch is imported."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stableanimator_cli import catalogue, clip_folder, distributed
from stableanimator_cli.animate.backbone_options import check_backbone_options
from stableanimator_cli.animate.inputs import check_inputs
from stableanimator_cli.animate.no_effect import options_without_effect
from stableanimator_cli.cards import USER_TABLE, find_card
from stableanimator_cli.catalogue import schema
from stableanimator_cli.catalogue.remedy import remedy
from stableanimator_cli.config.animate import VIDEO_SUFFIXES, AnimateConfig, DecodeConfig, WindowConfig
from stableanimator_cli.config.parse import OUTPUT_NAME, dump_range
from stableanimator_cli.config.refine import ONE_FRAME, preset_options
from stableanimator_cli.config.schema import read_toml, refuse_unknown_keys, resolve
from stableanimator_cli.devices import check_device_exists
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing, command
from stableanimator_cli.files import check_apart, check_replaceable, locked_output
from stableanimator_cli.media.frames_folder import check_folder, is_numbered
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import NETWORKS, ModelFolder

if TYPE_CHECKING:
    import numpy as np

    from stableanimator_cli.animate.live_preview import OnPreview
    from stableanimator_cli.animate.result import Animation, AnimationPlan
    from stableanimator_cli.engine.engine import EngineCache
    from stableanimator_cli.engine.parallel import WorkerGroup

SMALLEST_OUTPUT = 64  # pixels per side, below which the UNet's coarsest level is empty
_LENGTHS_AND_OVERLAPS = (
    ("window", "overlap", "windows", "length", WindowConfig().overlap),
    ("decode_chunk", "decode_overlap", "decode", "chunk", DecodeConfig().overlap),
)


def run(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    plan_only: bool = False,
    restart: bool = False,
    reporter: Reporter | None = None,
    engines: Callable[[], EngineCache] | None = None,
    on_preview: OnPreview | None = None,
    card: str | None = None,
) -> Animation | AnimationPlan:
    """Animate REFERENCE with MOTION. ``flags`` by option name, None if not given; see ``config.AnimateConfig``.

    Writes ``OUT.mp4`` or ``FRAMES/`` (and ``OUT.preview.mp4``) and ``OUT.json``, each complete or not at all. Resumes
    an interrupted run (``checkpoint.py``), unless ``restart``. Raises ``SaError``. Under torchrun rank 0 does all this
    and returns the result; other ranks only denoise, then exit. ``engines`` opens what keeps the model loaded for the
    next run. ``on_preview`` receives live previews. ``card`` names a card to plan for (``cards.find_card``).
    """
    if distributed.rank() > 0:
        from stableanimator_cli.engine import parallel_worker

        parallel_worker.run_worker()
        raise SystemExit(0)
    if card is not None and not plan_only:
        raise ConfigError("--card", card, "--plan beside it: nothing runs on a card that is not here")
    planned = None if card is None else find_card(card, catalogue.cache_dir() / USER_TABLE)
    with _torchrun_group() as workers:
        config, model = resolve_config(flags, config_file, plan_only=plan_only)
        use_face = validate(config, model)
        shortened = flags.get("window") is None and _shorter_window(model.defaults, model) == config.windows.length
        if shortened and reporter is not None:
            reporter.info(f"--window {config.windows.length}: the motion modules of {model.name} know no more frames")
        warnings = [*options_without_effect(config, model, flags), *([] if plan_only else _record_of_other(config))]
        for message in warnings:
            (reporter or NullReporter()).warning(message)
        with nullcontext() if plan_only else locked_output(config.target, "sa animate"):
            from stableanimator_cli.animate.pipeline import run_pipeline

            return run_pipeline(
                config, model, use_face=use_face, plan_only=plan_only, restart=restart, reporter=reporter,
                workers=workers, engines=None if engines is None else engines(), on_preview=on_preview, card=planned,
            )  # fmt: skip


def run_frames(
    *,
    flags: Mapping[str, Any],
    engines: Callable[[], EngineCache],
    config_file: Path | None = None,
    reporter: Reporter | None = None,
    on_preview: OnPreview | None = None,
) -> Iterator[np.ndarray]:
    """Validate, then yield frames uint8[h,w,3] as they are decoded. The output of ``flags`` is not written."""
    config, model = resolve_config(flags, config_file)
    for flag, value, expected in (
        ("--min-csim", config.refine.min_csim, "none: frames that are handed out are not measured"),
        ("--gpus", config.device.gpus if config.device.gpus > 1 else None, "1: frames come from this process"),
    ):
        if value is not None:
            raise ConfigError(flag, value, expected, hint="write a video to use it")
    use_face = validate(config, model, writes=False)
    from stableanimator_cli.animate.frames import render_frames

    return render_frames(
        config, model, use_face=use_face, engines=engines(), reporter=reporter or NullReporter(), on_preview=on_preview
    )


def _torchrun_group() -> AbstractContextManager[WorkerGroup | None]:
    """The processes of torchrun, which must exit on a mistake too; without them torch is not imported."""
    if distributed.world_size() == 1:
        return nullcontext()
    from stableanimator_cli.engine.parallel import torchrun_group

    return torchrun_group()


def resolve_config(
    flags: Mapping[str, Any], config_file: Path | None, *, plan_only: bool = False
) -> tuple[AnimateConfig, ModelFolder]:
    """Open the model, whose card holds defaults, then merge flags over the file over the preset over the card.

    The card's defaults win over a preset that neither flags nor file request. A window that is not set is at most the
    model's longest. If only the window is set, the overlap is reduced to fit; the same holds for decode chunks. For a
    plan the model's files need not be downloaded.
    """
    file = {} if config_file is None else read_toml(config_file)
    refuse_unknown_keys(AnimateConfig, file, config_file or "")
    name = flags.get("model") or file.get("model")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{config_file}: model", name, "a name of the catalogue or a folder, as text")
    if plan_only:
        model = catalogue.plan_model(name)
    else:
        model = catalogue.open_animator(name or catalogue.default_model(NETWORKS))
    requested = flags.get("preset") or file.get("preset")
    # resolve refuses an unknown preset together with the other choices
    options = preset_options(requested or model.defaults.get("preset") or "standard", file)
    merged = {**model.defaults, **options} if requested else {**options, **model.defaults}
    defaults = {**merged, **model.facts.settings}
    lengths = {
        name: flags.get(name) or file.get(table, {}).get(key) for name, _, table, key, _ in _LENGTHS_AND_OVERLAPS
    }
    if lengths["window"] is None and (longest := _shorter_window(defaults, model)) is not None:
        defaults["window"] = lengths["window"] = longest
    for length_name, overlap_name, table, _, usual in _LENGTHS_AND_OVERLAPS:
        length = lengths[length_name]
        if isinstance(length, int):
            fitting = min(int(defaults.get(overlap_name, usual)), max(0, length // 4))
            known = model.facts.choices.get(f"{table}.overlap", ())
            defaults[overlap_name] = max((one for one in known if one <= fitting), default=fitting)
    return resolve(AnimateConfig, flags, None, defaults, preset=(file, str(config_file))), model


def _shorter_window(defaults: Mapping[str, Any], model: ModelFolder) -> int | None:
    """The longest window of ``model`` if that is shorter than the one of ``defaults``."""
    longest = model.longest_window
    usual = int(defaults.get("window", WindowConfig().length))
    return longest if longest is not None and longest < usual else None


def validate(config: AnimateConfig, model: ModelFolder, *, writes: bool = True) -> bool:
    """Refuse every mistake that can be found before anything is loaded. Raises ``SaError``.

    Returns whether the UNet receives the face embedding (``uses_face``). ``writes`` False ignores the output.
    """
    check_size(config.size, model.facts.stride)
    check_backbone_options(config, model)  # before conflicts, whose hints name options that it may not have
    sampling, refine = config.sampling, config.refine
    graphs = "a graph records the complete network: use only one of the two"
    for conflict, flag, value, expected, hint in (
        (sampling.churn > 0 and sampling.sampler != "heun", "--churn", sampling.churn,
         f"0 with --sampler {sampling.sampler}",
         "add --sampler heun"),
        (config.device.cuda_graphs and sampling.cache_features > 1, "--cuda-graphs", True, "no --cache-features",
         graphs),
        (refine.gate_retries and sampling.noise == "repeat", "--gate-retries", refine.gate_retries,
         "0 with --noise repeat", "use --noise fresh"),
        (refine.gate_retries and refine.min_csim is None, "--gate-retries", refine.gate_retries,
         "0 without --min-csim", "add --min-csim 0.5 or so"),
        (refine.face in ("full", "crop") and config.hides_optimised_face, "--refine-face", refine.face,
         "auto or off with --hide-reference-face and --face-embedding",
         "faces are optimised towards the one of REFERENCE, which is hidden: add --refine-face off"),
        (refine.face != "off" and refine.region == "frame" and len(config.people.named) > 1,
         "--refine-region", "frame", f"box with the faces of {len(config.people.named)} people", ONE_FRAME),
    ):  # fmt: skip
        if conflict:
            raise ConfigError(flag, value, expected, hint=hint)
    if refine.min_csim is not None:
        _require_faces(model, "recogniser", "--min-csim")
    first, last = refine.steps_of(sampling.steps)
    if refine.steps is not None and first >= last:
        expected = f"a range that holds one of {sampling.steps} steps"
        raise ConfigError("--refine-steps", dump_range(refine.steps), expected)
    if writes:
        _check_output(config)
    if config.hide_reference_face == "all":
        _require_faces(model, "detector", "--hide-reference-face")
    _check_layers(config, model)
    face = uses_face(config, model)
    check_device_exists(config.device.device)
    check_inputs(config)
    return face


def _require_faces(model: ModelFolder, network: str, flag: str) -> None:
    """Raise ``ModelMissing`` if ``model`` lacks the face networks that ``flag`` needs."""
    if "face" not in model.files:
        hint = f"{remedy(model, 'face')}, or leave {flag} out"
        raise ModelMissing(f"model {model.name!r} has no face {network}, which {flag} needs", hint=hint)


def _record_of_other(config: AnimateConfig) -> Iterator[str]:
    """A message if the run replaces the record of another output: ``a.json`` is that of ``a.mp4`` and of ``a.gif``."""
    record = config.record_path
    try:
        name = Path(json.loads(record.read_text(encoding="utf-8"))["output"]["path"]).name
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if name != config.target.name and record.with_name(name).exists():
        yield f"{record.name}, the record of {name}, is replaced: {name} can no longer be replayed"


def uses_face(config: AnimateConfig, model: ModelFolder) -> bool:
    """Whether the UNet receives the face embedding: not if the checkpoint was trained without it.

    Raises ``ConfigError`` if ``--id-adapter`` differs from the checkpoint's ``[training]`` table, or if people's faces
    are named and it was trained without. With ``--force-ablation`` nothing is compared and the face is used. A Face
    Encoder that was trained without fusion is not checked here: its own config records that.
    """
    if config.force_ablation or not (model.path / schema.FILE_NAME).is_file():
        return True
    training = schema.read(model.path).training
    trained, requested = training.get("id_adapter"), config.id_adapter
    if trained is not None and requested is not None and requested != trained:
        hint = "leave --id-adapter out, or add --force-ablation to see the effect"
        raise ConfigError("--id-adapter", requested, f"{trained}, which {model.name} was trained with", hint=hint)
    face = training.get("face") != "off"
    if not face and (flag := config.people.names_faces) is not None:
        value, hint = config.people.label(config.people.named[0])[1], f"leave {flag} out, or add --force-ablation"
        raise ConfigError(flag, value, f"a model with faces, and {model.name} was trained without", hint=hint)
    return face


def check_size(size: tuple[int, int], stride: int) -> None:
    """Raise ``ConfigError`` for a (width, height) that a backbone with this stride cannot draw."""
    width, height = size
    if width % stride or height % stride or min(size) < SMALLEST_OUTPUT:
        near = (max(SMALLEST_OUTPUT, round(side / stride) * stride) for side in size)
        expected = f"sides that are multiples of {stride}, {SMALLEST_OUTPUT} or more"
        raise ConfigError("--size", f"{width}x{height}", expected, hint="try " + "x".join(map(str, near)))


def _check_layers(config: AnimateConfig, model: ModelFolder) -> None:
    """Refuse ``cache_layers`` that exceed the decoder layers of the UNet."""
    unet, layers = model.configs.get("unet", {}), config.sampling.cache_layers
    per_block, blocks = unet.get("layers_per_block") or 2, len(unet.get("up_block_types") or range(4))
    maximum = sum(per_block) + len(per_block) if isinstance(per_block, list | tuple) else blocks * (per_block + 1)
    if config.sampling.cache_features > 1 and layers > maximum:
        raise ConfigError("sampling.cache_layers", layers, f"1 to {maximum}, the layers of this model's UNet decoder")


def _check_output(config: AnimateConfig) -> None:
    """Refuse outputs that cannot be written, are inputs too, or would replace files of others."""
    output, parent, folder = config.target, config.target.absolute().parent, config.frames_folder
    blocked = next((path for path in (parent, *parent.parents) if path.exists() and not path.is_dir()), None)
    if folder is None and output.is_dir():  # first: the hints below need a name
        raise ConfigError(
            "--output",
            str(output),
            "a file, not a folder",
            hint=f"try {output / 'out.mp4'}, or {output}/ for PNG files",
        )
    for problem, expected, hint in (
        (folder is None and output.suffix.lower() not in VIDEO_SUFFIXES,
         "a name ending in .mp4, .mov, .gif or .webp, or a folder of PNG files (frames/)",
         f"try {output.with_suffix('.mp4') if output.is_file() or not output.exists() else OUTPUT_NAME}"),
        (folder is not None and not is_numbered(config.output.name), "a name with the number of the frame, as %05d.png",
         f"try {config.output.with_suffix('')}/ or {config.output.with_suffix('') / '%05d.png'}"),
        (blocked is not None, f"a file in a folder, which {blocked} is not", "choose another -o"),
        (not parent.is_dir(), "a file in a folder that exists", command("mkdir", "-p", parent)),
        (not os.access(parent, os.W_OK | os.X_OK), "a file in a writable folder", "choose another -o"),
    ):  # fmt: skip
        if problem:
            raise ConfigError("--output", str(config.output), expected, hint=hint)
    written = [
        output,
        config.record_path,
        *([config.preview_path] if config.has_preview_video else []),
        *([config.live_preview_path] if config.has_live_preview else []),
    ]
    inputs = _inputs(config)
    for path in written:
        check_apart(path, inputs)
    state = config.state_path
    if folder is not None:
        check_folder(written.pop(0), config.output.name)
    check_replaceable(*written, *([] if state.is_dir() else [state]))  # a run works without a checkpoint


def _inputs(config: AnimateConfig) -> list[Path]:
    """Everything that a run reads except the model; for a clip folder, the folder and its source video."""
    inputs = list(config.inputs.values())
    folder = config.motion if config.motion.is_dir() else config.motion.parent
    if (folder / clip_folder.RECORD).is_file():
        inputs.append(folder)
        with contextlib.suppress(BadInput, KeyError, TypeError):
            inputs.append(clip_folder.open_folder(folder).source)
    return inputs
