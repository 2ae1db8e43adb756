"""``sa train``: resolve the config and check what was typed. torch is imported after these checks (``pipeline``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stableanimator_cli import catalogue, distributed
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.config.schema import require
from stableanimator_cli.config.train import SCRATCH, LossConfig, TrainConfig, parse_sizes
from stableanimator_cli.devices import check_device_exists
from stableanimator_cli.errors import ConfigError, Interrupted, ModelMissing, NoFace, SaError
from stableanimator_cli.files import check_apart, locked_output
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import NETWORKS, ModelFolder
from stableanimator_cli.train import base_model, resume
from stableanimator_cli.train.dataset import check_paths
from stableanimator_cli.train.report import ExportReport, TrainReport

if TYPE_CHECKING:
    from stableanimator_cli.train.plan import TrainPlan

_MOVED = "if it was moved, name its new place beside --resume"
_MOVED_MODEL = "if it was moved, name its new place beside --resume: --model FOLDER"
_DEFAULT_SIZE = (512, 512)  # if the model has no size of its own


def run(
    *,
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    resumed: Path | None = None,
    export: Literal["model", "upstream"] | None = None,
    plan_only: bool = False,
    reporter: Reporter | None = None,
) -> TrainReport | TrainPlan | ExportReport | None:
    """Start a training, or resume the one in the folder ``resumed``.

    ``flags`` by option name of ``config.train.TrainConfig``, None if not given. ``export`` writes a checkpoint of
    ``resumed`` to ``output`` instead, ``plan_only`` estimates the cost. Returns None in all ranks of torchrun but the
    first, which also reports errors that all ranks share. Raises ``SaError``; written checkpoints stay.
    """
    try:
        return _run(flags, config_file, resumed, export, plan_only, reporter or NullReporter())
    except (ConfigError, Interrupted, KeyboardInterrupt, NoFace, ModelMissing) as error:
        if distributed.rank() == 0:
            raise
        raise SystemExit(error.exit_code if isinstance(error, SaError) else Interrupted.exit_code) from None


def _run(
    flags: Mapping[str, Any],
    config_file: Path | None,
    resumed: Path | None,
    export: Literal["model", "upstream"] | None,
    plan_only: bool,
    reporter: Reporter,
) -> TrainReport | TrainPlan | ExportReport | None:
    if export is not None:
        _refuse_beside_export({**flags, "config": config_file, "plan": plan_only or None})
        return _export(flags, resumed, export, reporter)
    fresh, first, world = resumed is None, distributed.rank() == 0, distributed.world_size()
    if resumed is not None:
        config = resume.resumed_config(resumed, flags, config_file, reporter if first else NullReporter())
    else:
        config = resume.new_config(flags, config_file)
    inputs = [*config.dataset, *(config.validation.of or ())]
    if fresh and first:  # the others may look after the first has written
        resume.check_new(config.output)
        check_apart(config.output, inputs)
    _check_sharding(config, world, run_folder=resumed)
    check_device_exists(config.device)
    if first:
        check_paths(inputs, None if fresh else _MOVED)
    name = config.model or catalogue.default_model(NETWORKS)
    if not fresh and flags.get("model") is None and Path(name).is_absolute() and not Path(name).is_dir():
        raise ModelMissing(f"{name}: no such model folder", hint=_MOVED_MODEL)
    model = base_model.open_base(name, config.from_scratch or (), config.backbone)
    if fresh:
        config = _with_model_defaults(config, model, flags, config_file)
    config = _with_training_levels(config, model, reporter if first else NullReporter())
    if fresh:
        config = _with_stages(config, name, model)
        _check_lora(config, model)
        if first:
            _warn_of_random_layers(config, reporter)
    _check_ranks(config, world)
    _check_frames(config, model)

    if plan_only:
        from stableanimator_cli.train.pipeline import plan

        return plan(config, model, fresh=fresh, reporter=reporter) if first else None
    with locked_output(config.output, "sa train", folder=True) if first else nullcontext():
        from stableanimator_cli.train.pipeline import train  # imports torch

        if fresh and first:
            weight_digests(model)  # damaged numbers load without an error
        return train(config, name, model, fresh=fresh, reporter=reporter)


def _refuse_beside_export(options: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for an option that an export does not read: ``--plan`` would not keep it from writing."""
    for name, value in options.items():
        if value is not None and name not in ("output", "weights"):
            flag = name.upper() if name == "dataset" else f"--{name.replace('_', '-')}"
            hint = f"leave {flag} out: an export trains nothing and reads --resume, --output and --weights"
            raise ConfigError.because(flag, "--export does not read it", hint=hint)


