"""``sa bench card``: every row once, in a process of its own, within a budget of minutes.

Results are stored after each row, so an interrupted run resumes: rows that are there are not repeated. A row that fails
is a row with its reason and not the end.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stableanimator_cli import __version__
from stableanimator_cli.bench.card_page import card_entry, card_tables, update_card_table
from stableanimator_cli.bench.card_rows import CardRow, card_rows, checkout, select_rows
from stableanimator_cli.bench.compare import check_clone
from stableanimator_cli.bench.git import code_version
from stableanimator_cli.bench.results import BenchReport, Table, check_page, page_heading, update_page
from stableanimator_cli.bench.row_process import FAILED, NO_TIME, NOT_RUN, OK, START, Reply, RowProcess
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import BadInput, ConfigError
from stableanimator_cli.files import MARK, atomic_write, check_apart, locked_output
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import read_json

FORMAT = 1
_PASSING = ("date", "load")  # facts of an environment that change between the parts of a run


@dataclass(slots=True, kw_only=True)
class CardResults:
    """Rows by name, in ``path`` after each ``add``. Stored rows must be of these ``settings`` and this environment."""

    path: Path
    command: str
    settings: Mapping[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Reply] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, command: str, settings: Mapping[str, Any], *, restart: bool) -> CardResults:
        """The stored results, or empty ones. Raises ``BadInput`` for a file of another kind or of other settings."""
        found = cls(path=path, command=command, settings=settings)
        if not path.exists():
            return found
        data = read_json(path, "results of `sa bench card`")
        try:
            known = data["format"] == FORMAT and isinstance(data["settings"], dict)
            found.environment, rows = dict(data["environment"]), {row.pop("row"): row for row in data["rows"]}
        except (LookupError, TypeError, ValueError, AttributeError):
            known, rows = False, {}
        if not known:
            raise BadInput(path, "another file", "results of `sa bench card`", hint="choose another -o")
        if restart:
            found.environment = {}
            return found
        found.rows = {name: row for name, row in rows.items() if row.get("status") != NOT_RUN}
        found.settings = _joined(path, data["settings"], settings, any(map(_is_of_clone, found.rows)))
        return found

    def check_environment(self, environment: Mapping[str, Any]) -> None:
        """Raise ``BadInput`` if stored rows are of another machine, version or commit."""
        stored = {key: value for key, value in self.environment.items() if key not in _PASSING}
        now = {key: value for key, value in environment.items() if key not in _PASSING}
        changed = sorted(key for key in stored.keys() | now.keys() if stored.get(key) != now.get(key))
        if self.rows and changed:
            raise BadInput(self.path, f"rows with another {', '.join(changed)}", "the same environment", hint=_ANEW)
        self.environment = dict(environment)

    def add(self, name: str, row: Reply) -> None:
        self.rows[name] = row
        rows = [{"row": key} | value for key, value in self.rows.items()]
        data = {MARK: __version__, "format": FORMAT, "command": self.command, "settings": dict(self.settings)}
        data |= {"environment": self.environment, "rows": rows}
        with atomic_write(self.path) as temp:
            temp.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _is_of_clone(row: str) -> bool:
    return row.startswith("reference/")


def _joined(path: Path, stored: Mapping[str, Any], settings: Mapping[str, Any], clone_measured: bool) -> dict[str, Any]:
    """The settings of stored and new rows. A run without a clone keeps the stored one; another clone is refused."""
    known, given = stored.get("against"), settings["against"]
    if {**stored, "against": None} != {**settings, "against": None}:
        raise BadInput(path, "rows of other settings", "those of this command", hint=_ANEW)
    if given is not None and clone_measured and known != given:
        raise BadInput(path, f"rows of the clone {known or 'of an older version'}", f"those of {given}", hint=_ANEW)
    return {**settings, "against": given or known}


_ANEW = "add --restart to measure again, or choose another -o"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRun:
    """The resolved command: rows to measure and where to write."""

    config: BenchConfig
    device: str
    rows: tuple[CardRow, ...]
    recordings: Path | None
    output: Path
    page: Path

    @classmethod
    def of(cls, config: BenchConfig, output: Path | None, page: Path | None) -> CardRun:
        """Raises ``ConfigError`` for a device without ``--small`` that is no CUDA card, and for an unknown row."""
        plan = DevicePlan.of(config.device_config)
        if plan.device.type != "cuda" and not config.small:
            hint = "sa bench card --small measures small sizes on any device"
            raise ConfigError("--device", plan.device.type, "a CUDA card", hint=hint)
        root = checkout()
        recordings = None if root is None else root / "tests" / "golden" / "reference"
        rows = card_rows(recordings, small=config.small, against=config.against is not None)
        name = "".join(c if c.isalnum() else "-" for c in _card_name(plan)).strip("-").lower()
        folder = Path("cards") if root is None else root / "docs" / "cards"
        output = output or folder / f"{name}.json"
        if output.is_dir():
            raise BadInput(output, "a folder", "a name for a file", hint="name a file inside the folder")
        page = page or output.with_suffix(".md")
        if config.against is not None:
            check_clone(config.against)
            check_apart(output, [config.against])
            check_apart(page, [config.against])
        check_page(output, page)
        return cls(
            config=config, device=str(plan.device), rows=tuple(select_rows(rows, config.rows)), recordings=recordings,
            output=output, page=page,
        )  # fmt: skip

    def table(self) -> Table:
        """The rows and their limits, for ``--plan``."""
        rows = [{"row": row.name, "process": row.worker, "at most, s": row.seconds} for row in self.rows]
        note = f"At most {self.config.value('budget'):g} minutes in all. Writes {self.output} and {self.page}."
        return Table(title=f"{len(rows)} rows", rows=rows, note=note)


def _card_name(plan: DevicePlan) -> str:
    import torch

    return torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else plan.device.type


def process_words(run: CardRun) -> dict[str, tuple[list[str], Path | None]]:
    """The command and the folder of each process."""
    job = {"device": run.device, "small": run.config.small}
    ours = [sys.executable, "-m", "stableanimator_cli.bench.card_worker", json.dumps(job)]
    words: dict[str, tuple[list[str], Path | None]] = {"ours": (ours, None)}
    root = checkout()
    if root is not None and run.recordings is not None and run.recordings.is_dir():
        parity = [sys.executable, "-m", "tests.parity", str(run.recordings), "--serve", "--device", run.device]
        words["parity"] = (parity, root)
    if run.config.against is not None:
        clone, python = run.config.against, run.config.python
        job |= {"clone": str(clone.resolve()), "python": None if python is None else str(python)}
        words["reference"] = ([sys.executable, "-m", "stableanimator_cli.bench.card_reference", json.dumps(job)], None)
    return words


def run_card(
    run: CardRun,
    command: str,
    reporter: Reporter,
    *,
    restart: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> BenchReport:
    """Measure the rows that are not stored; write JSON and page. ``restart`` forgets the selected rows.

    Raises ``BadInput`` if another run writes them, or if the stored rows are of other settings or another environment.
    """
    with locked_output(run.output, "sa bench card"):
        against = run.config.against
        settings = {"device": run.device, "small": run.config.small, "against": against and code_version(against)}
        results = CardResults.open(run.output, command, settings, restart=restart and not run.config.rows)
        if restart:
            for row in run.rows:
                results.rows.pop(row.name, None)
        _measure(run, results, reporter, clock)
        names = list(dict.fromkeys([*results.rows, *(row.name for row in run.rows)]))
        tables = {"card": card_tables(results.rows, names, results.environment)}
        report = BenchReport(command=command, environment=results.environment, tables=tables)
        entry = card_entry(results.rows, results.environment)
        _write_page(run.page, report, entry)
    if entry is not None:
        reporter.info(f"for the table of cards (--accept adds it to your own):\n{entry}")
        if run.config.accept:
            reporter.info(f"added to {update_card_table(entry)}")
    failed = [name for name, row in results.rows.items() if row["status"] == FAILED]
    if failed:
        reporter.warning(f"{len(failed)} of {len(results.rows)} rows failed: {', '.join(failed[:5])}")
    return report


def _measure(run: CardRun, results: CardResults, reporter: Reporter, clock: Callable[[], float]) -> None:
    end = clock() + 60 * run.config.value("budget")
    words = process_words(run)
    processes: dict[str, RowProcess] = {}
    with ExitStack() as stack, reporter.progress(len(run.rows), "card", "row") as bar:

        def measure_row(row: CardRow, seconds: float, left: float = math.inf) -> Reply:
            if row.worker not in words:
                return {"status": NOT_RUN, "reason": "needs a checkout: the wheel has no recordings"}
            if not run.config.small:
                for name in [name for name in processes if name != row.worker]:
                    processes.pop(name).close()  # one process on the card at a time
            if row.worker not in processes:
                processes[row.worker] = stack.enter_context(RowProcess(*words[row.worker]))
            return processes[row.worker].request(row.name, seconds, left)

        hello = measure_row(CardRow("hello", "ours", START), START) if words else {}
        if hello.get("status") != OK:
            raise BadInput.because(run.output, f"no row can run: {hello.get('reason')}", hint="sa doctor")
        results.check_environment(hello["environment"])
        for row in run.rows:
            if row.name not in results.rows:
                started = clock()
                left = end - started
                if left < 1:
                    reply = {"status": NOT_RUN, "reason": NO_TIME}
                else:
                    reply = measure_row(row, min(row.seconds, left), left)
                results.add(row.name, reply | {"took": round(clock() - started, 2)})
            bar.update(row=row.name)


def _write_page(path: Path, report: BenchReport, entry: str | None) -> None:
    heading = page_heading(f"{report.environment['device']}", report.command, report.environment)
    parts = [heading, *(table.markdown() for table in report.tables["card"])]
    if entry is not None:
        parts.append(f"For the table of cards:\n\n```toml\n{entry}\n```")
    update_page(path, {"card": "\n\n".join(parts)})
