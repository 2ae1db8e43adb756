"""Going on with a run: its config, what may not change, and that nobody else is at it."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stableanimator_cli.config.schema import read_toml, resolve, to_toml
from stableanimator_cli.config.train import TrainConfig, preset_tables
from stableanimator_cli.config.train_diff import diff, tables_of_today
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.train import checkpoint
from stableanimator_cli.train.curves import CURVES
from stableanimator_cli.train.metrics_log import METRICS

CONFIG = "config.toml"
_WRITTEN = (0, 0)  # a size that is never taken: stages of a run have theirs


def new_config(flags: Mapping[str, Any], config_file: Path | None) -> TrainConfig:
    """Flags over the file over the preset that one of them names."""
    named = flags.get("preset") or (None if config_file is None else read_toml(config_file).get("preset"))
    tables = preset_tables(named) if isinstance(named, str) else None
    return resolve(TrainConfig, flags, config_file, preset=tables)


def resumed_config(run: Path, flags: Mapping[str, Any], config_file: Path | None) -> TrainConfig:
    """The config of ``run`` with what was given now over it. Raises ``ConfigError`` (exit 2) that shows the difference
    where that would change a number of the training."""
    path = run / CONFIG
    if not path.is_file():
        hint = "a run folder holds config.toml and checkpoints/; start a new run with DATASET -o RUN"
        raise BadInput(run, "no config.toml", "the folder of a run of sa train", hint=hint)
    stored = read_toml(path)
    config = resolve(TrainConfig, {**flags, "output": run}, config_file, preset=(stored, str(path)))
    if config.stage is None:
        raise BadInput(path, "no [[stage]]", "the config that sa train wrote", hint="start a new run")
    config = config.resolve_stages(_WRITTEN)
    here = checkpoint.saved(run)
    trained = checkpoint.read_progress(here[-1][1]).get("config", stored) if here else stored
    changed = diff(tables_of_today(trained), tables_of(config))
    if changed:
        hint = f"go on without the change, or start a new run from {run / checkpoint.LINK} with --model"
        raise ConfigError("--resume", "; ".join(changed), f"the config that {run} was trained with", hint=hint)
    return config


def tables_of(config: TrainConfig) -> dict[str, Any]:
    """The config as TOML tables, with paths as they were given."""
    return tomllib.loads(to_toml(config))


def write_config(config: TrainConfig, run: Path) -> None:
    path = run / CONFIG
    with atomic_write(path) as part, translate_os_errors(path):
        part.write_text(to_toml(replace(config, output=run)), encoding="utf-8")


def check_new(run: Path) -> None:
    """A new run needs a folder without a run and without files in the places of a run's own."""
    if run.exists() and not run.is_dir():
        raise BadInput.because(run, "it is a file, not a folder for the run", hint="choose another -o")
    if (run / CONFIG).exists() or checkpoint.saved(run):
        hint = f"`sa train --resume {run}` goes on with it; choose another -o for a new one"
        raise BadInput(run, "a run that is there already", "a new folder", hint=hint)
    for name in (checkpoint.FOLDER, checkpoint.LINK, METRICS, CURVES, "validation"):
        if os.path.lexists(run / name):
            raise BadInput.because(
                run / name, "it is in the place of a file of the run, and `sa train` did not write it",
                hint="choose another -o, or move it away",
            )  # fmt: skip


def check_dataset(run: Path, digest: str) -> None:
    """The clips of a run that is gone on with are those it began with."""
    here = checkpoint.saved(run)
    if not here:
        return
    known = checkpoint.read_progress(here[-1][1]).get("dataset")
    if known is not None and known != digest:
        hint = f"put the dataset back as it was, or start a new run from {run / checkpoint.LINK} with --model"
        raise BadInput(run, "other clips in the dataset than it was trained with", "the same clips", hint=hint)


def last_loss(run: Path, rows: list[dict[str, Any]]) -> float:
    """Mean loss of the last hundred steps."""
    losses = [row["loss"] for row in rows[-100:]]
    return sum(losses) / len(losses) if losses else float("nan")


def as_json(config: TrainConfig) -> dict[str, Any]:
    """``tables_of`` as JSON holds it, so that it compares equal after a round trip."""
    return json.loads(json.dumps(tables_of(config)))
