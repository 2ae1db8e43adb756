"""Rows of a long measurement, stored as JSON lines below a header of its settings, so that it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import sha256_of
from stableanimator_cli.readers import read_json_lines
from stableanimator_cli.records import ModelFolder

Row = dict[str, Any]
_FORMERLY = {"files": "weights"}
"""Keys of headers by their earlier names."""


class ResumableRows:
    """The rows of a measurement, stored in ``path`` as JSON lines below a ``header`` of its settings.

    ``rows`` are those of earlier runs. Raises ``BadInput`` as ``read_rows``.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = read_rows(path, header)
        self._path, self._header = path, header

    def append(self, row: Row) -> None:
        """Write a row at once; numbers that are not finite become null."""
        with self._path.open("a", encoding="utf-8") as file:
            if not self._path.stat().st_size:
                file.write(json.dumps(self._header) + "\n")
            file.write(json.dumps(_finite(row)) + "\n")

    def extend_to(self, count: int, measure: Callable[[int], Row]) -> Iterator[Row]:
        """The first ``count`` rows in order; ``measure(number)`` computes each one that is not stored."""
        stored = self.rows[:count]
        yield from stored
        for number in range(len(stored), count):
            row = measure(number)
            self.append(row)
            yield row


def read_rows(path: Path, header: Mapping[str, Any]) -> list[Row]:
    """The stored rows, without the header. An incomplete last line is removed, from the file too.

    Raises ``BadInput`` if a line is not JSON, or if the header has other settings.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
        path.write_bytes(b"".join(lines))
    what, hint = "rows as this measurement writes them", "name another folder"
    rows = [row for _, row in read_json_lines(path, what, nan=True, hint=hint)]
    header = json.loads(json.dumps(header))  # as it is stored: tuples are lists
    stored = rows[0] if rows and isinstance(rows[0], dict) else {}
    stored = {_FORMERLY.get(name, name): value for name, value in stored.items()}
    if rows and stored != header:
        changed = ", ".join(name for name in header if stored.get(name) != header[name])
        raise BadInput(path, f"rows of other settings ({changed})", "the same", hint=hint)
    return rows[1:]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def short_digests(model: ModelFolder, roles: Iterable[str]) -> dict[str, str]:
    """The start of the sha256 of each network, for a header."""
    return {role: sha256_of(model.files[role])[:12] for role in roles}
