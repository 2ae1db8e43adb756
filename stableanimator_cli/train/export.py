"""Export a checkpoint: as a model folder that needs no other, or as the three files of the reference implementation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from stableanimator_cli import backbone_facts, catalogue
from stableanimator_cli.catalogue import layouts, schema
from stableanimator_cli.catalogue.configs import read_config
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.engine.training import exported_names
from stableanimator_cli.engine.training.trainable import TRAINED
from stableanimator_cli.engine.weights import read_tensors
from stableanimator_cli.errors import BadInput, ConfigError, command
from stableanimator_cli.files import MARK, atomic_write, translate_os_errors, visible_files
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import ModelFolder
from stableanimator_cli.train import checkpoint
from stableanimator_cli.train.base_model import file_entry, model_toml, plain_name, write_network_config
from stableanimator_cli.train.report import ExportReport

_NO_SIZES = ("sample_size", "num_frames")
"""Keys of a UNet's config that change the shape of no weight."""


def export(
    run: Path, form: Literal["model", "upstream"], output: Path, weights: str | None, reporter: Reporter
) -> ExportReport:
    """Write the best checkpoint of ``run`` by validation, else the last, to the folder ``output``.

    ``weights`` is the dtype of trained tensors, None for that of the checkpoint; other tensors are unchanged. Raises
    ``BadInput`` if there is no checkpoint yet or ``output`` is not empty, ``ModelDamaged`` if a file has another sha256
    than is recorded, and ``ConfigError`` if the reference implementation would compute something else with them.
    """
    if not run.is_dir():
        raise BadInput(run, "no such folder", "the folder of a run", hint="check the name after --resume")
    checkpoints = dict(checkpoint.list_checkpoints(run))
    if not checkpoints:
        raise BadInput(
            run, "no checkpoint", "a run with one", hint=f"train longer: {command('sa', 'train', '--resume', run)}"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(output, "an existing file or folder", "a new folder", hint="choose another -o")
    best = checkpoint.best_step(run)
    source = checkpoints[max(checkpoints) if best is None else best]
    model = catalogue.open_model(source, TRAINED)
    if form == "upstream":
        _check_upstream(source, model)
        if not _fits_svd(model):
            reporter.warning(
                "the networks have other sizes than SVD's, so the reference implementation does not open the three "
                "files; --export model writes all networks"
            )
    weight_digests(model, TRAINED if form == "upstream" else None)  # damaged numbers would get a digest of their own
    write = _write_upstream if form == "upstream" else _write_model
    try:
        with atomic_write(output, folder=True) as temp, translate_os_errors(output):
            shutil.rmtree(temp, ignore_errors=True)
            temp.mkdir(parents=True)
            write(source, model, weights, temp)
    except SafetensorError as error:
        raise BadInput(output, f"a write that failed ({error})", "a folder that can be written") from error
    files = tuple(sorted(path for path in output.rglob("*") if path.is_file()))
    return ExportReport(output=output, checkpoint=source, files=files)


def _check_upstream(source: Path, model: ModelFolder) -> None:
    """Refuse backbones and ablations that the three files do not name and the reference implementation lacks."""
    training = schema.read(source).training
    usual = {"id_adapter": "distribution", "face_encoder": "on", "face": "on"}
    found = {name: training.get(name, value) for name, value in usual.items()}
    usual["backbone"], found["backbone"] = backbone_facts.DEFAULT, model.backbone
    for name, value in usual.items():
        if found[name] != value:
            problem = f"the checkpoint has {name} {found[name]}, and the reference implementation {value} alone"
            raise ConfigError.because("--export upstream", problem, hint="use --export model")


def _fits_svd(model: ModelFolder) -> bool:
    """Whether the UNet has the sizes of SVD's, whose VAE and image encoder complete the three files."""
    released, ours = catalogue.entry(layouts.ANIMATOR), model.configs.get("unet", {})
    theirs = read_config(released.folder / str(released.components["unet"].config))
    return all(ours.get(key, value) == value for key, value in theirs.items() if key not in _NO_SIZES)


def _read(source: Path, model: ModelFolder, role: str, weights: str | None) -> dict[str, Tensor]:
    """Tensors of a network, the trained ones in the dtype ``weights``."""
    tensors = read_tensors(model.files[role])
    if weights is None:
        return tensors
    dtype = torch.float16 if weights == "float16" else torch.float32
    trained = exported_names(checkpoint.trained_names(source))
    return {
        name: tensor.to(dtype) if f"{role}.{name}" in trained and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _write_upstream(source: Path, model: ModelFolder, weights: str | None, folder: Path) -> None:
    for role in TRAINED:
        torch.save(_read(source, model, role, weights), folder / f"{role}.pth")
    note: dict[str, Any] = {"written_by": f"{MARK}: sa train --export upstream"}
    note |= {"face_channel_order": model.face_channel_order}
    note |= {} if _fits_svd(model) else {"fits_svd": False}
    (folder / layouts.NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _write_model(source: Path, model: ModelFolder, weights: str | None, folder: Path) -> None:
    entry = schema.read(source)
    tensors = {role: _read(source, model, role, weights) for role in TRAINED}
    name = plain_name(folder.name[1:].rsplit(".", 2)[0])  # of the folder that this temporary one becomes
    write_model_folder(model, tensors, folder, name=name, summary=entry.summary, training=_plain(entry.training))


def write_model_folder(
    model: ModelFolder,
    tensors: Mapping[str, Mapping[str, Tensor]],
    folder: Path,
    *,
    name: str,
    summary: str,
    training: Mapping[str, Any],
) -> None:
    """Write a model folder with the networks ``tensors`` by role, and copies of the other files of ``model``."""
    components: dict[str, tuple[str | None, str | None]] = {}
    for role in dict.fromkeys((*model.files, *model.configs)):
        file = None
        if role in tensors:
            file = f"{role}.safetensors"
            checkpoint.save_tensors(dict(tensors[role]), folder / file)
        elif role in model.files:
            file = _copy(model.files[role], role, folder)
        components[role] = (file, write_network_config(model.configs, role, folder))
    written = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".json"]
    text = model_toml(
        name=name,
        summary=summary,
        model=model,
        defaults=model.defaults,
        components=components,
        files=[file_entry(path, folder) for path in written],
        training=training,
    )
    (folder / schema.FILE_NAME).write_text(text, encoding="utf-8")


def _copy(source: Path, role: str, folder: Path) -> str:
    if not source.is_dir():
        target = f"{role}{source.suffix}"
        shutil.copyfile(source, folder / target)
        return target
    (folder / role).mkdir()
    for file in visible_files(source):
        shutil.copyfile(file, folder / role / file.name)
    return role


def _plain(table: Any) -> dict[str, Any]:
    simple = str | int | float | bool
    return {
        key: value
        for key, value in table.items()
        if isinstance(value, simple) or (isinstance(value, list) and all(isinstance(item, simple) for item in value))
    }
