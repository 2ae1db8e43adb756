"""Link, copy or convert files into ``cache_dir()/models``, each complete or not at all; no other file is replaced.

A link of an earlier import is replaced. A regular file stays if it equals the new one; otherwise the import is refused
and changes nothing. The caller's ``convert`` writes pickles as safetensors: no weights are read here.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import store
from stableanimator_cli.catalogue.weight_files import weight_names
from stableanimator_cli.errors import BadInput, SaError, command
from stableanimator_cli.files import sha256_of, translate_read_errors
from stableanimator_cli.readers import parse_json

Convert = Callable[[Path, Path], None]
"""Write the weights of the first file, a pickle, to the second as safetensors."""

WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx")
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
SOURCE_SHA256 = "source_sha256"
"""Key of a converted file's metadata: the digest of the pickle."""

_State = Literal["same", "link", "absent"]
_CHUNK = 1 << 20
_HEADER = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One file to register: ``source`` becomes the relative ``path`` of the entry ``name``.

    ``how`` is the result: ``linked``, ``copied``, ``converted``, ``already there``, or empty before.
    """

    name: str
    role: str
    source: Path
    path: str
    converted: bool
    how: str = ""

    @property
    def target(self) -> Path:
        return catalogue.model_cache_dir(self.name) / self.path


def place_files(planned: Sequence[Import], *, copy: bool, convert: Convert | None) -> list[Import]:
    """Register files of catalogue entries, each entry under its lock."""
    placed: dict[Import, Import] = {}
    for name in dict.fromkeys(row.name for row in planned):
        rows = [row for row in planned if row.name == name]
        with store.locked_model(name):
            states = {row: _state(row, copy=copy, convert=convert) for row in rows}
            others = [link for row in rows for link in _other_forms(row)]
            _check_disk_space(row for row in rows if states[row] != "same" and (copy or row.converted))
            for row in rows:
                how = "already there"
                if states[row] != "same":
                    part = store.staging(name, inside=True) / row.target.name
                    how = _make(row, part, copy=copy, convert=convert)
                    with store.writing(row.target):
                        row.target.parent.mkdir(parents=True, exist_ok=True)
                        os.replace(part, row.target)
                placed[row] = replace(row, how=how)
            for link in others:
                link.unlink(missing_ok=True)
            store.remove_leftovers(catalogue.entry(name))
    return [placed[row] for row in planned]


def place_folder(name: str, planned: Sequence[Import], *, copy: bool, convert: Convert | None) -> list[Import]:
    """Register a model folder under its own name; the full folder appears at once, or nothing."""
    with store.locked_model(name) as folder:
        if folder.is_symlink():
            raise BadInput.because(
                folder, "it is a link that no import made", hint=f"remove it first: {command('rm', folder)}"
            )
        states = {row: _state(row, copy=copy, convert=convert) for row in planned}
        targets = {row.target for row in planned}
        others = [p for p in folder.rglob("*") if not p.is_dir() and p not in targets] if folder.is_dir() else []
        foreign = next((p for p in others if not p.is_symlink() and store.STAGING not in p.parts), None)
        if foreign is not None:
            raise _taken(foreign, "it belongs to another model with this name")
        if set(states.values()) == {"same"} and not others:
            return [replace(row, how="already there") for row in planned]
        _check_disk_space(row for row in planned if copy or row.converted)
        built, placed = store.staging(name, inside=False), []
        for row in planned:
            with store.writing(row.target):
                (built / row.path).parent.mkdir(parents=True, exist_ok=True)
            placed.append(replace(row, how=_make(row, built / row.path, copy=copy, convert=convert)))
        with store.writing(folder):
            if folder.is_dir():  # links, and files that are written again with the same bytes
                shutil.rmtree(folder)
            os.replace(built, folder)
        return placed


def _state(row: Import, *, copy: bool, convert: Convert | None) -> _State:
    """State of a file's target: the same file, a replaceable link, or absent. Raises ``BadInput`` otherwise."""
    target, source = row.target, row.source.resolve()
    if target.is_symlink():
        return "same" if not copy and not row.converted and target.resolve() == source else "link"
    if not target.exists():
        return "absent"
    if not target.is_file():
        raise _taken(target, "it is a folder, and a file is imported under its name")
    if row.converted:
        made_from = _converted_from(target)
        same = made_from == sha256_of(source) if made_from is not None else _converts_to(row, convert, target)
    else:
        same = target.samefile(source) or _same_bytes(source, target)
    if not same:
        raise _taken(target, f"it holds other weights than {row.source}{_difference(target, source, row.converted)}")
    return "same"


def _taken(target: Path, problem: str) -> BadInput:
    return BadInput.because(
        target,
        problem,
        hint=f"to replace it, delete it first ({command('rm', '-r', target)}); to keep both, open the new one by its "
        "path: `--model FOLDER`",
    )


