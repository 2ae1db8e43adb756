"""Folders of published networks that a training starts from, without a ``model.toml``: see ``backbones``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stableanimator_cli.backbone_facts import BACKBONES
from stableanimator_cli.catalogue import open_model
from stableanimator_cli.catalogue.configs import read_config
from stableanimator_cli.catalogue.damage import check_size, in_utf8
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.errors import ModelMissing

if TYPE_CHECKING:  # records imports numpy, which a TAB in the shell must not wait for
    from stableanimator_cli.records import ModelFolder

_FORMS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin", ".ckpt")


def is_published(folder: Path) -> str | None:
    """The backbone all of whose published networks are in ``folder``, None without."""
    known = (name for name, facts in BACKBONES.items() if facts.published)
    return next((name for name in known if None not in _files(folder, name).values()), None)


def _files(folder: Path, backbone: str) -> dict[str, Path | None]:
    """The file of each role of ``backbone``, None if it is missing."""
    return {
        role: next((path for form in _FORMS for stem in stems if (path := folder / f"{stem}{form}").is_file()), None)
        for role, stems in BACKBONES[backbone].published.items()
    }


def open_published(folder: Path, backbone: str, require: Sequence[str]) -> ModelFolder:
    """The networks of a folder by the published names of ``backbone``. Raises ``ModelMissing`` if some are missing."""
    from stableanimator_cli.records import ModelFolder

    layout, files = BACKBONES[backbone].published, _files(folder, backbone)
    missing = [role for role in layout if files[role] is None and role in require]
    if missing:
        names = "; ".join(f"{role} ({' or '.join(f'{stem}.safetensors' for stem in layout[role])})" for role in missing)
        raise ModelMissing(
            f"{folder}: found no {FILE_NAME} and not all networks of the backbone {backbone}: missing {names}",
            hint="copy them to these places, or write a model.toml that names them: docs/backbones.md",
        )
    found = {role: path for role, path in files.items() if path is not None}
    for path in found.values():
        check_size(path, None)
    companions = [open_model(name).files for name in BACKBONES[backbone].companions]
    configs = {role: path.parent / "config.json" for role, path in found.items()}
    return ModelFolder(
        name=folder.resolve().name,
        path=folder,
        files=in_utf8({role: path for files in (*companions, found) for role, path in files.items()}),
        configs={role: read_config(path) for role, path in configs.items() if path.is_file()},
        defaults={},
        licence="unknown",
        face_channel_order="bgr",
        backbone=backbone,
    )
