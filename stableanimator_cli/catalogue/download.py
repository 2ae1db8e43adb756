"""Fetch the files of a catalogue entry, and say whether what lies here is what was recorded.

``pull`` is the only code of the program that touches the network (``catalogue_http``). A file is built as
``NAME.part``, which a later run resumes, and gets its name only once its size and sha256 hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import archive, store
from stableanimator_cli.catalogue.http import Progress, download
from stableanimator_cli.catalogue.schema import Archive, Entry, WeightFile
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing, SaError
from stableanimator_cli.files import atomic_write
from stableanimator_cli.readers import read_json

Status = Literal["ok", "missing", "wrong size", "wrong digest", "digest unknown", "other form"]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One file of an entry, compared with its record.

    ``digest unknown``: the record has none, and ``sha256`` is what the file has. ``other form``: the same network in
    another file (converted to safetensors, another precision), to which the recorded digest does not apply.
    """

    path: str
    status: Status
    optional: bool
    place: Path | None = None
    bytes: int | None = None
    sha256: str | None = None
    expected: str | None = None

    @property
    def holds(self) -> bool:
        return self.status in ("ok", "digest unknown", "other form") or (self.status == "missing" and self.optional)


def pull(name: str, progress: Progress | None = None, *, optional: bool = False) -> list[Path]:
    """Fetch what is missing of the entry ``name`` and of those it needs, into ``home()/models``; what is there stays.

    ``optional`` fetches the optional files too. Returns the paths of the files that were fetched.
    Raises ``ModelMissing`` (no network, no such address, terms to accept, no room), ``ModelDamaged`` (the size or
    digest is not the recorded one; the partial file is deleted) and ``BadInput`` (another process writes the entry).
    """
    fetched: list[Path] = []
    for entry in catalogue.with_needs(catalogue.entry(name)):
        wanted = _wanted(entry, optional, progress)
        if any(row.url or row.archive for row in wanted) or _unclean(entry):
            with store.held(entry.name):
                wanted = _wanted(entry, optional, progress)  # another process may have fetched it meanwhile
                fetched += _fetch_all(entry, wanted, progress)
                store.remove_leftovers(entry)
        orphan = next((row for row in wanted if row.url is None and row.archive is None), None)
        if orphan is not None:
            raise ModelMissing(
                f"{entry.name}: {orphan.path} is missing or damaged, and its address is not recorded",
                hint=f"get it from {entry.source or 'its authors'}, then `sa models import FOLDER`",
            )
    return fetched


def _wanted(entry: Entry, optional: bool, progress: Progress | None) -> list[WeightFile]:
    return [row for row in entry.files if (optional or not row.optional) and _needs_download(entry, row, progress)]


def _unclean(entry: Entry) -> bool:
    return store.unclean(entry.name) or bool(store.leftovers(entry))


def _fetch_all(entry: Entry, wanted: list[WeightFile], progress: Progress | None) -> list[Path]:
    fetched = [_fetch(entry, row, row.url, progress) for row in wanted if row.url is not None]
    for bundle in entry.archives:
        members = [row for row in wanted if row.archive == bundle.path]
        if members:
            packed = _arrived(entry, bundle, bundle.url, progress)
            fetched += [_unpack(entry, packed, member, progress) for member in members]
            _remove(packed)
    return fetched


def _needs_download(entry: Entry, row: WeightFile, progress: Progress | None) -> bool:
    place = catalogue.locate(entry, row.path)
    if place is None or row.sha256 is None:  # without a recorded digest there is nothing to read the file for
        return place is None or (
            place.name == Path(row.path).name and place.stat().st_size != (row.bytes or place.stat().st_size)
        )
    return not _check(entry, row, progress).holds


def verify(name_or_entry: str | Entry, progress: Progress | None = None) -> list[Check]:
    """Compare every listed file of an entry with its record. Digests of unchanged files are remembered."""
    entry = name_or_entry if isinstance(name_or_entry, Entry) else catalogue.load(name_or_entry)
    return [_check(entry, row, progress) for row in entry.files]


