"""Damaged weights: a file whose size or sha256 is not the recorded one, and the hint that mends it."""

from __future__ import annotations

from pathlib import Path

from stableanimator_cli.catalogue.home import BUILTIN, cache_dir
from stableanimator_cli.errors import ModelDamaged

_LFS = b"version https://git-lfs"


def check_size(path: Path, expected: int | None) -> None:
    """Raise ``ModelDamaged`` for a git-lfs pointer, and for a file of another size than recorded. Folders pass."""
    if not path.is_file():
        return
    size = path.stat().st_size
    if size < 1024:
        with path.open("rb") as stream:
            if stream.read(len(_LFS)) == _LFS:
                raise ModelDamaged(
                    f"{path}: found a git-lfs pointer, expected the weights",
                    hint=f"run `git lfs pull` in its folder, or {fetch_again(path)}",
                )
    if size == 0 or (expected is not None and size != expected):
        needed = "weights" if expected is None else f"{expected} bytes"
        raise ModelDamaged(f"{path}: found {size} bytes, expected {needed}", hint=fetch_again(path))


def check_digest(path: Path, found: str, expected: str | None) -> None:
    """Raise ``ModelDamaged`` unless the sha256 of ``path`` is the one that its model.toml records, None for none."""
    if expected is not None and found != expected:
        raise ModelDamaged(
            f"{path}: found sha256 {found[:12]}, expected {expected[:12]}, as its model.toml records",
            hint=fetch_again(path),
        )


def fetch_again(path: Path) -> str:
    """The hint for a damaged file of a model: only files in the cache are downloaded again by ``sa models pull``."""
    models, path = cache_dir() / "models", path.absolute()
    if path.is_relative_to(models) and path != models:
        return f"download it again: `sa models pull {path.relative_to(models).parts[0]}`"
    if any(path.is_relative_to(folder) for folder in BUILTIN):
        return "it is a part of sa: install sa again, or in a clone restore it with git checkout"
    return "copy it again from where its folder comes from"
