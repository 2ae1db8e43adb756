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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stableanimator_cli.backbone_facts import BACKBONES
from stableanimator_cli.catalogue.address import problem, redacted
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import model_defaults
from stableanimator_cli.errors import ConfigError, ModelDamaged, ModelMissing, did_you_mean
from stableanimator_cli.readers import damaged_model, read_toml
from stableanimator_cli.readers_fields import Fields, shown

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
    "backbone",
    "face_channel_order",
    "max_texture_error",
    "total_gb",
    "needs",
    "defaults",
    "components",
    "files",
    "archives",
    "training",
)
_ORDERS: tuple[ChannelOrder, ...] = ("bgr", "rgb")
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
    """A parsed ``model.toml`` in ``folder``; ``backbone`` and ``face_channel_order`` are None if not recorded.

    ``max_texture_error`` is that of the images that the model was trained on (``engine.conditioning.texture_error``).
    ``total_gb`` is the size of all files as the source shows it, for an entry whose files have no recorded sizes.
    """

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
    max_texture_error: float | None = None
    total_gb: float | None = None
    backbone: str | None = None

    def file(self, path: str) -> WeightFile | None:
        """The ``[[files]]`` row of a relative path, None if the entry does not list it."""
        return next((f for f in self.files if f.path == path), None)

    def under(self, path: str) -> tuple[WeightFile, ...]:
        """The rows in the relative folder ``path`` (``.``: all)."""
        return tuple(f for f in self.files if path == "." or f.path.startswith(path.rstrip("/") + "/"))

    @property
    def has_addresses(self) -> bool:
        """Whether ``sa models pull`` can download anything of it: it cannot for imported models."""
        return any(f.url or f.archive for f in self.files)

    @property
    def by_hand(self) -> str:
        """The hint for a file without a recorded address."""
        return f"get it from {self.source or 'its authors'}, then run `sa models import FOLDER`"

    @property
    def bytes(self) -> int | None:
        """Size of the files that are not optional, None if one is unknown."""
        sizes = [f.bytes for f in self.files if not f.optional]
        return None if None in sizes else sum(s for s in sizes if s is not None)

    def known_bytes(self, rows: Sequence[WeightFile | Archive]) -> int:
        """What is known of the size of these files of the entry: their recorded sizes, or the total if they are all."""
        recorded = sum(row.bytes or 0 for row in rows)
        if self.total_gb is None or len(rows) < len(self.files) or all(row.bytes is not None for row in rows):
            return recorded
        return max(recorded, round(self.total_gb * 1e9))


