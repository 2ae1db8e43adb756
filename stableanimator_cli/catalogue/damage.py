"""Damaged weights: a file whose size, sha256 or path is not as expected, and the hint that mends it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from stableanimator_cli.catalogue.home import BUILTIN, cache_dir
from stableanimator_cli.catalogue.schema import FILE_NAME, Entry, nearest_or_all, read
from stableanimator_cli.catalogue.weight_files import weights_read
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing, SaError, command

_LFS = b"version https://git-lfs"
_COPY = "copy it again from where its folder comes from"


def check_size(path: Path, expected: int | None) -> None:
    """Raise ``ModelDamaged`` for a git-lfs pointer, and for a file of another size than recorded, None if it is not.

    Of a folder, the weights that are read are checked.
    """
    for file in weights_read(path) if path.is_dir() else ():
        check_size(file, None)
    if not path.is_file():
        return
    check_no_pointer(path)
    size = path.stat().st_size
    if size == 0 or (expected is not None and size != expected):
        needed = "weights" if expected is None else f"{expected} bytes"
        raise ModelDamaged(f"{path}: found {size} bytes, expected {needed}", hint=fetch_again(path))


def check_no_pointer(path: Path) -> None:
    """Raise ``ModelDamaged`` for a file that is a git-lfs pointer: a repository cloned without its large files."""
    with path.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise ModelDamaged(
                f"{path}: found a git-lfs pointer, expected the weights",
                hint=f"run `git lfs pull` in its folder, or {fetch_again(path)}",
            )


def check_digest(path: Path, found: str, expected: str | None) -> None:
    """Raise ``ModelDamaged`` unless the sha256 of ``path`` is the one that its model.toml records, None for none."""
    if expected is not None and found != expected:
        raise ModelDamaged(
            f"{path}: found sha256 {found[:12]}, expected {expected[:12]}, as its model.toml records",
            hint=fetch_again(path),
        )


def in_utf8(files: Mapping[str, Path]) -> dict[str, Path]:
    """``files``, which the libraries that read weights open by names in UTF-8 only. Raises ``BadInput`` for others."""
    for path in files.values():
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError:
            hint = "rename the folder, or copy the model to another one"
            raise BadInput.because(path.absolute(), "its path is not UTF-8", hint=hint) from None
    return dict(files)


def no_entry(name: str, cached: Path, known: Iterable[str]) -> ModelMissing:
    """The error for a name that the catalogue lacks. ``cached``: where an import of this name links to its folder."""
    link = cached / FILE_NAME
    if os.path.islink(link):  # False for a name that is too long
        return ModelMissing(
            f"model {name!r} was imported from {Path(os.readlink(link)).parent}, which no longer exists",
            hint="move the folder back, or import it from its new place: `sa models import FOLDER`",
        )
    return ModelMissing(f"no model named {name!r} in the catalogue", hint=nearest_or_all(name, known))


def missing_need(owner: Entry, need: str, known: Iterable[str]) -> ModelDamaged:
    """The error for a need of ``owner`` that is neither a ``known`` name nor a model folder. A checkpoint needs the
    model that its training started from by its place."""
    file = owner.folder / FILE_NAME
    hint = nearest_or_all(need, known)
    if "/" in need:
        hint = (
            f"move the model back to {os.path.normpath(owner.folder.resolve() / need)}, or name its new place in {file}"
        )
        hint = _of_moved_base(owner.folder) or hint
    return ModelDamaged(f"{file}: needs: found {need!r}, expected a catalogue name or a model folder", hint=hint)


def broken_base(folder: Path) -> str | None:
    """The hint for a checkpoint ``folder`` whose run links to files of its base model that do not exist, else None."""
    base = folder.resolve().parent.parent / "base"
    links = [path for path in base.iterdir() if path.is_symlink()] if base.is_dir() else []
    return None if all(path.exists() for path in links) else _of_moved_base(folder)


def _of_moved_base(folder: Path) -> str | None:
    run = folder.resolve().parent.parent
    if not (run / "config.toml").is_file():
        return None
    return (
        f"if the base model was moved, name its new place: `{command('sa', 'train', '--resume', run)} --model FOLDER`"
    )


def fetch_again(path: Path) -> str:
    """The hint for a damaged file of a model: only files in the cache are downloaded again by ``sa models pull``."""
    models, path = cache_dir() / "models", path.absolute()
    if path.is_relative_to(models) and path != models:
        name, *inner = path.relative_to(models).parts
        return _fetch_into_cache(path, name, PurePosixPath(*inner))
    if any(path.is_relative_to(folder) for folder in BUILTIN):
        return "it is a part of sa: install sa again, or in a clone restore it with git checkout"
    return _COPY


def _fetch_into_cache(path: Path, name: str, inner: PurePosixPath) -> str:
    """The hint for ``path``, the file ``inner`` of the model ``name``. ``sa models pull`` replaces a damaged file only
    if its digest is recorded; an imported model has no addresses."""
    entry = _entry(name)
    rows = () if entry is None else entry.files
    listed = [row for row in rows if _same_network(inner, row.path)]
    pull = f"`sa models pull {name}{' --all' * any(row.optional for row in listed)}`"
    if entry is not None and not entry.has_addresses:
        return _COPY if path.is_symlink() else "delete it, then import its folder again: `sa models import FOLDER`"
    if any(row.sha256 is None or row.path != str(inner) for row in listed):
        return f"delete it, and {pull} downloads it again"
    if (
        entry is not None and not listed and not any(PurePosixPath(row.path).is_relative_to(inner) for row in rows)
    ):  # q4.gguf, by hand
        return f"{_COPY}, or delete it: it is no file of the catalogue, whose own files {pull} downloads"
    return f"download it again: {pull}"


def _entry(name: str) -> Entry | None:
    """The entry of the catalogue or of an imported model; None without a readable one."""
    for folder in (*BUILTIN, cache_dir() / "models"):
        if (folder / name / FILE_NAME).is_file():
            try:
                return read(folder / name)
            except SaError:
                return None
    return None


def _same_network(path: PurePosixPath, listed: str) -> bool:
    """Whether ``path`` is a listed file in any form: ``unet.pth`` and ``unet.fp16.safetensors``."""
    return _without_form(path) == _without_form(PurePosixPath(listed))


def _without_form(path: PurePosixPath) -> PurePosixPath:
    return path.with_name(path.stem.removesuffix(".fp16")) if path.name else path
