"""The config of a new or resumed run, and checks that nothing is overwritten or changed."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import Entry
from stableanimator_cli.config.schema import read_toml, resolve, to_toml
from stableanimator_cli.config.train import StageConfig, TrainConfig, preset_tables
from stableanimator_cli.config.train_diff import diff, with_current_names
from stableanimator_cli.errors import BadInput, ConfigError, command
from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.progress import Reporter
from stableanimator_cli.train import checkpoint
from stableanimator_cli.train.curves import CURVES
from stableanimator_cli.train.lr_schedule import learning_rate
from stableanimator_cli.train.metrics_log import METRICS

CONFIG = "config.toml"
_UNUSED_SIZE = (0, 0)  # the stages of a run have their own sizes


def new_config(
    flags: Mapping[str, Any], config_file: Path | None, defaults: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Merge flags, file, the preset that one of them names and the model's ``defaults``; earlier ones win."""
    name = flags.get("preset") or (None if config_file is None else read_toml(config_file).get("preset"))
    tables = preset_tables(name) if isinstance(name, str) else None
    return resolve(TrainConfig, flags, config_file, defaults, preset=tables)


def resumed_config(run: Path, flags: Mapping[str, Any], config_file: Path | None, reporter: Reporter) -> TrainConfig:
    """The config of ``run`` with the given flags and file over it. ``steps`` or ``epochs`` set the length of the last
    stage.

    Raises ``ConfigError`` that lists the differences if they would change a result of the training, if ``steps`` is
    less than what is trained already, and if ``output`` is another folder.
    """
    path, output = run / CONFIG, flags.get("output")
    if output is not None and Path(output).resolve() != run.resolve():
        hint = f"leave -o out, or start a new run from {run / checkpoint.LINK} with --model"
        raise ConfigError("--output", str(output), f"{run}, the folder that --resume continues", hint=hint)
    if not path.is_file():
        hint = "a run folder holds config.toml and checkpoints/; start a new run with DATASET -o RUN"
        raise BadInput(run, "no config.toml", "the folder of a run of sa train", hint=hint)
    stored = read_toml(path)
    config = with_full_paths(resolve(TrainConfig, {**flags, "output": run}, config_file, preset=(stored, str(path))))
    if config.stage is None:
        raise BadInput(path, "no [[stage]]", "the config that sa train wrote", hint="start a new run")
    steps, epochs = config.steps, config.epochs
    ran = resolve(TrainConfig, {"output": run}, preset=(stored, str(path)))
    config = replace(config, steps=None, epochs=None, stage=_with_sizes(config.stage, ran.stage or ()))
    config = config.resolve_stages(_UNUSED_SIZE)
    stages = config.stage
    assert stages  # resolve_stages fills it
    if steps is not None or epochs is not None:
        config = replace(config, stage=(*stages[:-1], replace(stages[-1], steps=steps, epochs=epochs)))
    progress = last_progress(run)
    trained = with_current_names(stored if progress is None else progress.get("config") or stored)
    if isinstance(trained.get("model"), str):  # older versions stored the path as it was given
        trained = {**trained, "model": _full_model_path(trained["model"])}
    tables = tables_of(config)
    if progress is not None and progress.get("base"):  # the base model may have moved: its digests are compared
        trained = {**trained, "model": tables.get("model")}
    check_length(config, reporter)
    changed = diff(_without_length(trained), _without_length(tables))
    if changed:
        hint = f"resume without the change, or start a new run from {run / checkpoint.LINK} with --model"
        if progress is None:
            hint = f"resume without the change, or delete {run}, which has no checkpoint, and start a new run"
        raise ConfigError("--resume", "; ".join(changed), f"the config that {run} was trained with", hint=hint)
    return config


def _with_sizes(stages: Sequence[StageConfig], trained: Sequence[StageConfig]) -> tuple[StageConfig, ...]:
    """``stages``, of which those without sizes get those that were ``trained``: a new run takes them from the model."""
    known = (*(stage.sizes for stage in trained), *(None for _ in stages))
    return tuple(replace(stage, sizes=stage.sizes or sizes) for stage, sizes in zip(stages, known, strict=False))


def with_full_paths(config: TrainConfig) -> TrainConfig:
    """``config`` with paths of model and clips that are the same files in every working folder."""
    held_out = config.validation.of
    return replace(
        config,
        model=None if config.model is None else _full_model_path(config.model),
        dataset=tuple(path.absolute() for path in config.dataset),
        validation=replace(config.validation, of=held_out and tuple(path.absolute() for path in held_out)),
    )