def _difference(target: Path, source: Path, converted: bool) -> str:
    if converted:
        return ""
    sizes = [path.stat().st_size for path in (target, source)]
    if sizes[0] != sizes[1]:
        return f" ({sizes[0]} bytes, not {sizes[1]})"
    found, given = (sha256_of(path)[:12] for path in (target, source))
    return f" (sha256 {found}..., not {given}...)"


def _other_forms(row: Import) -> list[Path]:
    """Links to other weights that the name would open instead of ``row`` or in addition; they are removed.

    Raises ``BadInput`` for a regular file of other weights.
    """
    listed = {file.path for file in catalogue.entry(row.name).files}
    links = []
    for name in weight_names(row.target.name):
        other = row.target.with_name(name)
        if other == row.target or not other.is_file():
            continue
        relative = other.relative_to(catalogue.model_cache_dir(row.name)).as_posix()
        if relative in listed - {row.path} and not row.converted:
            continue  # an entry's other file
        source = row.source.resolve()
        made_from = _converted_from(other)
        if other.samefile(source) or _same_bytes(source, other):
            continue
        if made_from == sha256_of(source) if made_from is not None else _same_time(source, other):
            continue
        if not other.is_symlink():
            raise _taken(other, f"it holds other weights than {row.source}, and the name would open only one of them")
        links.append(other)
    return links


def _check_disk_space(rows: Iterable[Import]) -> None:
    rows = list(rows)
    if rows:
        need = sum(row.source.stat().st_size for row in rows)
        store.check_disk_space(catalogue.model_cache_dir(rows[0].name), need, rows[0].name)


def _make(row: Import, part: Path, *, copy: bool, convert: Convert | None) -> str:
    """Write ``row`` to the temporary path ``part``. Returns how."""
    source = row.source.resolve()
    if row.converted and convert is not None:
        with store.writing(row.target):
            convert(source, part)
            status = source.stat()
            os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
        return "converted"
    if copy:
        _copy(source, part, row.target)
        return "copied"
    try:
        part.symlink_to(source)
    except OSError as error:
        raise BadInput(
            row.target.parent, f"a file system without links ({error.strerror})", "links", hint="use --copy"
        ) from None
    return "linked"


def _copy(source: Path, part: Path, target: Path) -> None:
    with _reading(source):
        stream = source.open("rb")
    with stream:
        with store.writing(target):
            copied = part.open("wb", buffering=0)
        with copied:
            while True:
                with _reading(source):
                    block = stream.read(_CHUNK)
                if not block:
                    return
                with store.writing(target):
                    while block:  # a full disk accepts part of a block before it fails
                        block = block[copied.write(block) :]


def _reading(source: Path) -> contextlib.AbstractContextManager[None]:
    return translate_read_errors(source, hint="allow reading it, or copy it again")


def _same_bytes(source: Path, target: Path) -> bool:
    with _reading(source):
        return source.stat().st_size == target.stat().st_size and filecmp.cmp(source, target, shallow=False)


def _same_time(source: Path, target: Path) -> bool:
    """Whether the times are equal, as those of a conversion and its source."""
    return source.stat().st_mtime_ns == target.stat().st_mtime_ns


def _converts_to(row: Import, convert: Convert | None, target: Path) -> bool:
    """Whether the conversion of ``row`` has the tensors of ``target``, which does not record its source."""
    if convert is None:
        return False
    part = store.staging(row.name, inside=True) / target.name
    _make(row, part, copy=False, convert=convert)
    return _same_tensors(part, target)


def _same_tensors(first: Path, second: Path) -> bool:
    """Whether two safetensors files have the same tensors in the same order; metadata may differ."""
    headers = [_header(path) for path in (first, second)]
    tables = [{name: row for name, row in table.items() if name != "__metadata__"} for table, _ in headers]
    if tables[0] != tables[1]:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        for stream, (_, start) in zip((one, other), headers, strict=True):
            stream.seek(start)
        while True:
            blocks = one.read(_CHUNK), other.read(_CHUNK)
            if blocks[0] != blocks[1]:
                return False
            if not blocks[0]:
                return True


def _converted_from(path: Path) -> str | None:
    """Digest of the pickle that a safetensors file was converted from, None if not recorded."""
    metadata = _header(path)[0].get("__metadata__")
    return metadata.get(SOURCE_SHA256) if isinstance(metadata, dict) else None


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file and the offset of its tensors; empty for other files."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if path.suffix != ".safetensors" or not 0 < length <= min(_HEADER, path.stat().st_size):
            return {}, 0
        header = stream.read(length)
    try:
        table = parse_json(header.decode("utf-8"), path, "the header of a safetensors file")
    except (SaError, UnicodeDecodeError):
        table = None
    return (table, 8 + length) if isinstance(table, dict) else ({}, 0)
