"""What a training starts from: a model folder that every checkpoint can name as its need, wherever the run lies.

A catalogue entry or a folder with a ``model.toml`` is named as it is. Random weights (``--from-scratch``) and downloads in
the reference implementation's layout get a model folder ``RUN/base``: the first hold files of their own there, the
second links to the files where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue_schema import FILE_NAME
from stableanimator_cli.engine.weights import NETWORKS, builders
from stableanimator_cli.media_files import refusals
from stableanimator_cli.nets.face_encoder import FaceEncoder
from stableanimator_cli.nets.pose_net import PoseNet
from stableanimator_cli.records import ModelFolder

FOLDER = "base"
_POSE_START, _FACE_START = 0.05, 0.02  # deviations of what upstream starts at zero: from nothing, zeros learn slowly


def prepare(named: str, scratch: tuple[str, ...], seed: int, run: Path) -> tuple[str, ModelFolder]:
    """The model to train from and the name by which ``run/checkpoints/NAME/model.toml`` needs it. Raises ``SaError``."""
    wanted = [role for role in NETWORKS if role not in scratch]
    model = catalogue.open_model(named, wanted)
    entry = model.name if named in catalogue.names() else None
    if not scratch and (entry is not None or (model.path / FILE_NAME).is_file()):
        return entry or _towards(model.path, run / "checkpoints" / "NAME"), model
    if not (run / FOLDER / FILE_NAME).is_file():
        _write(model, entry, scratch, seed, run / FOLDER)
    return _towards(run / FOLDER, run / "checkpoints" / "NAME"), catalogue.open_model(run / FOLDER, NETWORKS)


def plain_name(text: str) -> str:
    """``text`` as a model may be named: letters, digits, '-', '_' and '.'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "model"


def model_toml(
    *,
    name: str,
    summary: str,
    model: ModelFolder,
    needs: Iterable[str] = (),
    defaults: Mapping[str, Any],
    components: Mapping[str, tuple[str | None, str | None]],
    files: Iterable[tuple[str, int, str]] = (),
    training: Mapping[str, Any],
) -> str:
    """A ``model.toml``: components by role as (file, config), files as (path, bytes, sha256)."""
    lines = [f"name = {_text(name)}", f"summary = {_text(summary)}", 'task = "animate"']
    lines += [f"licence = {_text(model.licence)}", f"source = {_text('trained by sa train')}"]
    lines += [f"face_channel_order = {_text(model.face_channel_order)}"]
    lines += [f"needs = [{', '.join(map(_text, needs))}]"]
    lines += _rows("[defaults]", defaults)
    for role, (file, config) in components.items():
        lines += _rows(f"[components.{role}]", {"file": file, "config": config})
    for path, size, digest in files:
        lines += _rows("[[files]]", {"path": path, "bytes": size, "sha256": digest})
    return "\n".join([*lines, *_rows("[training]", training)]) + "\n"


def _rows(head: str, values: Mapping[str, Any]) -> list[str]:
    given = {key: value for key, value in values.items() if value is not None}
    return ["", head, *(f"{key} = {_value(value)}" for key, value in given.items())] if given else []


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else _text(str(value))


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _towards(folder: Path, place: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), place.resolve())).as_posix()


def _write(model: ModelFolder, entry: str | None, scratch: tuple[str, ...], seed: int, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    has_entry = entry is not None or (model.path / FILE_NAME).is_file()
    try:
        with refusals(folder):
            part.mkdir(parents=True)
            components: dict[str, tuple[str | None, str | None]] = {}
            for role in scratch if has_entry else (*model.files, *model.configs):
                components[role] = _component(model, role, part, scratch, seed)
            needs = [entry or _towards(model.path, folder)] if has_entry else []
            text = model_toml(
                name=plain_name(f"{model.name}-base"),
                summary=f"What a training started from: {model.name}",
                model=model,
                needs=needs,
                defaults=dict(model.defaults) if not has_entry else {},
                components=components,
                training={"from_scratch": list(scratch), "seed": seed},
            )
            (part / FILE_NAME).write_text(text, encoding="utf-8")
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _component(
    model: ModelFolder, role: str, part: Path, scratch: tuple[str, ...], seed: int
) -> tuple[str | None, str | None]:
    file = config = None
    if role in model.configs:
        config = f"{role}.json"
        (part / config).write_text(json.dumps(dict(model.configs[role]), indent=2) + "\n", encoding="utf-8")
    if role in scratch:
        file = f"{role}.safetensors"
        save_file(random_weights(model, role, seed), part / file, metadata={"format": "pt"})
        (part / file).chmod(0o644)
    elif role in model.files:
        source = model.files[role].resolve()
        file = role if source.is_dir() else f"{role}{source.suffix}"
        (part / file).symlink_to(source, target_is_directory=source.is_dir())
    return file, config


def random_weights(model: ModelFolder, role: str, seed: int) -> dict[str, Tensor]:
    """First weights of a network, drawn from ``seed`` and the role: each layer's own start, and small values where a
    network that is added to a trained one starts at zero (PoseNet's and the Face Encoder's last projections)."""
    digest = hashlib.sha256(f"scratch/{seed}/{role}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        network = builders(model, "distribution")[role]()
        if isinstance(network, PoseNet):
            nn.init.normal_(network.final_proj.weight, std=_POSE_START)
        if isinstance(network, FaceEncoder):
            nn.init.normal_(network.fusion_model.proj_out.weight, std=_FACE_START)
    return {name: tensor.float().contiguous().clone() for name, tensor in network.state_dict().items()}
