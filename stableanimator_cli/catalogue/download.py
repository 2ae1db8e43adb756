"""Download the files of a catalogue entry, and compare local files with their record.

``pull`` is the only code of the program that uses the network (``http.py``). A file is built as ``NAME.part``, which a
later run resumes, and renamed once its size and sha256 are verified.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import archive, hub, store
from stableanimator_cli.catalogue.damage import check_digest
from stableanimator_cli.catalogue.http import Progress, download
from stableanimator_cli.catalogue.needed import Needed
from stableanimator_cli.catalogue.schema import Archive, Entry, WeightFile
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing, SaError
from stableanimator_cli.files import atomic_write, sha256_of
from stableanimator_cli.readers import read_json

if TYPE_CHECKING:  # records imports numpy
    from stableanimator_cli.records import ModelFolder

Status = Literal["ok", "missing", "wrong size", "wrong digest", "digest unknown", "other form"]

_CHUNK = 1 << 20

WORK = {
    "animate": (catalogue.DEFAULT,),
    "train": (catalogue.DEFAULT,),
    "evaluate": ("antelopev2", "dwpose", "buffalo_l", "lpips", "i3d"),
}
"""Models of the released weights that each verb uses; FID-VID's has no recorded address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One file of an entry, compared with its record. ``file``: its path, None if it is missing.

    ``digest unknown``: the record has none; ``sha256`` is the file's. ``other form``: the same network in another file
    (converted to safetensors, another precision), to which the recorded digest does not apply.
    """

    path: str
    status: Status
    optional: bool
    file: Path | None = None
    bytes: int | None = None
    sha256: str | None = None
    expected: str | None = None

    @property
    def holds(self) -> bool:
        return self.status in ("ok", "digest unknown", "other form") or (self.status == "missing" and self.optional)


def pull(name: str, progress: Progress | None = None, *, optional: bool = False) -> list[Path]:
    """Download missing files of the entry ``name`` and of its needs into ``cache_dir()/models``.

    ``optional`` downloads the optional files too. Files in the hub's cache are linked instead if size and sha256 agree.
    Returns the paths of the downloaded and linked files. Raises
    ``ModelMissing`` (no network, no such address, terms to accept, no room), ``ModelDamaged`` (the size or digest is
    not the recorded one; the partial file is deleted) and ``BadInput`` (another process writes the entry).
    """
    fetched: list[Path] = []
    for entry in catalogue.with_needs(catalogue.entry(name)):

        def missing(entry: Entry = entry) -> list[WeightFile]:
            rows = (row for row in entry.files if optional or not row.optional)
            return [row for row in rows if _needs_download(entry, row, progress)]

        rows = missing()
        if any(row.url or row.archive for row in rows) or store.unclean(entry.name) or store.leftovers(entry):
            with store.locked_model(entry.name):
                rows = missing()  # another process may have downloaded it meanwhile
                fetched += _fetch_all(entry, rows, progress)
                store.remove_leftovers(entry)
        orphan = next((row for row in rows if row.url is None and row.archive is None), None)
        if orphan is not None:
            raise ModelMissing(
                f"{entry.name}: {orphan.path} is missing or damaged, and its address is not recorded",
                hint=entry.by_hand,
            )
    return fetched


def _fetch_all(entry: Entry, rows: list[WeightFile], progress: Progress | None) -> list[Path]:
    fetched = [
        _from_hub_cache(entry, row, row.url, progress) or _fetch(entry, row, row.url, progress)
        for row in rows
        if row.url is not None
    ]
    for bundle in entry.archives:
        members = [row for row in rows if row.archive == bundle.path]
        if members:
            packed = _arrived(entry, bundle, bundle.url, progress)
            fetched += [_unpack(entry, packed, member, progress) for member in members]
            _remove(packed)
    return fetched


def _needs_download(entry: Entry, row: WeightFile, progress: Progress | None) -> bool:
    file = catalogue.locate(entry, row.path)
    if file is None:
        return True
    if row.sha256 is None:  # without a recorded digest the file need not be read
        return file.name == Path(row.path).name and file.stat().st_size != (row.bytes or file.stat().st_size)
    return not _check(entry, row, progress).holds


def needed_by_verb() -> dict[str, Needed]:
    """Missing files for each verb of ``WORK``: ``files`` is 0 if nothing is."""
    found: dict[str, Needed] = {}
    for verb, names in WORK.items():
        lacking = [name for name in names if catalogue.download_of([name]).files]
        found[verb] = catalogue.download_of(lacking or names)
    return found


def verify(name_or_entry: str | Entry, progress: Progress | None = None) -> list[Check]:
    """Compare every listed file of an entry with its record. Digests of unchanged files are cached."""
    entry = name_or_entry if isinstance(name_or_entry, Entry) else catalogue.load_entry(name_or_entry)
    return [_check(entry, row, progress) for row in entry.files]


def weight_digests(model: ModelFolder, roles: Iterable[str] | None = None) -> dict[str, str]:
    """sha256 by role of a model's files and folders, all or those of ``roles``. Digests of unchanged files are cached.

    Raises ``ModelDamaged`` if a file has another sha256 than its model.toml records: it would still load if only its
    numbers are damaged.
    """
    files = {role: path for role, path in model.files.items() if roles is None or role in roles}
    of_file = functools.cache(digest)
    for path, expected in model.digests.items():
        if any(path.is_relative_to(file) for file in files.values()):
            check_digest(path, of_file(path), expected)
    return {role: sha256_of(path, of_file) if path.is_dir() else of_file(path) for role, path in files.items()}


def digest(path: Path, progress: Progress | None = None, label: str = "") -> str:
    """sha256 of a file, from ``cache_dir()/digests.json`` if the file's state has not changed since.

    This suffices to name and compare weights. A program is hashed when it is run (``engine/programs.py``).
    """
    stat = path.stat()
    stamp, key = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino], str(path.resolve())
    known = _read_digests()
    row = known.get(key)
    if isinstance(row, list) and row[:-1] == stamp and isinstance(row[-1], str):
        return row[-1]
    value = _sha256(path, progress, label)
    known = {name: row for name, row in known.items() if os.path.exists(name)} | {key: [*stamp, value]}
    # an unwritable folder only costs time at the next check
    with contextlib.suppress(OSError, SaError), atomic_write(catalogue.cache_dir() / "digests.json") as part:
        part.write_text(json.dumps(known), encoding="utf-8")
    return value


def _read_digests() -> Mapping[str, object]:
    path = catalogue.cache_dir() / "digests.json"
    try:
        stat = path.stat()
    except OSError:
        return {}
    return _parsed_digests(path, (stat.st_size, stat.st_mtime_ns, stat.st_ino))


@functools.lru_cache(maxsize=1)
def _parsed_digests(path: Path, stamp: tuple[int, ...]) -> Mapping[str, object]:
    """The rows of one state of the file, cached because each weight of a model needs all rows."""
    try:
        known = read_json(path, "cached digests")
    except BadInput:
        return {}
    return known if isinstance(known, dict) else {}


def _check(entry: Entry, row: WeightFile, progress: Progress | None) -> Check:
    file = catalogue.locate(entry, row.path)
    if file is None:
        return Check(path=row.path, status="missing", optional=row.optional, bytes=row.bytes, expected=row.sha256)
    size = file.stat().st_size
    value: str | None = None
    status: Status
    if file.name != Path(row.path).name:
        status = "other form"
    elif row.bytes is not None and size != row.bytes:
        status = "wrong size"
    else:
        value = digest(file, progress, row.path)
        status = "digest unknown" if row.sha256 is None else "ok" if value == row.sha256 else "wrong digest"
    return Check(
        path=row.path, status=status, optional=row.optional, file=file, bytes=size, sha256=value, expected=row.sha256
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
    """Download a file into the model's folder, verified. Returns its path."""
    target = catalogue.model_cache_dir(entry.name) / row.path
    part = _arrived(entry, row, url, progress)
    with store.writing(target):
        os.replace(part, target)
    store.validator(part).unlink(missing_ok=True)
    return target


