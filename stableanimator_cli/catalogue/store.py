"""Writing under ``home()/models``: one process at a time per model, and nothing half-made left behind.

A download that was interrupted stays as ``FILE.part``, and the same command resumes it. Everything else is built in
``.NAME.part`` beside the model's folder or ``.sa.part`` inside it. Whoever holds the model's lock removes what a killed
process left there: while the lock is free no process is at work on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import Entry
from stableanimator_cli.errors import BadInput, ModelMissing
from stableanimator_cli.files import NO_ROOM, exclusive_lock

STAGING = ".sa.part"


@contextlib.contextmanager
def held(name: str) -> Iterator[Path]:
    """Hold the model ``name`` for writing and give its folder. Raises ``BadInput`` while another process holds it.

    Remains of killed runs are removed first, empty folders last.
    """
    models, folder = catalogue.cache_dir() / "models", catalogue.model_cache_dir(name)
    with contextlib.ExitStack() as stack:
        try:
            with writing(models):
                models.mkdir(parents=True, exist_ok=True)
            free = stack.enter_context(exclusive_lock(models / f".{name}.lock"))
        except BadInput as error:  # the lock cannot be made
            cause = error.__cause__
            raise unwritable(models, cause) if isinstance(cause, OSError) else error from None
        if not free:
            raise BadInput.because(
                folder,
                "it is being written by another `sa models pull` or `sa models import`",
                hint="wait until that has ended, then run the same command again",
            )
        _sweep(models, name)
        try:
            yield folder
        finally:
            remove_staging(name)
            _prune(folder)


def staging(name: str, *, inside: bool) -> Path:
    """A new empty folder to build in, which ``held`` removes: ``inside`` the model's folder, for single files, or
    beside it, for all of it at once."""
    folder = catalogue.model_cache_dir(name)
    place = folder / STAGING if inside else folder.with_name(f".{name}.part")
    with writing(place):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    return place


def unclean(name: str) -> bool:
    """Whether a process that was killed, or is at work, left something that ``held`` removes."""
    models, folder = catalogue.cache_dir() / "models", catalogue.model_cache_dir(name)
    return any(os.path.lexists(p) for p in (models / f".{name}.lock", models / f".{name}.part", folder / STAGING))


def remove_staging(name: str) -> None:
    """Remove what was being built for the model ``name``, whose lock the caller holds."""
    folder = catalogue.model_cache_dir(name)
    for place in (folder / STAGING, folder.with_name(f".{name}.part")):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)


def partial(target: Path) -> Path:
    """Where the download of ``target`` arrives."""
    return target.with_name(target.name + ".part")


def validator(part: Path) -> Path:
    """Holds the ETag of the answer that ``part`` comes from."""
    return part.with_name(part.name + ".etag")


def leftovers(entry: Entry) -> list[Path]:
    """Partial downloads of files that have meanwhile arrived or been imported, and those of their archives."""
    here = {row.path for row in entry.files if catalogue.locate(entry, row.path) is not None}
    done = list(here)
    for archive in entry.archives:
        members = [row for row in entry.files if row.archive == archive.path]
        if all(row.path in here or row.optional for row in members):
            done.append(archive.path)
    parts = (partial(catalogue.model_cache_dir(entry.name) / path) for path in done)
    return [place for part in parts for place in (part, validator(part)) if place.is_file()]


def remove_leftovers(entry: Entry) -> None:
    for place in leftovers(entry):
        with contextlib.suppress(OSError):
            place.unlink()


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the system refuses while ``place`` is written into ``ModelMissing``."""
    try:
        yield
    except OSError as error:
        raise unwritable(place, error) from error


def unwritable(place: Path, error: OSError) -> ModelMissing:
    """The error for a refused write below ``home()``: says whether it is room, rights or the folder."""
    if error.errno in NO_ROOM:
        return ModelMissing(
            f"{place}: no room left to write it",
            hint="make room, or set SA_HOME to a folder on a larger disk, then run the same command again",
        )
    reason = (error.strerror or str(error)).lower()
    return ModelMissing(
        f"{place}: it cannot be written ({reason})", hint="set SA_HOME to a folder that can be written to"
    )


def check_room(place: Path, need: int, label: str) -> None:
    """Raise ``ModelMissing`` if fewer than ``need`` bytes are free at ``place``."""
    near = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(near).free
    if need > free:
        raise ModelMissing(
            f"{label}: needs {need / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free at {near}",
            hint="make room, or set SA_HOME to a folder on a larger disk",
        )


def _sweep(models: Path, name: str) -> None:
    """Remove what killed processes built: of ``name``, which is held, and of models that no process holds."""
    remove_staging(name)
    beside = {place.name[1:].removesuffix(".part") for place in models.glob(".*.part")}
    for other in (beside | {place.parent.name for place in models.glob(f"*/{STAGING}")}) - {name}:
        with exclusive_lock(models / f".{other}.lock") as free:
            if free:
                remove_staging(other)


def _prune(folder: Path) -> None:
    """Remove empty folders from ``folder`` upwards from the deepest, itself last."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(place)