def nearest_or_all(word: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest known word, or lists all of them."""
    options = sorted(known)
    return did_you_mean(word, options) or ("known: " + ", ".join(options) if options else None)


def read(folder: Path) -> Entry:
    """Read ``folder/model.toml``. Raises ``ModelMissing`` if there is none, ``ModelDamaged`` if it is wrong."""
    path = folder / FILE_NAME
    if not os.path.lexists(path):
        raise ModelMissing(f"{path}: not found", hint="name a model folder, which holds one, or a catalogue name")
    what, hint = "the description of a model", "see models/README.md"
    raw = read_toml(path, what, error=damaged_model, hint=hint)
    top = Fields.of(raw, path, what, error=damaged_model)
    _check_keys(top, "top level", _TOP)
    archives = tuple(map(_archive, top.rows("archives", default=[])))
    return Entry(
        name=_name(top),
        folder=folder,
        summary=_line(top, "summary"),
        task=_line(top, "task"),
        licence=_line(top, "licence") or "unknown",
        licence_note=_line(top, "licence_note"),
        source=_line(top, "source"),
        face_channel_order=_order(top),
        needs=_needs(top),
        defaults=_defaults(top),
        components=_components(top.fields("components", default={})),
        files=_files(top, archives),
        archives=archives,
        training=MappingProxyType(dict(top.fields("training", default={}).table)),
        max_texture_error=top.number("max_texture_error", 0, 1000, default=None),
        total_gb=top.number("total_gb", 0, 1e6, default=None),
        backbone=top.choice("backbone", BACKBONES, default=None),
    )


def _check_keys(fields: Fields, where: str, keys: Iterable[str]) -> None:
    keys = tuple(keys)
    for key in fields.table:
        if key not in keys:
            raise ModelDamaged(f"{fields.path}: {where}: unknown key {shown(key)}", hint=nearest_or_all(key, keys))


def _text(fields: Fields, key: str) -> str:
    value = fields.text(key, default="")
    if any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in value):
        fields.fail(key, "a text without control characters")
    return value


def _line(fields: Fields, key: str) -> str:
    """A text of one line for people, without secrets of addresses."""
    return redacted(" ".join(_text(fields, key).split()))


def _name(fields: Fields) -> str:
    name = _text(fields, "name")
    if not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH:
        fields.fail("name", f"at most {_NAME_LENGTH} letters, digits, '-', '_' and '.'")
    return name


def _order(fields: Fields) -> ChannelOrder | None:
    return fields.choice("face_channel_order", _ORDERS) if _text(fields, "face_channel_order") else None


def _needs(fields: Fields) -> tuple[str, ...]:
    needs = fields.values("needs", str, default=[])
    if "" in needs:
        fields.fail("needs", "a list of catalogue names or model folders")
    return tuple(needs)


def _defaults(top: Fields) -> Mapping[str, Any]:
    fields, options = top.fields("defaults", default={}), model_defaults(AnimateConfig)
    _check_keys(fields, "[defaults]", options)
    for key, value in fields.table.items():
        if isinstance(value, str):
            _text(fields, key)
        try:
            options[key](value, f"{fields.path}: [defaults] {key}")
        except ConfigError as error:
            raise ModelDamaged(error.message, hint=error.hint) from None
    return MappingProxyType(dict(fields.table))


def _components(roles: Fields) -> Mapping[str, Component]:
    found: dict[str, Component] = {}
    for role in roles.table:
        if not _ROLE.fullmatch(role):
            roles.fail(role, "a role in lower case, as 'pose_net'")
        fields = roles.fields(role)
        if not fields.table:
            roles.fail(role, "file, config or both")
        _check_keys(fields, f"[components.{role}]", ("file", "config"))
        found[role] = Component(file=_inside(fields, "file", folder=True), config=_inside(fields, "config"))
    return MappingProxyType(found)


def _files(top: Fields, archives: tuple[Archive, ...]) -> tuple[WeightFile, ...]:
    found = []
    for row in top.rows("files", default=[]):
        _check_keys(row, _row_name(row), ("path", "url", "archive", "bytes", "sha256", "optional"))
        archive = _text(row, "archive") or None
        if archive is not None and archive not in {a.path for a in archives}:
            row.fail("archive", "the path of one of the [[archives]]")
        optional = row.flag("optional", default=False)
        found.append(WeightFile(url=_url(row), archive=archive, optional=optional, **_file(row)))
    for path, count in Counter([f.path for f in (*found, *archives)]).items():
        if count > 1:
            raise ModelDamaged(f"{top.path}: [[files]]: found {shown(path)}, expected each path once")
    return tuple(found)


def _archive(row: Fields) -> Archive:
    _check_keys(row, _row_name(row), ("path", "url", "bytes", "sha256"))
    url = _url(row)
    if url is None:
        row.fail("url", "an address")
    return Archive(url=url, **_file(row))


def _file(row: Fields) -> dict[str, Any]:
    """Path, size and digest of a row of [[files]] or [[archives]]."""
    path = _inside(row, "path")
    if path is None:
        row.fail("path", "a relative path")
    sha256 = _text(row, "sha256").lower() or None
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        row.fail("sha256", "64 hexadecimal digits, or no key if the digest is unknown")
    return {"path": path, "bytes": row.whole("bytes", 0, _BYTES, default=None), "sha256": sha256}


def _row_name(row: Fields) -> str:
    path = row.table.get("path")
    plain = isinstance(path, str) and path.isprintable() and len(path) <= 60
    return f"[[{row.where.partition('[')[0]}]] {path if plain else shown(path)}"


def _inside(fields: Fields, key: str, *, folder: bool = False) -> str | None:
    """A relative path that stays in the folder, checked here for all readers of the entry."""
    if key not in fields.table:
        return None
    value = _text(fields, key)
    path = PurePosixPath(value)
    escapes = path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value or "\0" in value
    if escapes or not value or (str(path) == "." and not folder):
        fields.fail(key, "a path inside the model folder (not absolute, no '..')")
    hidden = any(part.startswith(".") for part in path.parts) or path.name.endswith(".part")
    if hidden or len(value) > _PATH_LENGTH or any(len(os.fsencode(p)) > _NAME_LENGTH for p in path.parts):
        fields.fail(key, "a path of short names, none that starts with '.' or ends with '.part'")
    return str(path)


def _url(row: Fields) -> str | None:
    value = _text(row, "url")
    reason = problem(value) if value else None
    if reason is not None:  # without its secrets
        problem_text = f"{row.where}url is {shown(redacted(value))}, expected an http(s) address: {reason}"
        raise ModelDamaged(f"{row.path}: {problem_text}")
    return value or None
