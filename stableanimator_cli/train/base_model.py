"""What a training starts from: a model folder that every checkpoint can name as its need.

A catalogue entry or a folder with a ``model.toml`` is named as it is. A download in the reference implementation's
layout gets a model folder ``RUN/base`` that links to its files where they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import temporary_path, translate_os_errors
from stableanimator_cli.records import ModelFolder

FOLDER = "base"
SOURCE = "trained by sa train"
"""The card's source, by which a model folder of ``sa train`` is recognised."""


def prepare(named: str, scratch: tuple[str, ...], run: Path) -> tuple[str, ModelFolder]:
    """The model to train from and the name by which ``run/checkpoints/NAME/model.toml`` needs it.

    Networks that start from ``scratch`` need no file; PoseNet and Face Encoder start anew where the model has none.
    """
    model = open_base(named, scratch)
    if named in catalogue.names():
        return model.name, model
    place = run / "checkpoints" / "NAME"
    if (model.path / FILE_NAME).is_file():
        return _towards(model.path, place), model
    if not (run / FOLDER / FILE_NAME).is_file():
        _write(model, run / FOLDER)
    elif _resolved_files(catalogue.open_model(str(run / FOLDER), [])) != _resolved_files(model):
        raise BadInput.because(run / FOLDER, f"it does not link to the model {named}", hint="move it away")
    return _towards(run / FOLDER, place), model


def _resolved_files(model: ModelFolder) -> dict[str, Path]:
    return {role: path.resolve() for role, path in model.files.items()}


def open_base(named: str, scratch: tuple[str, ...]) -> ModelFolder:
    """The model with the networks that a training cannot do without."""
    return catalogue.open_model(named, [role for role in ("unet", "vae", "image_encoder") if role not in scratch])


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
    lines += [f"licence = {_text(model.licence)}", f"source = {_text(SOURCE)}"]
    lines += [f"face_channel_order = {_text(model.face_channel_order)}"]
    lines += [f"needs = [{', '.join(map(_text, needs))}]"]
    lines += _rows("[defaults]", defaults)
    for role, (file, config) in components.items():
        lines += _rows(f"[components.{role}]", {"file": file, "config": config})
    for path, size, digest in files:
        lines += _rows("[[files]]", {"path": path, "bytes": size, "sha256": digest})
    return "\n".join([*lines, *_rows("[training]", training)]) + "\n"


def table_text(name: str, values: Mapping[str, Any]) -> str:
    """One table of a ``model.toml``."""
    return "\n".join(_rows(f"[{name}]", values)[1:]) + "\n"


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


def _write(model: ModelFolder, folder: Path) -> None:
    part = temporary_path(folder)
    shutil.rmtree(part, ignore_errors=True)
    try:
        with translate_os_errors(folder):
            part.mkdir(parents=True)
            roles = dict.fromkeys((*model.files, *model.configs))
            text = model_toml(
                name=plain_name(f"{model.name}-base"),
                summary=f"What a training started from: {model.name}",
                model=model,
                defaults=model.defaults,
                components={role: _component(model, role, part) for role in roles},
                training={},
            )
            (part / FILE_NAME).write_text(text, encoding="utf-8")
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _component(model: ModelFolder, role: str, part: Path) -> tuple[str | None, str | None]:
    file = config = None
    if role in model.configs:
        config = f"{role}.json"
        (part / config).write_text(json.dumps(dict(model.configs[role]), indent=2) + "\n", encoding="utf-8")
    if role in model.files:
        source = model.files[role].resolve()
        file = role if source.is_dir() else f"{role}{source.suffix}"
        (part / file).symlink_to(source, target_is_directory=source.is_dir())
    return file, config
