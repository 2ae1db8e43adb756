"""Checkpoints that are model folders: ``RUN/checkpoints/step-N``, with what resuming needs in ``state/``.

A checkpoint is written under a temporary name and renamed, so a kill or a full disk leaves the earlier ones intact.
``RUN/model`` links to the one to use: the best by validation, else the last. torch is imported when tensors are read
or written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from stableanimator_cli.catalogue import schema
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.config.schema import toml_literal
from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.files import atomic_write, temporary_path, translate_os_errors, write_refused
from stableanimator_cli.readers import read_json, read_json_lines
from stableanimator_cli.readers_fields import Fields, shown
from stableanimator_cli.train import leftovers, ranking
from stableanimator_cli.train.base_model import SOURCE, file_entry, write_network_config

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "checkpoints"
LINK = "model"
STATE = "state"
SCORES = "validation/scores.jsonl"
_NAME = re.compile(r"step-(\d+)")
_TEMPORARY = re.compile(r"\.step-\d+\.(\d+|old)\.part")
_STATE_FILES = ("weights.safetensors", "average.safetensors", "optimizer.pt", "progress.json")
_FILES = frozenset(
    [FILE_NAME, STATE]
    + [f"{role}{suffix}" for role in ("unet", "pose_net", "face_encoder") for suffix in (".safetensors", ".json")]
    + [f"{STATE}/{name}" for name in _STATE_FILES]
)
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPosition:
    """Progress of a training: ``step`` in total, ``within`` the stage number ``stage``, and ``samples`` so far."""

    step: int = 0
    stage: int = 0
    within: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """State of a training besides its model folder.

    ``weights`` and ``average`` by parameter name; ``optimizer`` and ``scaler`` are ``state_dict`` of torch.
    """

    position: TrainPosition
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints as (step, folder), first to last."""
    found = [(int(m[1]), path) for path in (run / FOLDER).glob("step-*") if (m := _NAME.fullmatch(path.name))]
    return sorted((step, path) for step, path in found if (path / FILE_NAME).is_file())


def check_replaceable(run: Path) -> None:
    """Raise ``BadInput`` if something that ``sa train`` did not write has the name of a checkpoint or the link."""
    complete = {path for _, path in list_checkpoints(run)}
    problem = "it has the name of a checkpoint, but `sa train` did not write it"
    for path in sorted((run / FOLDER).glob("step-*")):
        if _NAME.fullmatch(path.name) and path not in complete:
            raise BadInput.because(path, problem, hint="move it away")
    link = run / LINK
    if os.path.lexists(link) and not _is_our_link(link):
        problem = "it has the name of the link to the best checkpoint, but `sa train` did not write it"
        raise BadInput.because(link, problem, hint="move it away")


def _is_our_link(link: Path) -> bool:
    if not link.is_symlink():
        return False
    target = Path(os.readlink(link))
    return target.parent == Path(FOLDER) and _NAME.fullmatch(target.name) is not None


def remove_partial(run: Path) -> None:
    """Remove temporary files of a killed run."""
    leftovers.remove_from_run(run)
    for _, folder in list_checkpoints(run):
        leftovers.remove_from_checkpoint(folder)
    for path in (run / FOLDER).glob(".step-*.part"):
        if _TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def set_base(run: Path, needs: str) -> None:
    """Let the checkpoints need the base model ``needs``, which may have moved since they were written."""
    for _, folder in list_checkpoints(run):
        if schema.read(folder).needs != (needs,) and _is_checkpoint(folder):
            card = folder / FILE_NAME
            text = card.read_text(encoding="utf-8")
            text = re.sub(r"(?m)^needs = .*$", lambda _: f"needs = {toml_literal([needs])}", text, count=1)
            with atomic_write(card) as temp, translate_os_errors(card):
                temp.write_text(text, encoding="utf-8")


def save(
    run: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: State,
    *,
    config: Mapping[str, Any],
    dataset: str,
    base: Mapping[str, str] | None = None,
    network_configs: Mapping[str, Mapping[str, Any]],
    model_toml: Callable[..., str],
) -> Path:
    """Write a checkpoint and return its folder. ``tensors`` by role and name, in their final dtype.

    ``config``, the digest ``dataset`` and those of the ``base`` model's networks by role are stored to check a resumed
    run. ``network_configs`` by role; ``model_toml`` is ``base_model.model_toml`` without components and files. Raises
    ``BadInput`` if it cannot be written (a full disk), and leaves no partial checkpoint.
    """
    import torch

    target = run / FOLDER / f"step-{state.position.step}"
    temp = temporary_path(target)
    try:
        shutil.rmtree(temp, ignore_errors=True)
        (temp / STATE).mkdir(parents=True)
        components: dict[str, tuple[str | None, str | None]] = {}
        for role, values in tensors.items():
            save_tensors(values, temp / f"{role}.safetensors")
            components[role] = (f"{role}.safetensors", write_network_config(network_configs, role, temp))
        files = [file_entry(temp / f"{role}.safetensors", temp) for role in tensors]
        (temp / FILE_NAME).write_text(model_toml(components=components, files=files), encoding="utf-8")
        save_tensors(state.weights, temp / STATE / "weights.safetensors")
        save_tensors(state.average, temp / STATE / "average.safetensors")
        torch.save({"optimizer": state.optimizer, "scaler": state.scaler}, temp / STATE / "optimizer.pt")
        progress = {"format": _FORMAT, "place": asdict(state.position), "config": config, "dataset": dataset}
        progress["base"] = dict(base or {})
        (temp / STATE / "progress.json").write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
        if os.path.lexists(target):
            raise BadInput.because(target, "it exists and is not replaced", hint="move it away, then resume the run")
        os.replace(temp, target)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors raise their own errors
        raise _write_error(target, error) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return target


