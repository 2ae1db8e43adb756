"""``model.toml``, the description of a model folder, read strictly. Its schema is in ``models/README.md``.

The file holds names, licences, sizes, digests and relative paths. Unknown keys are refused with the nearest known one:
a misspelt ``sha256`` would silently disable a check. Paths stay inside the folder and addresses are http(s), so that an
untrusted model folder cannot name other files of the machine.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from stableanimator_cli.catalogue.address import problem, redacted
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import model_defaults
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing, did_you_mean
from stableanimator_cli.readers import damaged_model, read_toml
from stableanimator_cli.readers_fields import shown

if TYPE_CHECKING:  # records imports numpy, which a TAB in the shell must not wait for
    from stableanimator_cli.records import ChannelOrder

FILE_NAME = "model.toml"

_TOP = (
    "name",
    "summary",
    "task",
    "licence",
    "licence_note",
    "source",
    "face_channel_order",
    "needs",
    "defaults",
    "components",
    "files",
    "archives",
    "training",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ROLE = re.compile(r"[a-z][a-z0-9_]*")
_NAME_LENGTH, _PATH_LENGTH = 200, 1000
_BYTES = 2**50
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One network or detector: ``file`` (a weight file or a folder of them) and ``config`` (JSON), both relative."""

    file: str | None = None
    config: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One file of an entry. ``url`` or ``archive`` is its source; ``bytes`` and ``sha256`` are None if unknown.
    ``optional`` files are downloaded only on request."""

    path: str
    url: str | None = None
    archive: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A zip with several of the entry's files; it is deleted once they are extracted."""

    path: str
    url: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A parsed ``model.toml`` in ``folder``; ``face_channel_order`` is None if not recorded."""

    name: str
    folder: Path
    summary: str
    task: str
    licence: str
    licence_note: str
    source: str
    face_channel_order: ChannelOrder | None
    needs: tuple[str, ...]
    defaults: Mapping[str, Any]
    components: Mapping[str, Component]
    files: tuple[WeightFile, ...]
    archives: tuple[Archive, ...]
    training: Mapping[str, Any] = field(default_factory=dict)

    def file(self, path: str) -> WeightFile | None:
        """The ``[[files]]`` row of a relative path, None if the entry does not list it."""
        return next((f for f in self.files if f.path == path), None)

    def under(self, path: str) -> tuple[WeightFile, ...]:
        """The rows in the relative folder ``path`` (``.``: all)."""
        return tuple(f for f in self.files if path == "." or f.path.startswith(path.rstrip("/") + "/"))

    @property
    def bytes(self) -> int | None:
        """Size of the files that are not optional, None if one is unknown."""
        sizes = [f.bytes for f in self.files if not f.optional]
        return None if None in sizes else sum(s for s in sizes if s is not None)


def nearest_or_all(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known word, or lists all of them."""
    options = sorted(known)
    return did_you_mean(word, options) or ("known: " + ", ".join(options) if options else None)


def read(folder: Path) -> Entry:
    """Read ``folder/model.toml``. Raises ``ModelMissing`` if there is none, ``ModelDamaged`` if it is wrong."""
    return _Reader(folder / FILE_NAME).entry()


def _row_name(row: Mapping[str, Any], index: int) -> object:
    path = row.get("path", index + 1)
    return path if isinstance(path, str) and path.isprintable() and len(path) <= 60 else shown(path)


