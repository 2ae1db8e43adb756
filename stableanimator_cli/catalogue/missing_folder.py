"""The error for a model's folder that does not exist: the nearest existing folder, the hub, names of the catalogue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stableanimator_cli.catalogue import hub
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.errors import ModelMissing, command


def missing_folder(folder: Path, name: str, known: Sequence[str]) -> ModelMissing:
    """The error for ``--model NAME`` that leads to ``folder``, which does not exist; ``known`` names of the catalogue.

    ``name`` is a local path if its first folder exists; only otherwise may OWNER/NAME be meant for the hub.
    """
    lines = [_whereabouts(folder)]
    if hub.is_model_name(name) and not os.path.isdir(folder.parent):
        lines.append(f"a model of the hub is opened in its cache: `{command('hf', 'download', name)}`")
    return ModelMissing(f"{folder}: no such model folder", hint=(*lines, f"known names: {', '.join(known)}"))


def _whereabouts(folder: Path) -> str:
    if os.path.islink(folder):  # pathlib raises for names that are too long
        return f"it is a link to {os.readlink(folder)}, which leads to no folder: mend the link, or name another folder"
    missing = folder
    while not os.path.isdir(missing.parent) and missing.parent != missing:
        missing = missing.parent
    near = _nearest(missing)
    if near is not None:
        inner = (near / folder.relative_to(missing), near, near / "model")  # `model` is of the folder of a training run
        meant = next((path for path in inner if os.path.isfile(path / FILE_NAME)), near)
        return f"did you mean {meant}?"
    if missing != folder:
        return f"the folder {missing} does not exist either"
    return f"look with: {command('ls', missing.parent)}"


def _nearest(path: Path) -> Path | None:
    """The folder beside ``path`` whose name is most similar, None if none is."""
    import difflib  # not before it is needed

    try:
        others = [other.name for other in path.parent.iterdir() if other.is_dir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, others, n=1)
    return path.parent / near[0] if near else None