def _write_error(target: Path, error: Exception) -> SaError:
    hint = "earlier checkpoints are intact: free some space, then run `sa train --resume RUN`"
    if isinstance(error, OSError):
        refused = write_refused(target, error)
        refused.hint = hint
        return refused
    return BadInput(target, " ".join(str(error).split())[:160], "a checkpoint that can be written", hint=hint)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the usual permissions: safetensors allows only the owner to read it."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)


def read_progress(folder: Path) -> dict[str, Any]:
    """Read ``state/progress.json`` of a checkpoint. Raises ``BadInput`` if it is damaged or of another format."""
    path = folder / STATE / "progress.json"
    what, hint = "the state of a training", f"delete {folder} to resume from the checkpoint before it"
    progress = Fields.of(read_json(path, what, hint=hint), path, what, hint=hint)
    if progress.table.get("format") != _FORMAT:
        found = f"format {shown(progress.table.get('format'))}"
        raise BadInput(path, found, f"format {_FORMAT}", hint="use the version of sa that wrote it")
    position, keys = progress.fields("place"), [field.name for field in fields(TrainPosition)]
    position.only(keys)
    for key in keys:
        position.whole(key, 0, 10**15)
    config = progress.fields("config", default={})
    if config.table:
        stages = config.rows("stage")
        for stage in stages:
            stage.whole("steps", default=None)
        if not stages:
            config.fail("stage", "one stage or more")
        position.whole("stage", 0, len(stages) - 1)
    progress.text("dataset", default=None)
    base = progress.fields("base", default={})  # earlier versions did not record it
    for role in base.table:
        base.sha256(role)
    return dict(progress.table)


def read_state(folder: Path) -> State:
    """The state in a checkpoint, on the CPU. No code in it is executed. Raises ``BadInput``."""
    import torch
    from safetensors.torch import load_file

    state = folder / STATE
    progress = read_progress(folder)
    try:
        stored = torch.load(state / "optimizer.pt", map_location="cpu", weights_only=True)
        return State(
            position=TrainPosition(**progress["place"]),
            weights=load_file(state / "weights.safetensors"),
            average=load_file(state / "average.safetensors"),
            optimizer=dict(stored["optimizer"]),
            scaler=dict(stored["scaler"]),
        )
    except Exception as error:  # torch.load raises errors of all kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        hint = f"delete {folder} to resume from the checkpoint before it"
        raise BadInput(state, f"unreadable files ({reason})", "the state of a training", hint=hint) from error


def trained_names(folder: Path) -> list[str]:
    """Names in the trained module of the parameters that training has changed."""
    path = folder / STATE / "weights.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        hint = "export another checkpoint, or resume the run"
        raise BadInput.because(path, f"it cannot be read ({error})", hint=hint) from error


def read_scores(run: Path) -> list[dict[str, Any]]:
    """Results of validation, one row per validated step."""
    path = run / SCORES
    if not path.is_file():
        return []
    what, hint = "scores of validation", f"delete {path}: missing scores are measured again"
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
    with atomic_write(run / SCORES) as temp:
        temp.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def best_step(run: Path) -> int | None:
    """The existing checkpoint with the best score, None without validation."""
    return ranking.best(read_scores(run), [step for step, _ in list_checkpoints(run)])


def prune(run: Path, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints and the best one, and link ``RUN/model`` to the one to use.

    Checkpoints that validation could not score stay, as do folders with other files than a checkpoint's.
    """
    checkpoints, best = list_checkpoints(run), best_step(run)
    if checkpoints:  # first, so that the link never leads to a deleted one
        _link(run, f"step-{best if best is not None else checkpoints[-1][0]}")
    protected = {best, *ranking.unscored(read_scores(run))}
    for step, path in checkpoints[:-keep]:
        if step not in protected and _is_checkpoint(path):
            hidden = path.with_name(f".{path.name}.old.part")
            with suppress(OSError):
                os.replace(path, hidden)  # renamed first, so that a kill leaves no partial checkpoint
                shutil.rmtree(hidden, ignore_errors=True)


def _is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` is a checkpoint that ``sa train`` wrote, without other files."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    card, state = folder / FILE_NAME, folder / STATE
    if not card.is_file() or card.is_symlink() or SOURCE not in card.read_text(encoding="utf-8", errors="replace"):
        return False
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return files <= _FILES and (state / "progress.json").is_file()


def _link(run: Path, name: str) -> None:
    """Link ``RUN/model`` to a checkpoint, unless the file system has no links or another file has that name."""
    link, temp = run / LINK, temporary_path(run / LINK)
    if os.path.lexists(link) and not _is_our_link(link):
        return
    with suppress(OSError):
        temp.unlink(missing_ok=True)
        temp.symlink_to(Path(FOLDER) / name, target_is_directory=True)
        os.replace(temp, link)