def _from_hub_cache(entry: Entry, row: WeightFile, url: str, progress: Progress | None) -> Path | None:
    """Link to the file in the hub's cache. Returns the link, None if the cache does not have this very file."""
    if row.sha256 is None:
        return None
    same = (file for file in hub.cached(url, row.bytes) if digest(file, progress, row.path) == row.sha256)
    source = next(same, None)
    if source is None:
        return None
    target = catalogue.model_cache_dir(entry.name) / row.path
    part = store.staging(entry.name, inside=True) / target.name
    with store.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part.symlink_to(source.resolve())
        os.replace(part, target)
    return target


def _arrived(entry: Entry, row: WeightFile | Archive, url: str, progress: Progress | None) -> Path:
    """The partial file of ``row``, complete and verified."""
    part = store.partial(catalogue.model_cache_dir(entry.name) / row.path)
    with store.writing(part.parent):
        part.parent.mkdir(parents=True, exist_ok=True)
    download(entry, row, url, part, progress)
    _accept(part, row, f"{entry.name}/{row.path}", progress)
    return part


def _accept(part: Path, row: WeightFile | Archive, label: str, progress: Progress | None) -> None:
    """Delete ``part`` and raise if it differs from its record."""
    size = part.stat().st_size
    value = _sha256(part, progress, label) if row.sha256 is not None and size == (row.bytes or size) else None
    if row.bytes is not None and size != row.bytes:
        found, expected = f"{size} bytes", f"{row.bytes} bytes"
    elif value != row.sha256:
        found, expected = f"sha256 {value}", f"sha256 {row.sha256}"
    else:
        return
    _remove(part)
    raise store.differs(label, found, expected)


def _unpack(entry: Entry, packed: Path, member: WeightFile, progress: Progress | None) -> Path:
    """Extract one file of a zip; a zip without the recorded file is deleted."""
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
