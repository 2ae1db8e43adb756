"""Results of a bench: tables, JSON, and generated sections of a Markdown page."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stableanimator_cli import __version__
from stableanimator_cli.bench.harness import Interval
from stableanimator_cli.distributions import version_of
from stableanimator_cli.errors import BadInput, ConfigError, command
from stableanimator_cli.files import MARK, atomic_write, check_apart, check_replaceable, translate_os_errors

FORMAT = 1  # of the JSON
_LIBRARIES = ("torch", "diffusers", "numpy", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of column name -> value: a number whose unit is in the name, text, or an ``Interval``. ``note`` describes
    how they were measured."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def cells(self) -> list[list[str]]:
        return [[format_cell(row.get(name)) for name in self.columns] for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        rows = [{name: _json_value(value) for name, value in row.items()} for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}

    def markdown(self) -> str:
        if not self.rows:
            return f"**{self.title}.** {self.note}".rstrip()
        lines = [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in self.cells()]
        return "\n".join([f"**{self.title}.** {self.note}".rstrip(), "", *lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Tables by bench, with the machine and the command."""

    command: str
    environment: Mapping[str, Any]
    tables: Mapping[str, Sequence[Table]]

    def all_tables(self) -> list[Table]:
        return [table for found in self.tables.values() for table in found]

    def to_json(self) -> dict[str, Any]:
        tables = {name: [table.to_json() for table in found] for name, found in self.tables.items()}
        facts = {MARK: __version__, "format": FORMAT, "command": self.command}
        return facts | {"environment": dict(self.environment), "benches": tables}

    def write(self, path: Path) -> None:
        """Write it as JSON. Raises ``BadInput`` for a file in its place that ``sa`` did not write."""
        with atomic_write(path, marked=True) as temp:
            temp.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def write_page(self, path: Path) -> None:
        """Write each bench's tables between its markers; see ``update_page``."""
        headings = {name: page_heading(f"`sa bench {name}`", self.command, self.environment) for name in self.tables}
        update_page(
            path,
            {
                name: "\n\n".join([headings[name], *(t.markdown() for t in tables)])
                for name, tables in self.tables.items()
            },
        )


def page_heading(title: str, command: str, environment: Mapping[str, Any]) -> str:
    """Heading of a generated section, with its command and machine."""
    words = [str(environment[key]) for key in ("date", "device", "torch")]
    return f"### {title}\n\nMade by `{command}` on {words[0]}: {words[1]}, torch {words[2]}."


def update_page(path: Path, parts: Mapping[str, str]) -> None:
    """Replace the text between the markers of each name in a Markdown page; append it if there are none.

    Raises ``BadInput`` for a start marker without an end.
    """
    page = _read_page(path)
    for name, text in parts.items():
        page = _replace_section(path, page, name, text)
    with atomic_write(path) as temp, translate_os_errors(path):
        temp.write_text(page, encoding="utf-8")


def check_outputs(output: Path | None, page: Path | None, inputs: Sequence[Path]) -> None:
    """Raise an error for JSON or a page that could not be written at the end. Call it before any work.

    ``BadInput`` for a file that is not ours, a page that is not text, and an output that is one of ``inputs``;
    ``ConfigError`` for a folder that does not exist.
    """
    for flag, path in (("--output", output), ("--page", page)):
        if path is not None:
            check_apart(path, inputs)
            if not path.parent.is_dir():
                hint = command("mkdir", "-p", path.parent)
                raise ConfigError(flag, str(path), "a file in a folder that exists", hint=hint)
    if output is not None:
        check_replaceable(output)
    if page is not None:
        check_page(output, page)


def check_page(output: Path | None, page: Path) -> None:
    """Raise ``ConfigError`` if the page is ``output``, and ``BadInput`` if it does not read as text."""
    if output is not None and page.resolve() == output.resolve():
        hint = "name OUT.json, or another page with --page"
        raise ConfigError("--output", str(output), "another file than the page, which is Markdown", hint=hint)
    _read_page(page)


def _read_page(path: Path) -> str:
    if path.is_dir():
        raise BadInput(path, "a folder", "a name for a file", hint="name a file inside the folder")
    try:
        return path.read_text(encoding="utf-8") if path.exists() else "# Measured\n"
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, "a file that is not text", "a Markdown page", hint="name another page") from error


def _replace_section(path: Path, page: str, name: str, text: str) -> str:
    start, end = f"<!-- bench {name}: generated -->", f"<!-- bench {name}: end -->"
    block = f"{start}\n{text}\n{end}"
    if start not in page:
        return f"{page.rstrip()}\n\n{block}\n"
    if page.find(end) < page.find(start):
        raise BadInput(path, f"{start} without its end", end, hint="put the end back, or take the start away")
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: block, page, count=1, flags=re.S)


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, threads and load, without names and paths of the computer."""
    stamp: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "sa": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": hardware_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
    return stamp | {name: version_of(name) for name in _LIBRARIES}


def hardware_name(device: torch.device) -> str:
    """Name of a GPU; for a CPU its model, if known, and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = device.type.upper()
    if device.type == "cpu" and Path("/proc/cpuinfo").is_file():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
        model = found[1].strip() if found else model
    return f"{model}, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else model


def format_cell(value: Any) -> str:
    """Text of a cell: four significant digits, thousands separated in integers, empty for None and NaN."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isinf(value):
            return "equal" if value > 0 else "-inf"  # decibels between equal pictures
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, Interval):
        return {name: _json_value(part) for name, part in value.to_json().items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
