"""Checkpoints that are model folders: ``RUN/checkpoints/step-N``, whole or not there, with what resuming needs in
``state/``.

A checkpoint is written beside its place and renamed, so a kill or a full disk leaves the one before it as it was.
``RUN/model`` points to the one to use: the best by validation, else the last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.files import atomic_write, temporary_path, write_refused
from stableanimator_cli.readers import read_json, read_json_lines
from stableanimator_cli.readers_fields import Fields, shown
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train import leftovers, ranking
from stableanimator_cli.train.base_model import SOURCE, model_toml, plain_name

FOLDER = "checkpoints"
LINK = "model"
STATE = "state"
SCORES = "validation/scores.jsonl"
_NAME = re.compile(r"step-(\d+)")
_PART = re.compile(r"\.step-\d+\.(\d+|old)\.part")
_STATE_FILES = ("weights.safetensors", "average.safetensors", "optimizer.pt", "progress.json")
_FILES = frozenset(
    [FILE_NAME, STATE]
    + [f"{role}{suffix}" for role in ("unet", "pose_net", "face_encoder") for suffix in (".safetensors", ".json")]
    + [f"{STATE}/{name}" for name in _STATE_FILES]
)
_FORMAT = 1
PLACE = ("step", "stage", "within", "samples")
"""Where a training is, in ``progress.json``: the fields of ``loop.Place``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a training is besides its model folder. ``weights`` and ``average`` by parameter name; ``optimizer`` and
    ``scaler`` as torch gives them; ``progress`` JSON: step, stage, step within it, config."""

    progress: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a checkpoint's ``model.toml`` says: the ``model`` trained from and its name seen from the checkpoint
    (``needs``), its networks' JSON ``configs``, settings that go with the weights, and how they came to be."""

    model: ModelFolder
    configs: Mapping[str, Mapping[str, Any]]
    needs: str
    name: str
    defaults: Mapping[str, Any]
    training: Mapping[str, Any]


def saved(run: Path) -> list[tuple[int, Path]]:
    """Finished checkpoints as (step, folder), first to last."""
    folder = run / FOLDER
    found = [(int(m[1]), path) for path in folder.glob("step-*") if (m := _NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / FILE_NAME).is_file())


