"""Fetch the files of a catalogue entry, and say whether what lies here is what was recorded.

``pull`` is the only code of the program that touches the network. A file is built as ``NAME.part``, goes on from there
after a cut connection or a killed run (HTTP Range, RFC 9110 §14), and gets its name only once its size and sha256 hold.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue_schema import Archive, Entry, WeightFile
from stableanimator_cli.errors import ModelDamaged, ModelMissing

Progress = Callable[[str, int, int | None], None]
"""``progress(file, bytes done, bytes in all or None)``; called often, also while a digest is computed."""

Status = Literal["ok", "missing", "wrong size", "wrong digest", "digest unknown", "other form"]

ATTEMPTS = 5
TIMEOUT = 60.0
PAUSE = 0.5
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
    Raises ``ModelMissing`` (no network, no such address, terms to accept, no room) and ``ModelDamaged`` (the size or
    digest is not the recorded one; the partial file is deleted).
    """
    fetched: list[Path] = []
    for entry in catalogue.with_needs(catalogue.entry(name)):
        wanted = [f for f in entry.files if (optional or not f.optional) and _lacks(entry, f, progress)]
        fetched += [_fetch(entry, f, f.url, f.path, progress) for f in wanted if f.url is not None]
        for archive in entry.archives:
            members = [f for f in wanted if f.archive == archive.path]
            if members:
                packed = _fetch(entry, archive, archive.url, archive.path, progress)
                fetched += [_unpack(entry, packed, member, progress) for member in members]
                packed.unlink()
        orphan = next((f for f in wanted if f.url is None and f.archive is None), None)
        if orphan is not None:
            raise ModelMissing(
                f"{entry.name}: {orphan.path} is missing or damaged, and its address is not recorded",
                hint=f"get it from {entry.source or 'its authors'}, then `sa models import FOLDER`",
            )
    return fetched


def _lacks(entry: Entry, row: WeightFile, progress: Progress | None) -> bool:
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
    """sha256 of a file, from ``home()/digests.json`` where its size and time are those of the last reading."""
    stat = path.stat()
    stamp, key = [stat.st_size, stat.st_mtime_ns], str(path.resolve())
    known = _read_digests()
    row = known.get(key)
    if isinstance(row, list) and row[:2] == stamp:
        return str(row[2])
    value = _sha256(path, progress, label)
    known[key] = [*stamp, value]
    cache = catalogue.home() / "digests.json"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
        part.write_text(json.dumps(known), encoding="utf-8")
        os.replace(part, cache)
    except OSError:
        pass  # a home that cannot be written to costs time at the next check, nothing else
    return value


