"""The base model of a training, as a model folder that checkpoints can name in ``needs``, and ``model.toml`` files.

A catalogue entry or a folder with ``model.toml`` is used as it is. A download in the reference implementation's layout
gets a model folder ``RUN/base`` that links to its files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stableanimator_cli import catalogue
from stableanimator_cli.backbone_facts import BACKBONES, DEFAULT
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.catalogue.published import is_published, open_published
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.config.schema import model_defaults, toml_literal
from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import atomic_write, sha256_of, translate_os_errors
from stableanimator_cli.records import ModelFolder

FOLDER = "base"
SOURCE = "trained by sa train"
"""``source`` in the ``model.toml`` of a checkpoint, which identifies it."""


def open_base(name: str, scratch: tuple[str, ...], backbone: str | None = None) -> ModelFolder:
    """Open the model ``name``. Networks in ``scratch``, PoseNet and Face Encoder need no files.

    Those are initialised at random if the model has none. ``backbone`` None is the model's. Another one needs a folder
    of its published networks, or a UNet from scratch. Raises ``ConfigError`` if it cannot be trained from the model.
    """
    needed = [role for role in ("unet", "vae", "image_encoder") if role not in scratch]
    folder = catalogue.expanded(name)
    if folder.is_dir() and not (folder / FILE_NAME).is_file():
        if backbone is not None and BACKBONES[backbone].published:
            return open_published(folder, backbone, [*needed, "motion_adapter"])
        if backbone is None and (found := is_published(folder)) is not None:
            hint = f"add --backbone {found}: {folder} holds its published networks"
            raise ConfigError("--backbone", None, found, hint=hint)
    model = catalogue.open_model(name, needed)
    if not model.facts.trainable:
        known = " or ".join(other for other, facts in BACKBONES.items() if facts.trainable)
        raise ConfigError("--model", name, f"a model of the backbone {known}, which can be trained")
    if backbone in (None, model.backbone):
        return model
    if "unet" not in scratch:
        raise ConfigError(
            "--backbone", backbone, f"{model.backbone}, that of the UNet of {model.name}",
            hint="add --from-scratch unet, or use --model with a folder of its published networks",
        )  # fmt: skip
    return replace(model, backbone=backbone, files={role: path for role, path in model.files.items() if role != "unet"})


def training_defaults(model: ModelFolder, *, face: bool) -> dict[str, Any]:
    """Options by name that a training of ``model`` has unless others are given: those that it was trained with.

    ``face``: whether faces are trained.
    """
    known = model_defaults(TrainConfig)
    found = {name: value for name, value in model.defaults.items() if name in known}
    if "conditioning_fps" in model.defaults:
        found["fps"] = model.defaults["conditioning_fps"]
    return found | ({"face_encoder": "off"} if face and not has_fusion(model) else {})


def has_fusion(model: ModelFolder) -> bool:
    """Whether the model's Face Encoder fuses the face with the image: not in the ablation without it."""
    return model.configs.get("face_encoder", {}).get("fusion", True) is not False


def digests(model: ModelFolder, scratch: Collection[str]) -> dict[str, str]:
    """sha256 by role of the networks that a training of ``model`` reads: not those in ``scratch``."""
    read = {*model.facts.networks, *model.facts.published} - set(scratch)
    return weight_digests(model, sorted(read & model.files.keys()))


def prepare(name: str, model: ModelFolder, run: Path, *, same: bool = False) -> str:
    """Return the name by which ``run/checkpoints/NAME/model.toml`` needs the base model; write ``run/base`` if needed.

    ``model`` was opened by ``name``. Raises ``BadInput`` if ``run/base`` links to another model; with ``same``, which
    asserts that the networks are the same, links to its earlier place are replaced.
    """
    if name in catalogue.names():
        return model.name
    checkpoint = run / "checkpoints" / "NAME"
    if (model.path / FILE_NAME).is_file():
        return _relative(model.path, checkpoint)
    if not (run / FOLDER / FILE_NAME).is_file():
        _write(model, run / FOLDER)
    elif same:
        _relink(model, run / FOLDER)
    elif _resolved_files(catalogue.open_model(str(run / FOLDER), [])) != _resolved_files(model):
        raise BadInput.because(run / FOLDER, f"it does not link to the model {name}", hint="move it away")
    return _relative(run / FOLDER, checkpoint)