def _full_model_path(name: str) -> str:
    """The path of a model folder from any working folder; a name of the catalogue as it is.

    The name of a model of the hub becomes the folder in the hub's cache, whose weights never change.
    """
    if name in catalogue.names():
        return name
    folder = catalogue.expanded(name)
    found = None if folder.is_dir() else catalogue.of_hub(name)
    return found.name if isinstance(found, Entry) else str((found or folder).resolve())


def check_length(config: TrainConfig, reporter: Reporter, flag: str = "--steps") -> None:
    """Refuse fewer steps of the last stage than are trained; warn if the learning rate depends on their number.

    ``flag`` set the number. Nothing is checked before epochs are counted in steps.
    """
    *before, last = config.stage or (StageConfig(),)
    progress = last_progress(config.output)
    if last.steps is None or progress is None:
        return
    position = progress["place"]
    done = position["within"] if position["stage"] == len(before) else 0
    if last.steps < done:
        found = last.steps if flag == "--steps" else f"{last.steps} steps"
        hint = f"the run has {done} steps of this stage: give more, or leave {flag} out"
        raise ConfigError(flag, found, f"{done} or more", hint=hint)
    old = (progress.get("config") or {}).get("stage", [{}])[-1].get("steps")
    if last.schedule != "constant" and done and old is not None and old != last.steps:
        now, then = learning_rate(replace(last, steps=old), done), learning_rate(last, done)
        reporter.warning(
            f"schedule {last.schedule}: {done} steps were trained with the learning rates of {old} steps. It continues "
            f"with those of {last.steps} steps, at {then:.3g} instead of {now:.3g}: not equal to a training of "
            f"{last.steps} steps"
        )


def _without_length(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a config without the length of its last stage, which may change on resume."""
    *before, last = tables["stage"]
    shorter = {key: value for key, value in last.items() if key not in ("steps", "epochs")}
    return {**tables, "stage": [*before, shorter]}


def last_progress(run: Path) -> dict[str, Any] | None:
    """``progress.json`` of the last checkpoint, None without one."""
    checkpoints = checkpoint.list_checkpoints(run)
    return checkpoint.read_progress(checkpoints[-1][1]) if checkpoints else None


def tables_of(config: TrainConfig) -> dict[str, Any]:
    """The config as TOML tables, with paths as they were given."""
    return tomllib.loads(to_toml(config))


def as_json(config: TrainConfig) -> dict[str, Any]:
    """``tables_of`` as JSON data, so that it compares equal after a round trip."""
    return json.loads(json.dumps(tables_of(config)))


def write_config(config: TrainConfig, run: Path) -> None:
    path = run / CONFIG
    with atomic_write(path) as temp, translate_os_errors(path):
        temp.write_text(to_toml(replace(config, output=run)), encoding="utf-8")


def check_new(run: Path) -> None:
    """Raise ``BadInput`` if the folder of a new run holds a run, or other files with the names of a run's files."""
    if run.exists() and not run.is_dir():
        raise BadInput.because(run, "it is a file, not a folder for the run", hint="choose another -o")
    checkpoints = checkpoint.list_checkpoints(run)
    if checkpoints or (run / CONFIG).exists():
        another = "choose another -o" if checkpoints else "delete it, as it has no checkpoint, or choose another -o"
        hint = f"resume it with `{command('sa', 'train', '--resume', run)}`, or {another}"
        raise BadInput(run, "an existing run", "a new folder", hint=hint)
    for name in (checkpoint.FOLDER, checkpoint.LINK, METRICS, CURVES, "validation"):
        if os.path.lexists(run / name):
            problem = "it has the name of a file of the run, but `sa train` did not write it"
            raise BadInput.because(run / name, problem, hint="choose another -o, or move it away")


def check_dataset(run: Path, *digests: str) -> None:
    """Raise ``BadInput`` if the clips of a resumed run changed: none of the ``digests`` is recorded."""
    known = (last_progress(run) or {}).get("dataset")
    if known is not None and known not in digests:
        hint = f"restore the dataset, or start a new run from {run / checkpoint.LINK} with --model"
        raise BadInput(run, "other clips in the dataset than it was trained with", "the same clips", hint=hint)


def check_base(run: Path, digests: Mapping[str, str]) -> bool:
    """Raise ``BadInput`` if networks of the base model of a resumed run changed. ``digests`` by role.

    Returns whether there is a record of them: a new run has none.
    """
    known = (last_progress(run) or {}).get("base") or {}
    roles = known.keys() | digests.keys() if known else ()
    changed = sorted(role for role in roles if digests.get(role) != known.get(role))
    if changed:
        hint = f"restore the model, or start a new run from {run / checkpoint.LINK} with --model"
        found = f"another {', '.join(changed)} in the model than it was trained with"
        raise BadInput(run, found, "the same weights", hint=hint)
    return bool(known)