def _read_digests() -> dict[str, list[object]]:
    try:
        known = json.loads((catalogue.home() / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
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


def _fetch(entry: Entry, row: WeightFile | Archive, url: str, path: str, progress: Progress | None) -> Path:
    """Download ``url`` to ``path`` below the store of the entry, checked. Returns the finished file."""
    target = catalogue.store(entry.name) / path
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(target.parent, error) from None
    failures, arrived = 0, False
    while True:
        before = _size(part)
        try:
            _stream(url, part, row, progress, f"{entry.name}/{path}")
            break
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in (408, 429) and error.code < 500:
                    raise _refused(entry, url, error.code) from None
                cause: Exception = error
        except (OSError, http.client.HTTPException) as error:
            cause = error
        grown = _size(part) > before
        arrived, failures = arrived or grown, 0 if grown else failures + 1
        offline = isinstance(cause, urllib.error.URLError) and not isinstance(cause, urllib.error.HTTPError)
        if failures >= ATTEMPTS or (
            offline and not arrived
        ):  # waiting helps a connection that broke, not one never had
            raise _unreachable(entry, url, path, cause) from None
        time.sleep(PAUSE * 2**failures)
    _accept(part, row, f"{entry.name}/{path}", progress)
    os.replace(part, target)
    _validator(part).unlink(missing_ok=True)
    return target


def _stream(url: str, part: Path, row: WeightFile | Archive, progress: Progress | None, label: str) -> None:
    """One connection: append to ``part`` from where it ends, or begin anew where the server cannot go on.

    Raises ``ConnectionError`` where the connection ended before the announced length.
    """
    have, validator = _size(part), _validator(part)
    if have and have == row.bytes:
        return  # only the checks were still to do
    if have and row.sha256 is None and not validator.exists():
        have = 0  # nothing would tell whether a tail fits
    request = urllib.request.Request(url, headers={"User-Agent": "stableanimator-cli", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator.exists():
            # a file that was replaced meanwhile comes whole instead of as a tail that does not fit
            request.add_header("If-Range", validator.read_text(encoding="utf-8"))
    token = os.environ.get("HF_TOKEN")
    if token and urlsplit(url).hostname == "huggingface.co" and url.startswith("https://"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the host it redirects to
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            error.close()
            if (error.headers.get("Content-Range") or "").endswith(f"/{have}"):
                return  # the server has nothing after what is here: it is the whole
            part.unlink()
            raise ConnectionError("the server cannot go on from the partial file") from None
        raise
    with answer:
        begin = have if answer.status == 206 and _range_start(answer) == have else 0
        if answer.status == 206 and begin != have:
            part.unlink()
            raise ConnectionError("the server sent another part than asked for")
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length is not None else row.bytes
        _room(part, (total or 0) - begin, label)
        etag = answer.headers.get("ETag") or ""
        if not begin:
            validator.unlink(missing_ok=True)
        if etag and not etag.startswith("W/"):  # a weak validator does not promise equal bytes (RFC 9110 §13.1.5)
            validator.write_text(etag, encoding="utf-8")
        with part.open("ab" if begin else "wb") as stream:
            done = _copy(answer, stream, begin, total, progress, label)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _copy(
    answer: http.client.HTTPResponse,
    stream: IO[bytes],
    done: int,
    total: int | None,
    progress: Progress | None,
    label: str,
) -> int:
    while block := answer.read(_CHUNK):
        try:
            stream.write(block)
        except OSError as error:
            raise _unwritable(Path(stream.name), error) from None
        done += len(block)
        if progress is not None:
            progress(label, done, total)
    return done


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _range_start(answer: http.client.HTTPResponse) -> int | None:
    words = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").split("-")
    return int(words[0]) if words[0].isdigit() else None


def _room(part: Path, need: int, label: str) -> None:
    free = shutil.disk_usage(part.parent).free
    if need > free:
        raise ModelMissing(
            f"{label}: needs {need / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free at {part.parent}",
            hint="make room, or let SA_HOME name a folder on a larger disk",
        )


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
    part.unlink()
    _validator(part).unlink(missing_ok=True)
    raise ModelDamaged(
        f"{label}: what came is not what was recorded: found {found}, expected {expected}; deleted",
        hint="try again; where it stays so, the file behind the address was replaced: see the entry's CARD.md",
    )


def _unpack(entry: Entry, packed: Path, member: WeightFile, progress: Progress | None) -> Path:
    """Take one file out of a zip by its name, however deep it lies there."""
    target = catalogue.store(entry.name) / member.path
    part = target.with_name(target.name + ".part")
    try:
        with zipfile.ZipFile(packed) as archive:
            inside = [n for n in archive.namelist() if Path(n).name == target.name]
            if not inside:
                raise ModelDamaged(f"{entry.name}: {packed.name} does not hold {target.name}", hint="see its CARD.md")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(min(inside, key=len)) as source, part.open("wb") as stream:
                shutil.copyfileobj(source, stream, _CHUNK)
    except zipfile.BadZipFile as error:
        packed.unlink()
        part.unlink(missing_ok=True)
        raise ModelDamaged(f"{entry.name}: {packed.name}: not a zip: {error}; deleted", hint="try again") from None
    _accept(part, member, f"{entry.name}/{member.path}", progress)
    os.replace(part, target)
    return target


def _unwritable(place: Path, error: OSError) -> ModelMissing:
    return ModelMissing(
        f"{place}: cannot be written: {error.strerror or error}",
        hint="let SA_HOME name a folder that can be written to",
    )


def _refused(entry: Entry, url: str, status: int) -> ModelMissing:
    if status in (401, 403):
        hint = f"accept the publisher's terms at {entry.source}, then set HF_TOKEN; or fetch it by hand and import it"
    else:
        hint = f"the address may have moved: look at {entry.source}, then `sa models import FOLDER`"
    return ModelMissing(f"{entry.name}: {url}: the server answered {status}", hint=hint)


def _unreachable(entry: Entry, url: str, path: str, cause: Exception) -> ModelMissing:
    reason = cause.reason if isinstance(cause, urllib.error.URLError) else cause
    return ModelMissing(
        f"{entry.name}: cannot fetch {path} from {urlsplit(url).netloc}: {reason}",
        hint="run the same command again when the network is back (it goes on where it stopped), or fetch the file by "
        "hand elsewhere and run `sa models import FOLDER`",
    )