def _resolved_files(model: ModelFolder) -> dict[str, Path]:
    return {role: path.resolve() for role, path in model.files.items()}


def _relative(folder: Path, start: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()


def plain_name(text: str) -> str:
    """``text`` as a valid name of a model: letters, digits, '-', '_' and '.'."""
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
    """Text of a ``model.toml``: components by role as (file, config), files as (path, bytes, sha256)."""
    top = {"name": name, "summary": summary, "task": "animate", "licence": model.licence, "source": SOURCE}
    top |= {"face_channel_order": model.face_channel_order, "needs": list(needs)}
    top |= {} if model.backbone == DEFAULT else {"backbone": model.backbone}
    top |= {} if model.max_texture_error is None else {"max_texture_error": model.max_texture_error}
    lines = [f"{key} = {toml_literal(value)}" for key, value in top.items()]
    lines += _table("[defaults]", defaults)
    for role, (file, config) in components.items():
        lines += _table(f"[components.{role}]", {"file": file, "config": config})
    for path, size, digest in files:
        lines += _table("[[files]]", {"path": path, "bytes": size, "sha256": digest})
    return "\n".join([*lines, *_table("[training]", training)]) + "\n"


def table_text(name: str, values: Mapping[str, Any]) -> str:
    """Text of one table of a ``model.toml``."""
    return "\n".join(_table(f"[{name}]", values)[1:]) + "\n"


def _table(head: str, values: Mapping[str, Any]) -> list[str]:
    present = {key: value for key, value in values.items() if value is not None}
    return ["", head, *(f"{key} = {toml_literal(value)}" for key, value in present.items())] if present else []


def file_entry(path: Path, folder: Path) -> tuple[str, int, str]:
    """Row of ``[[files]]``: (path in the folder, bytes, sha256)."""
    return path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)


def write_network_config(configs: Mapping[str, Mapping[str, Any]], role: str, folder: Path) -> str | None:
    """Write ``ROLE.json`` and return its name; None if there is no config of ``role``."""
    if role not in configs:
        return None
    text = json.dumps(dict(configs[role]), indent=2) + "\n"
    (folder / f"{role}.json").write_text(text, encoding="utf-8")
    return f"{role}.json"


def _write(model: ModelFolder, folder: Path) -> None:
    with atomic_write(folder, folder=True) as temp, translate_os_errors(folder):
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        roles = dict.fromkeys((*model.files, *model.configs))
        text = model_toml(
            name=plain_name(f"{model.name}-base"),
            summary=f"Base model of a training: {model.name}",
            model=model,
            needs=model.facts.companions,
            defaults=model.defaults,
            components={
                role: (_link_file(model, role, temp), write_network_config(model.configs, role, temp)) for role in roles
            },
            training={},
        )
        (temp / FILE_NAME).write_text(text, encoding="utf-8")


def _link_file(model: ModelFolder, role: str, folder: Path) -> str | None:
    if role not in model.files:
        return None
    source, name = model.files[role].resolve(), _link_name(model, role)
    (folder / name).symlink_to(source, target_is_directory=source.is_dir())
    return name


def _link_name(model: ModelFolder, role: str) -> str:
    source = model.files[role].resolve()
    return role if source.is_dir() else f"{role}{source.suffix}"


def _relink(model: ModelFolder, folder: Path) -> None:
    """Let the links of ``folder``, which ``_write`` wrote, lead to the files of ``model``."""
    for role, source in model.files.items():
        link = folder / _link_name(model, role)
        if link.is_symlink() and link.resolve() != source.resolve():
            with atomic_write(link) as temp, translate_os_errors(link):
                temp.symlink_to(source.resolve(), target_is_directory=source.is_dir())