class _Reader:
    """Reader of one file; its errors name the path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, where: str, found: object, expected: str, hint: str | None = None) -> NoReturn:
        raise ModelDamaged(f"{self.path}: {where}: found {shown(found)}, expected {expected}", hint=hint)

    def entry(self) -> Entry:
        if not os.path.lexists(self.path):
            raise ModelMissing(f"{self.path}: not found", hint="a model folder holds a model.toml")
        raw = read_toml(self.path, "the description of a model", error=damaged_model, hint="see models/README.md")
        self.known("top level", raw, _TOP)
        order = self.text(raw, "top level", "face_channel_order")
        if order not in ("", "bgr", "rgb"):
            self.fail("face_channel_order", order, "'bgr' or 'rgb'")
        archives = tuple(self.archive(row, i) for i, row in enumerate(self.rows(raw, "archives")))
        return Entry(
            name=self.name(raw),
            folder=self.path.parent,
            summary=self.line(raw, "summary"),
            task=self.line(raw, "task"),
            licence=self.line(raw, "licence") or "unknown",
            licence_note=self.line(raw, "licence_note"),
            source=self.line(raw, "source"),
            face_channel_order=order or None,  # type: ignore[arg-type]
            needs=self.needs(raw),
            defaults=self.defaults(raw),
            components=self.components(raw),
            files=self.files(raw, archives),
            archives=archives,
            training=MappingProxyType(self.table(raw, "training")),
        )

    def known(self, where: str, table: Mapping[str, Any], keys: Iterable[str]) -> None:
        keys = tuple(keys)
        for key in table:
            if key not in keys:
                raise ModelDamaged(f"{self.path}: {where}: unknown key {shown(key)}", hint=nearest_or_all(key, keys))

    def text(self, table: Mapping[str, Any], where: str, key: str) -> str:
        value = table.get(key, "")
        if not isinstance(value, str):
            self.fail(f"{where}: {key}", value, "a text")
        if any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in value):
            self.fail(f"{where}: {key}", value, "a text without control characters")
        return value

    def line(self, raw: Mapping[str, Any], key: str) -> str:
        """A text of one line for people, without secrets of addresses."""
        return redacted(" ".join(self.text(raw, "top level", key).split()))

    def table(self, raw: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = raw.get(key, {})
        if not isinstance(value, dict):
            self.fail(key, value, f"a table: [{key}]")
        return value

    def rows(self, raw: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        value = raw.get(key, [])
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            self.fail(key, value, f"a list of tables: [[{key}]]")
        return value

    def name(self, raw: Mapping[str, Any]) -> str:
        name = self.text(raw, "top level", "name")
        if not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH:
            self.fail("name", name, f"at most {_NAME_LENGTH} letters, digits, '-', '_' and '.'")
        return name

    def needs(self, raw: Mapping[str, Any]) -> tuple[str, ...]:
        value = raw.get("needs", [])
        if not isinstance(value, list) or not all(isinstance(n, str) and n for n in value):
            self.fail("needs", value, "a list of catalogue names or model folders")
        return tuple(value)

    def defaults(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        table = self.table(raw, "defaults")
        options = model_defaults(AnimateConfig)
        self.known("[defaults]", table, options)
        for key, value in table.items():
            if isinstance(value, str):
                self.text(table, "[defaults]", key)
            try:
                options[key](value, f"{self.path}: [defaults] {key}")
            except ConfigError as error:
                raise ModelDamaged(error.message, hint=error.hint) from None
        return MappingProxyType(table)

    def components(self, raw: Mapping[str, Any]) -> Mapping[str, Component]:
        found: dict[str, Component] = {}
        for role, table in self.table(raw, "components").items():
            where = f"[components.{role}]"
            if not _ROLE.fullmatch(role):
                self.fail(where, role, "a role in lower case, as 'pose_net'")
            if not isinstance(table, dict) or not table:
                self.fail(where, table, "file, config or both")
            self.known(where, table, ("file", "config"))
            found[role] = Component(
                file=self.inside(table, where, "file", folder=True), config=self.inside(table, where, "config")
            )
        return MappingProxyType(found)

    def files(self, raw: Mapping[str, Any], archives: tuple[Archive, ...]) -> tuple[WeightFile, ...]:
        found = []
        for i, row in enumerate(self.rows(raw, "files")):
            where = f"[[files]] {_row_name(row, i)}"
            self.known(where, row, ("path", "url", "archive", "bytes", "sha256", "optional"))
            archive = self.text(row, where, "archive") or None
            if archive is not None and archive not in {a.path for a in archives}:
                self.fail(f"{where}: archive", archive, "the path of one of the [[archives]]")
            optional = row.get("optional", False)
            if not isinstance(optional, bool):
                self.fail(f"{where}: optional", optional, "true or false")
            found.append(
                WeightFile(
                    path=self.required(row, where),
                    url=self.url(row, where),
                    archive=archive,
                    bytes=self.count(row, where),
                    sha256=self.sha256(row, where),
                    optional=optional,
                )
            )
        paths = [f.path for f in found]
        for path, count in Counter([*paths, *(archive.path for archive in archives)]).items():
            if count > 1:
                self.fail("[[files]]", path, "each path once")
        return tuple(found)

    def archive(self, row: dict[str, Any], index: int) -> Archive:
        where = f"[[archives]] {_row_name(row, index)}"
        self.known(where, row, ("path", "url", "bytes", "sha256"))
        url = self.url(row, where)
        if url is None:
            self.fail(f"{where}: url", None, "an address")
        return Archive(
            path=self.required(row, where), url=url, bytes=self.count(row, where), sha256=self.sha256(row, where)
        )

    def required(self, row: Mapping[str, Any], where: str) -> str:
        path = self.inside(row, where, "path")
        if path is None:
            self.fail(f"{where}: path", None, "a relative path")
        return path

    def inside(self, table: Mapping[str, Any], where: str, key: str, *, folder: bool = False) -> str | None:
        """A relative path that stays in the folder, checked here for all readers of the entry."""
        if key not in table:
            return None
        value = self.text(table, where, key)
        path = PurePosixPath(value)
        escapes = path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value or "\0" in value
        if escapes or not value or (str(path) == "." and not folder):
            self.fail(f"{where}: {key}", value, "a path inside the model folder (not absolute, no '..')")
        hidden = any(part.startswith(".") for part in path.parts) or path.name.endswith(".part")
        if hidden or len(value) > _PATH_LENGTH or any(len(os.fsencode(p)) > _NAME_LENGTH for p in path.parts):
            self.fail(f"{where}: {key}", value, "a path of short names, none that starts with '.' or ends with '.part'")
        return str(path)

    def url(self, row: Mapping[str, Any], where: str) -> str | None:
        value = self.text(row, where, "url")
        found = problem(value) if value else None
        if found is not None:
            self.fail(f"{where}: url", redacted(value), f"an http(s) address: {found}")
        return value or None

    def count(self, row: Mapping[str, Any], where: str) -> int | None:
        value = row.get("bytes")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _BYTES):
            self.fail(f"{where}: bytes", value, "a number of bytes")
        return value

    def sha256(self, row: Mapping[str, Any], where: str) -> str | None:
        value = self.text(row, where, "sha256").lower()
        if value and not _SHA256.fullmatch(value):
            self.fail(f"{where}: sha256", value, "64 hexadecimal digits, or no key at all where the digest is unknown")
        return value or None
