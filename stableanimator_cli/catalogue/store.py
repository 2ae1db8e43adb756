"""Writing to ``cache_dir()/models``: one process at a time per model, and no incomplete files.

An interrupted download stays as ``FILE.part``, and the same command resumes it. Everything else is built in
``.NAME.part`` beside the model's folder or ``.sa.part`` inside it. The process that holds the model's lock removes what
killed processes left there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import Entry
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing, system_reason
from stableanimator_cli.files import NO_ROOM, exclusive_lock

STAGING = ".sa.part"


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextlib.contextmanager
def locked_model(name: str) -> Iterator[Path]:
    """Lock the model ``name`` for writing and yield its folder. Raises ``BadInput`` while another process holds it.

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
                hint="wait until it has ended, then run the same command again",
            )
        _sweep(models, name)
        try:
            yield folder
        finally:
            remove_staging(name)
            _prune(folder)


def staging(name: str, *, inside: bool) -> Path:
    """A new empty folder to build in, removed with the lock: ``inside`` the model's folder for single files, or beside
    it for the full folder."""
    folder = catalogue.model_cache_dir(name)
    path = folder / STAGING if inside else folder.with_name(f".{name}.part")
    with writing(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    return path


def unclean(name: str) -> bool:
    """Whether a process that is killed or running left something that ``locked_model`` removes."""
    models, folder = catalogue.cache_dir() / "models", catalogue.model_cache_dir(name)
    return any(os.path.lexists(p) for p in (models / f".{name}.lock", models / f".{name}.part", folder / STAGING))


def remove_staging(name: str) -> None:
    """Remove unfinished files of the model ``name``, whose lock the caller holds."""
    folder = catalogue.model_cache_dir(name)
    for path in (folder / STAGING, folder.with_name(f".{name}.part")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def partial(target: Path) -> Path:
    """Temporary path of the download of ``target``."""
    return target.with_name(target.name + ".part")


def validator(part: Path) -> Path:
    """Path of the ETag of the response that ``part`` comes from."""
    return part.with_name(part.name + ".etag")


def leftovers(entry: Entry) -> list[Path]:
    """Partial downloads of files that are complete or imported by now, and of their archives."""
    present = {row.path for row in entry.files if catalogue.locate(entry, row.path) is not None}
    done = list(present)
    for archive in entry.archives:
        members = [row for row in entry.files if row.archive == archive.path]
        if all(row.path in present or row.optional for row in members):
            done.append(archive.path)
    parts = (partial(catalogue.model_cache_dir(entry.name) / row) for row in done)
    return [path for part in parts for path in (part, validator(part)) if path.is_file()]


def remove_leftovers(entry: Entry) -> None:
    for path in leftovers(entry):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while ``path`` is written into ``ModelMissing``."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ModelMissing:
    """The error for a failed write below ``cache_dir()``: no room, no rights, or no folder."""
    if error.errno in NO_ROOM:
        return ModelMissing(
            f"{path}: no room left to write it",
            hint="make room, or set SA_HOME to a folder on a larger disk, then run the same command again",
        )
    reason = system_reason(error)
    return ModelMissing(f"{path}: it cannot be written ({reason})", hint="set SA_HOME to a writable folder")


def differs(label: str, found: str, expected: str) -> ModelDamaged:
    """The error for a download that was deleted because it differs from its record."""
    return ModelDamaged(
        f"{label}: the download differs from its record: found {found}, expected {expected}; deleted",
        hint="try again; if the error stays, the file behind the address was replaced: see the entry's CARD.md",
    )


def copy_stream(source: Readable, stream: IO[bytes], limit: int, progress: Callable[[int], None] | None = None) -> int:
    """Copy until the end or until more than ``limit`` bytes are written; returns their number.

    Only errors of the write become ``ModelMissing``. ``progress`` receives the bytes of each block.
    """
    done = 0
    while done <= limit and (block := source.read(1 << 20)):
        done += len(block)
        try:
            stream.write(block)
            stream.flush()
        except OSError as error:
            raise unwritable(Path(stream.name), error) from None
        if progress is not None:
            progress(len(block))
    return done


def check_disk_space(path: Path, need: int, label: str) -> None:
    """Raise ``ModelMissing`` if fewer than ``need`` bytes are free at ``path``."""
    near = next(folder for folder in (path, *path.parents) if folder.is_dir())
    free = shutil.disk_usage(near).free
    if need > free:
        raise ModelMissing(
            f"{label}: needs {need / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free at {near}",
            hint="make room, or set SA_HOME to a folder on a larger disk",
        )


def _sweep(models: Path, name: str) -> None:
    """Remove what killed processes left: of ``name``, which is locked, and of models that no process locks."""
    remove_staging(name)
    beside = {path.name[1:].removesuffix(".part") for path in models.glob(".*.part")}
    for other in (beside | {path.parent.name for path in models.glob(f"*/{STAGING}")}) - {name}:
        with exclusive_lock(models / f".{other}.lock") as free:
            if free:
                remove_staging(other)


def _prune(folder: Path) -> None:
    """Remove empty folders in ``folder``, the deepest first, itself last."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(path)