def _export(
    flags: Mapping[str, Any], run_folder: Path | None, form: Literal["model", "upstream"], reporter: Reporter
) -> ExportReport:
    if run_folder is None:
        hint = f"sa train --resume RUN --export {form} -o FOLDER"
        raise ConfigError("--export", form, "--resume RUN, whose checkpoint it writes", hint=hint)
    output = flags.get("output")
    if output is None:
        raise ConfigError("--output", None, "a folder to write to", hint="add -o FOLDER")
    folder = Path(output)
    if not folder.name:  # "." has no name for a temporary folder beside it
        folder = folder.absolute()
    require(form in ("model", "upstream"), "--export", form, "model or upstream")
    weights = flags.get("weights")
    require(weights in (None, "float16", "float32"), "--weights", weights, "float16 or float32")
    check_apart(folder, [run_folder])
    with locked_output(folder, "sa train --export"):
        from stableanimator_cli.train.export import export  # imports torch

        return export(run_folder, form, folder, weights, reporter)


def _with_stages(config: TrainConfig, name: str, model: ModelFolder) -> TrainConfig:
    """Write out the stages and the paths of model and clips, so that a resumed run decides nothing again and may start
    in another folder."""
    size = model.defaults.get("size")
    config = config.resolve_stages(parse_sizes(size)[0] if isinstance(size, str) else _DEFAULT_SIZE)
    return resume.with_full_paths(replace(config, model=name))


def _with_model_defaults(
    config: TrainConfig, model: ModelFolder, flags: Mapping[str, Any], config_file: Path | None
) -> TrainConfig:
    """``config`` with the values that ``model`` was trained with for options that are not given."""
    face = config.ablation.face == "on"
    config = resume.new_config(flags, config_file, base_model.training_defaults(model, face=face))
    if face and config.ablation.face_encoder == "on" and not base_model.has_fusion(model):
        expected = f"off: {model.name} was trained without it"
        raise ConfigError("--face-encoder", "on", expected, hint="leave --face-encoder out, or use another --model")
    return config


def _check_frames(config: TrainConfig, model: ModelFolder) -> None:
    """Refuse clips of more frames than the motion modules of ``model`` know."""
    longest = model.longest_window
    counts = [("--frames", stage.frames) for stage in config.stage or ()]
    if config.validation.of is not None:
        counts.append(("--validate-frames", config.validation.frames))
    for flag, frames in counts:
        if longest is not None and frames > longest:
            raise ConfigError(
                flag, frames, f"at most {longest}, the frames that the motion modules of {model.name} know"
            )


def _check_lora(config: TrainConfig, model: ModelFolder) -> None:
    """Low-rank updates do not train a network that starts from random weights: refuse before anything is cached."""
    lora = any(stage.train == "lora" for stage in config.stage or ())
    fresh = [role for role in SCRATCH if role in (config.from_scratch or ()) or role not in model.files]
    if lora and fresh:
        hint = "start from a trained model folder, or use --train adapters or --train attentions first"
        raise ConfigError("--train", "lora", f"a model with {' and '.join(sorted(fresh))}", hint=hint)


def _warn_of_random_layers(config: TrainConfig, reporter: Reporter) -> None:
    """Warn if a UNet starts with random weights and no stage trains all of them."""
    trains = [stage.train for stage in config.stage or ()]
    if "unet" in (config.from_scratch or ()) and "all" not in trains:
        reporter.warning(
            f"--from-scratch unet with --train {' and '.join(dict.fromkeys(trains))}: layers of the UNet that are not "
            "trained stay random; --train all trains them"
        )


def _with_training_levels(config: TrainConfig, model: ModelFolder, reporter: Reporter) -> TrainConfig:
    """Replace the default ``--sigma`` by the backbone's own; refuse others that it does not have."""
    levels, requested = model.facts.training_levels, config.loss.sigma
    if requested in levels:
        return config
    if requested != LossConfig().sigma:
        expected = f"{' or '.join(levels)} with the backbone {model.backbone}"
        raise ConfigError("--sigma", requested, expected, hint=f"use --sigma {levels[0]}, or leave it out")
    reporter.info(f"--sigma {levels[0]}: the noise levels of the backbone {model.backbone}")
    return replace(config, loss=replace(config.loss, sigma=levels[0]))


def _check_sharding(config: TrainConfig, world: int, run_folder: Path | None) -> None:
    """Sharding needs several processes, and an optimiser that treats values one by one."""
    if config.memory.sharding == "off":
        return
    if world == 1:
        target = "DATASET -o RUN" if run_folder is None else f"--resume {run_folder}"
        command = f"torchrun --nproc-per-node 2 -m stableanimator_cli train {target} --sharding full"
        hint = f"add --sharding off, or start several: {command}"
        raise ConfigError("--sharding", "full", "off, as there is one process", hint=hint)
    if config.optimizer.kind != "adamw":
        hint = "use optimizer.kind adamw, or --sharding off"
        raise ConfigError("optimizer.kind", config.optimizer.kind, "adamw with --sharding full", hint=hint)


def _check_ranks(config: TrainConfig, world: int) -> None:
    for stage in config.stage or ():
        if stage.batch % world:
            hint = f"--batch counts the samples of all processes together: try {math.ceil(stage.batch / world) * world}"
            raise ConfigError("--batch", stage.batch, f"a multiple of the {world} processes", hint=hint)