def is_ours(folder: Path) -> bool:
    """Whether ``folder`` is a checkpoint that ``sa train`` wrote, with nothing else in it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    card, state = folder / FILE_NAME, folder / STATE
    if not card.is_file() or card.is_symlink() or SOURCE not in card.read_text(encoding="utf-8", errors="replace"):
        return False
    inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return inside <= _FILES and (state / "progress.json").is_file()


def check_replaceable(run: Path) -> None:
    """Raise ``BadInput`` for what stands in ``run`` where checkpoints are written and is no checkpoint of ours."""
    finished = {path for _, path in saved(run)}
    for path in sorted((run / FOLDER).glob("step-*")):
        if _NAME.fullmatch(path.name) and path not in finished:
            raise BadInput.because(
                path, "it is in the place of a checkpoint, and `sa train` did not write it", hint="move it away"
            )
    link = run / LINK
    if os.path.lexists(link) and not _is_our_link(link):
        raise BadInput.because(
            link, "it is in the place of the link to the best checkpoint, and `sa train` did not write it",
            hint="move it away",
        )  # fmt: skip


def _is_our_link(link: Path) -> bool:
    if not link.is_symlink():
        return False
    target = Path(os.readlink(link))
    return target.parent == Path(FOLDER) and _NAME.fullmatch(target.name) is not None


def clean(run: Path) -> None:
    """Remove what a killed run left half-written."""
    leftovers.remove_from_run(run)
    for left in (run / FOLDER).glob(".step-*.part"):
        if _PART.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], card: Card, state: State) -> Path:
    """Write ``step-N``. ``tensors`` by role and name, in the type they are to have. Raises ``BadInput`` where the
    system refuses (a full disk), with nothing left of the attempt."""
    target = run / FOLDER / f"step-{step}"
    part = temporary_path(target)
    try:
        shutil.rmtree(part, ignore_errors=True)
        (part / STATE).mkdir(parents=True)
        _write_model(part, step, tensors, card)
        _save_tensors(state.weights, part / STATE / "weights.safetensors")
        _save_tensors(state.average, part / STATE / "average.safetensors")
        torch.save({"optimizer": state.optimizer, "scaler": state.scaler}, part / STATE / "optimizer.pt")
        progress = {"format": _FORMAT, **state.progress}
        (part / STATE / "progress.json").write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
        if os.path.lexists(target):
            raise BadInput.because(target, "it exists and is not replaced", hint="move it away, then resume the run")
        os.replace(part, target)
    except SaError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # the writers of torch and safetensors have their own
        raise _refused(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _refused(target: Path, error: Exception) -> SaError:
    hint = "the checkpoints before it are as they were: make room, then `sa train --resume RUN`"
    if isinstance(error, OSError):
        refused = write_refused(target, error)
        refused.hint = hint
        return refused
    return BadInput(target, " ".join(str(error).split())[:160], "a checkpoint that can be written", hint=hint)


def _write_model(part: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], card: Card) -> None:
    files: list[tuple[str, int, str]] = []
    components: dict[str, tuple[str | None, str | None]] = {}
    for role, values in tensors.items():
        config = None
        if role in card.configs:
            config = f"{role}.json"
            text = json.dumps(dict(card.configs[role]), indent=2) + "\n"
            (part / config).write_text(text, encoding="utf-8")
        path = part / f"{role}.safetensors"
        _save_tensors(values, path)
        with path.open("rb") as stream:
            files.append((path.name, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()))
        components[role] = (path.name, config)
    text = model_toml(
        name=plain_name(f"{card.name}-step-{step}"),
        summary=f"{card.model.name}, trained {step} steps",
        model=card.model,
        needs=[card.needs],
        defaults=card.defaults,
        components=components,
        files=files,
        training=card.training,
    )
    (part / FILE_NAME).write_text(text, encoding="utf-8")


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def read_progress(folder: Path) -> dict[str, Any]:
    """``state/progress.json`` of a checkpoint. Raises ``BadInput`` where it is damaged or of another format."""
    path = folder / STATE / "progress.json"
    what, hint = "the state of a training", f"delete {folder} to continue from the checkpoint before it"
    progress = Fields.of(read_json(path, what, hint=hint), path, what, hint=hint)
    if progress.table.get("format") != _FORMAT:
        found = f"format {shown(progress.table.get('format'))}"
        raise BadInput(path, found, f"format {_FORMAT}", hint="use the version it is of")
    place = progress.fields("place")
    place.only(PLACE)
    for key in PLACE:
        place.whole(key, 0, 10**15)
    progress.fields("config", default={})
    progress.text("dataset", default=None)
    return dict(progress.table)


def read_state(folder: Path) -> State:
    """The state of a checkpoint, on the CPU; nothing in it is run. Raises ``BadInput``."""
    state = folder / STATE
    progress = read_progress(folder)
    try:
        kept = torch.load(state / "optimizer.pt", map_location="cpu", weights_only=True)
        return State(
            progress=progress,
            weights=load_file(state / "weights.safetensors"),
            average=load_file(state / "average.safetensors"),
            optimizer=dict(kept["optimizer"]),
            scaler=dict(kept["scaler"]),
        )
    except Exception as error:  # torch.load raises whatever the damage makes it stumble over
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        hint = f"delete {folder} to go on from the checkpoint before it"
        raise BadInput(state, f"what cannot be read ({why})", "the state of a training", hint=hint) from error


def trained_names(folder: Path) -> list[str]:
    """Parameters that training has changed up to a checkpoint, by their names in the trained module."""
    path = folder / STATE / "weights.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        why = f"it cannot be read ({error})"
        raise BadInput.because(path, why, hint="export another checkpoint, or resume the run") from error


def read_scores(run: Path) -> list[dict[str, Any]]:
    """What validation measured, one row a step."""
    path = run / SCORES
    if not path.is_file():
        return []
    what, hint = "scores of validation", f"delete {path}: checkpoints are validated again where it lacks them"
    rows = []
    for number, value in read_json_lines(path, what, nan=True, cut=True, hint=hint):
        row = replace(Fields.of(value, path, what, hint=hint), where=f"line {number}: ")
        row.whole("step")
        for key in ("score", "csim", "keypoint_error"):
            row.number(key, default=None, nan=True)
        row.rows("clips", default=[])
        rows.append(dict(row.table))
    return rows


def write_scores(run: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_write(run / SCORES) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def best_step(run: Path) -> int | None:
    """The checkpoint with the best score of validation among those that exist, None without validation."""
    return ranking.best(read_scores(run), [step for step, _ in saved(run)])


def tidy(run: Path, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints and the best, and point ``RUN/model`` to the one to use.

    Checkpoints that validation could not score are not deleted, nor are folders that hold anything but a checkpoint.
    """
    here, best = saved(run), best_step(run)
    kept = {best, *ranking.unscored(read_scores(run))}
    for step, path in here[:-keep]:
        if step not in kept and is_ours(path):
            gone = path.with_name(f".{path.name}.old.part")
            with suppress(OSError):
                os.replace(path, gone)  # first out of sight, so that a kill leaves no half of a checkpoint
                shutil.rmtree(gone, ignore_errors=True)
    if here:
        _point(run, f"step-{best if best is not None else here[-1][0]}")


def _point(run: Path, name: str) -> None:
    """Make ``RUN/model`` a link to a checkpoint; there is none where the file system has no links, or where something
    else has that name."""
    link, part = run / LINK, temporary_path(run / LINK)
    if os.path.lexists(link) and not _is_our_link(link):
        return
    with suppress(OSError):
        part.unlink(missing_ok=True)
        part.symlink_to(Path(FOLDER) / name, target_is_directory=True)
        os.replace(part, link)
