"""Cost of downloading some models: files, bytes, time and licences. Nothing is fetched to find out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stableanimator_cli.catalogue.hub import cached
from stableanimator_cli.catalogue.schema import Archive, Entry, WeightFile

RATE = 10_000_000
"""Bytes per second of the time that is stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Missing files of ``names`` and of the models they need. ``bytes`` is None if a size is not recorded, ``known``
    what is known then: recorded sizes, and totals that are not exact. ``licences`` by model. ``optional``: files that
    only ``--all`` downloads are among them."""

    names: tuple[str, ...]
    files: int
    bytes: int | None
    known: int
    licences: Mapping[str, str]
    optional: bool = False

    @property
    def command(self) -> str:
        return f"`sa models pull {' '.join(self.names)}{' --all' * self.optional}`"

    @property
    def size(self) -> str:
        """Number of files, their size and the time of a download, for people."""
        count = f"{self.files} file{'s' * (self.files != 1)}"
        if not self.known and self.bytes is None:
            return f"{count} of unknown size"
        size = f"{self.known / 1e9:.1f} GB" if self.known >= 1e9 else f"{self.known / 1e6:.0f} MB"
        least = "" if self.bytes is not None else "at least "
        return f"{count}, {least}{size}, {max(1, round(self.known / RATE / 60))} min at 10 MB/s"

    def to_json(self) -> dict[str, Any]:
        return {"models": list(self.names), "files": self.files, "bytes": self.bytes, "known_bytes": self.known}

    @property
    def terms(self) -> str:
        """The licences, in one line."""
        shown = ", ".join(f"{name} {licence}" for name, licence in self.licences.items())
        return f"licences: {shown} (`sa models show NAME` has the terms)"


def needed(
    names: Sequence[str], owners: Iterable[Entry], locate: Callable[[Entry, str], object], *, optional: bool = False
) -> Needed:
    """The files of ``owners``, entries that ``names`` stand for, that ``locate`` does not find and the hub's cache does
    not have; ``optional`` ones too."""
    rows: list[WeightFile | Archive] = []
    licences: dict[str, str] = {}
    known = 0
    for name, found in {owner.name: owner for owner in owners}.items():
        missing = [row for row in found.files if (optional or not row.optional) and locate(found, row.path) is None]
        packed = {row.archive for row in missing}
        fetched = [row for row in missing if row.archive is None and not (row.url and _is_cached(row, row.url))]
        fetched += [bundle for bundle in found.archives if bundle.path in packed]
        rows += fetched
        known += found.known_bytes(fetched)
        if fetched:
            licences[name] = found.licence
    total = None if any(row.bytes is None for row in rows) else known
    return Needed(names=tuple(names), files=len(rows), bytes=total, known=known, licences=licences, optional=optional)


def _is_cached(row: WeightFile, url: str) -> bool:
    return row.sha256 is not None and next(cached(url, row.bytes), None) is not None