def digest(path: Path, progress: Progress | None = None, label: str = "") -> str:
    """sha256 of a file, from ``home()/digests.json`` if nothing of its state has changed since it was read.

    That is good enough to name and compare weights. A program is hashed when it is run (``engine/programs.py``).
    """
    stat = path.stat()
    stamp, key = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino], str(path.resolve())
    known = _read_digests()
    row = known.get(key)
    if isinstance(row, list) and row[:-1] == stamp and isinstance(row[-1], str):
        return row[-1]
    value = _sha256(path, progress, label)
    known = {place: row for place, row in known.items() if os.path.exists(place)} | {key: [*stamp, value]}
    # a home that cannot be written to costs time at the next check, nothing else
    with contextlib.suppress(OSError, SaError), atomic_write(catalogue.cache_dir() / "digests.json") as part:
        part.write_text(json.dumps(known), encoding="utf-8")
    return value


def _read_digests() -> dict[str, object]:
    place = catalogue.cache_dir() / "digests.json"
    try:
        known = read_json(place, "remembered digests") if place.is_file() else {}
    except BadInput:
        return {}
    return known if isinstance(known, dict) else {}


def _check(entry: Entry, row: WeightFile, progress: Progress | None) -> Check:
    place = catalogue.locate(entry, row.path)
    if place is None:
        return Check(path=row.path, status="missing", optional=row.optional, bytes=row.bytes, expected=row.sha256)
    size = place.stat().st_size
    value: str | None = None
    status: Status
    if place.name != Path(row.path).name:
        status = "other form"
    elif row.bytes is not None and size != row.bytes:
        status = "wrong size"
    else:
        value = digest(place, progress, row.path)
        status = "digest unknown" if row.sha256 is None else "ok" if value == row.sha256 else "wrong digest"
    return Check(
        path=row.path,
        status=status,
        optional=row.optional,
        place=place,
        bytes=size,
        sha256=value,
        expected=row.sha256,
    )


def _sha256(path: Path, progress: Progress | None, label: str) -> str:
    total, done, value = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            value.update(block)
            done += len(block)
            if progress is not None:
                progress(label or path.name, done, total)
    return value.hexdigest()


def _fetch(entry: Entry, row: WeightFile, url: str, progress: Progress | None) -> Path:
    """Download a file to its place in the store of the entry, checked. Returns that."""
    target = catalogue.model_cache_dir(entry.name) / row.path
    part = _arrived(entry, row, url, progress)
    with store.writing(target):
        os.replace(part, target)
    store.validator(part).unlink(missing_ok=True)
    return target


def _arrived(entry: Entry, row: WeightFile | Archive, url: str, progress: Progress | None) -> Path:
    """The partial file of ``row``, complete and checked."""
    part = store.partial(catalogue.model_cache_dir(entry.name) / row.path)
    with store.writing(part.parent):
        part.parent.mkdir(parents=True, exist_ok=True)
    download(entry, row, url, part, progress)
    _accept(part, row, f"{entry.name}/{row.path}", progress)
    return part


def _accept(part: Path, row: WeightFile | Archive, label: str, progress: Progress | None) -> None:
    """Delete ``part`` and raise where it is not what was recorded."""
    size = part.stat().st_size
    value = _sha256(part, progress, label) if row.sha256 is not None and size == (row.bytes or size) else None
    if row.bytes is not None and size != row.bytes:
        found, expected = f"{size} bytes", f"{row.bytes} bytes"
    elif value != row.sha256:
        found, expected = f"sha256 {value}", f"sha256 {row.sha256}"
    else:
        return
    _remove(part)
    raise ModelDamaged(
        f"{label}: what came is not what was recorded: found {found}, expected {expected}; deleted",
        hint="try again; where it stays so, the file behind the address was replaced: see the entry's CARD.md",
    )


def _unpack(entry: Entry, packed: Path, member: WeightFile, progress: Progress | None) -> Path:
    """Take one file out of a zip; a zip without the recorded file is deleted."""
    target, label = catalogue.model_cache_dir(entry.name) / member.path, f"{entry.name}/{member.path}"
    part = store.staging(entry.name, inside=True) / target.name
    try:
        archive.unpack(packed, member, part, label)
        _accept(part, member, label, progress)
    except ModelDamaged:
        _remove(packed)
        raise
    with store.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, target)
    return target


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    store.validator(part).unlink(missing_ok=True)
