"""Measurements that take hours: a resumable file of JSON lines below a header, and what their commands
share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.readers import read_json_lines


def read_rows(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows that are there already, without the header. A last line that was cut is dropped, from the file too.

    Raises ``BadInput`` where a line is no JSON, or the header says other settings.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
        path.write_bytes(b"".join(lines))
    what, hint = "rows as this measurement writes them", "name another folder"
    rows = [row for _, row in read_json_lines(path, what, nan=True, hint=hint)]
    if rows and rows[0] != header:
        found = rows[0] if isinstance(rows[0], dict) else {}
        changed = ", ".join(name for name in header if found.get(name) != header[name])
        raise BadInput(path, f"rows of other settings ({changed})", "the same", hint="name another folder")
    return rows[1:]


def as_typed(module: str, words: Sequence[str]) -> str:
    """The command of a page, where folders go by their last name alone, without page and time allowed."""
    words_out, left = [], iter(words)
    for word in left:
        if word in ("--page", "--minutes"):
            next(left, None)
        else:
            words_out.append(Path(word).name if "/" in word else word)
    return shlex.join(["python", "-m", module, *words_out])


def refused(error: SaError) -> int:
    """Print ``error`` and its hint; return the exit code."""
    sys.stderr.write(f"{error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    return error.exit_code
