"""All printed output: data on stdout, messages on stderr. The console is the ``Reporter`` of all stages.

Each verb calls ``configure`` once; ``get()`` returns the console. Rich and tqdm are imported when something is drawn,
not before: completion starts ``sa`` at each TAB.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from stableanimator_cli.cli import streams
from stableanimator_cli.errors import QUOTED, SaError, json_line, plain
from stableanimator_cli.progress import NullProgress, Progress

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

ProgressKind = Literal["bar", "json", "none"]

JSON_INTERVAL = 0.25  # seconds between two lines of --progress json
_UNWRAPPED = 10_000  # columns, more than any table has
_GAP = 2  # columns between two cells of a table
LINES_INTERVAL = 10.0  # seconds between two lines where stderr is a file


class Console:
    """Output of a verb. ``json``: stdout holds one JSON object and nothing else; ``quiet``: no messages.

    With ``progress`` ``json``, stderr holds one JSON object per line and nothing else, also with ``quiet``: progress,
    ``{"info": text}``, ``{"warning": text}``, tables, and the error if the verb fails.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, progress: ProgressKind = "bar") -> None:
        self.json = json
        self.quiet = quiet
        self.kind: ProgressKind = "none" if quiet and progress == "bar" else progress

    def info(self, text: str) -> None:
        """Print a message on stderr, unless ``--quiet``."""
        if not self.quiet:
            self._message("info", text)

    def warning(self, text: str) -> None:
        """Print a warning on stderr, with ``--quiet`` too."""
        self._message("warning", text)

    def error(self, error: SaError) -> None:
        """Print the error that ends the verb on stderr: its line and its hint."""
        hint = "\n      ".join(map(plain, error.hint.split("\n"))) if error.hint else ""
        text = f"sa: {plain(error.message)}\n" + (f"hint: {hint}\n" if hint else "")
        streams.write_stderr(error.to_json() + "\n" if self.kind == "json" else text)

    def _message(self, level: Literal["info", "warning"], text: str) -> None:
        if self.kind == "json":
            streams.write_stderr(json_line({level: text}) + "\n")
        else:
            _print(text if level == "info" else f"warning: {text}")

    def result(self, data: Mapping[str, Any], text: str) -> None:
        """Write the verb's result on stdout: ``data`` as one line of JSON with ``--json``, else ``text``.

        NaN and infinity become null; paths and fractions become text.
        """
        streams.write((json_line(_plain(data)) if self.json else text) + "\n")

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, data: bool = False
    ) -> None:
        """Print a table on stderr, or on stdout if it is the verb's ``data`` (not with ``--json``, whose ``result`` has
        the same facts). In files and pipes, lines are not wrapped. A terminal too narrow for the table gets one line
        per cell."""
        if self.json if data else self.quiet:
            return
        if not data and self.kind == "json":
            table = {"table": title, "columns": list(columns), "rows": [[str(cell) for cell in row] for row in rows]}
            streams.write_stderr(json_line(table) + "\n")
            return
        from rich.console import Console as RichConsole
        from rich.table import Table

        stream = sys.stdout if data else sys.stderr
        width = None if stream.isatty() else _UNWRAPPED
        texts = [[str(cell) for cell in row] for row in rows]
        out = RichConsole(file=stream, width=width, markup=False, emoji=False, highlight=False)
        widths = _column_widths(out, columns, texts)
        try:
            if widths is None:
                out.print(*([title] if title else []), *_lines(columns, texts), sep="\n")
            else:
                table = Table(title=title, title_justify="left", box=None, pad_edge=False)
                for column, side in zip(columns, widths, strict=True):
                    table.add_column(column, overflow="fold", width=side)
                for row in texts:
                    table.add_row(*row)
                out.print(table)
            stream.flush()
        except OSError as error:
            if data:
                raise streams.failure(error) from error

    def progress(self, total: int | None, desc: str, unit: str = "frame", *, initial: int = 0) -> Progress:
        """Show progress of long work: ``with console.progress(len(frames), "decode") as bar: bar.update()``.

        ``total`` None: unknown. ``update(n, **fields)`` adds ``n`` and shows ``fields``. A terminal gets a bar, a file
        a line every ten seconds. ``--progress json`` prints at most four objects per second:
        ``{"progress": desc, "done", "total", "unit", "rate", "seconds_left", **fields}``.
        """
        if self.kind == "none":
            return NullProgress()
        if self.kind == "json":
            return _JsonLines(total, desc, unit, initial)
        return _Bar(total, desc, unit, initial) if sys.stderr.isatty() else _Lines(total, desc, unit, initial)


def _column_widths(console: RichConsole, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int] | None:
    """Widths of the columns: the first one's is that of its longest cell, others share the rest, and are as wide as
    their longest word or more. None if the terminal is too narrow, or some row would be taller than one line per cell.
    """
    from rich.cells import cell_len
    from rich.text import Text

    cells = list(zip(columns, *rows, strict=True))
    full = [max(cell_len(line) for cell in column for line in (cell.splitlines() or [""])) for column in cells]
    words = [max(cell_len(word) for cell in column for word in (cell.split() or [""])) for column in cells]
    widths = [full[0], *words[1:]]
    spare = console.width - sum(widths) - _GAP * (len(columns) - 1)
    if spare < 0:
        return None
    wanting = sorted(range(len(columns)), key=lambda index: full[index] - widths[index])
    for position, index in enumerate(wanting):  # short texts first: the longest has what remains
        added = min(full[index] - widths[index], spare // (len(wanting) - position))
        widths[index] += added
        spare -= added
    heights = (len(Text(cell).wrap(console, side)) for row in rows for cell, side in zip(row, widths, strict=True))
    return widths if max(heights, default=1) <= len(columns) else None


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[RenderableType]:
    """The rows of a table with one line per cell, the first cell as the heading of its row."""
    from rich.padding import Padding

    for first, *others in rows:
        yield first
        for column, cell in zip(columns[1:], others, strict=True):
            yield Padding(f"{column}: {cell}", (0, 0, 0, 2), expand=False)


_SHOW_WARNING = warnings.showwarning
_current = Console()


def configure(*, json: bool = False, quiet: bool = False, progress: ProgressKind = "bar") -> Console:
    """Set the console of this process from ``--json``, ``--quiet`` and ``--progress``."""
    global _current
    _current = Console(json=json, quiet=quiet, progress=progress)
    if progress == "json":
        warnings.showwarning = _show_warning
    elif warnings.showwarning is _show_warning:
        warnings.showwarning = _SHOW_WARNING
    return _current


def configured_for(words: Sequence[str]) -> Console:
    """The console of this process; if the command line did not parse, one with the output that ``words`` request."""
    json = _current.json or "--json" in words
    pairs = itertools.pairwise(words)
    stream = _current.kind == "json" or "--progress=json" in words or ("--progress", "json") in pairs
    return Console(json=json, quiet=_current.quiet, progress="json" if stream else _current.kind)


def _show_warning(message: Warning | str, *_: Any) -> None:
    """``warnings.showwarning`` with ``--progress json``."""
    _current.warning(str(message))


def get() -> Console:
    """The console of this process."""
    return _current


def _print(text: str) -> None:
    """Print on stderr without breaking a bar, which exists only if tqdm is loaded."""
    text = "\n".join(plain(line, 10 * QUOTED) for line in text.split("\n"))
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None and sys.stderr.isatty():
        tqdm.tqdm.write(text, file=sys.stderr)
    else:
        streams.write_stderr(text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy, which need not be imported
        return _plain(value.tolist())
    return str(value)


def _columns() -> int | None:
    """Width that the terminal of stderr reports."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return None


class _Bar(NullProgress):
    """tqdm on a terminal: task, progress, rate and time left."""

    def __init__(self, total: int | None, desc: str, unit: str, initial: int) -> None:
        from tqdm import tqdm

        # a terminal that was given no size (docker -t, expect) reports 0 columns, on which tqdm draws nothing
        unsized = _columns() == 0
        self.bar = tqdm(
            total=total, initial=initial, desc=desc, unit=f" {unit}", file=sys.stderr, leave=True,
            dynamic_ncols=not unsized, ncols=79 if unsized else None, nrows=20 if unsized else None,
        )  # fmt: skip

    def update(self, n: int = 1, **fields: Any) -> None:
        if fields:
            self.bar.set_postfix({name: _short(value) for name, value in fields.items()}, refresh=False)
        self.bar.update(n)

    def __exit__(self, *raised: object) -> None:
        self.bar.close()


class _Lines(NullProgress):
    """One line every ten seconds and at the end, for log files."""

    interval = LINES_INTERVAL

    def __init__(self, total: int | None, desc: str, unit: str, initial: int) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.done = self.initial = initial
        self.shown: int | None = None
        self.fields: dict[str, Any] = {}
        self.started = self.last = time.monotonic()

    def update(self, n: int = 1, **fields: Any) -> None:
        self.done += n
        self.fields |= fields
        now = time.monotonic()
        if now - self.last >= self.interval:
            self.last = now
            self._show()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown != self.done and (self.done > self.initial or error is None):
            self._show()

    def _show(self) -> None:
        self.shown = self.done
        self._write()

    def _rate(self) -> float | None:
        seconds = time.monotonic() - self.started
        done = self.done - self.initial
        return done / seconds if done and seconds > 0 else None

    def _seconds_left(self) -> float | None:
        rate = self._rate()
        return None if rate is None or self.total is None else max(0, self.total - self.done) / rate

    def _write(self) -> None:
        rate, left = self._rate(), self._seconds_left()
        parts = [f"{self.desc}: {self.done}" + ("" if self.total is None else f"/{self.total}") + f" {self.unit}"]
        if rate is not None:
            parts.append(f"{rate:.3g} {self.unit}/s")
        if left:
            parts.append(f"{_clock(left)} left")
        parts += [f"{name} {_short(value)}" for name, value in self.fields.items()]
        streams.write_stderr(plain(", ".join(parts)) + "\n")


class _JsonLines(_Lines):
    """One JSON object per line on stderr, for programs that draw their own bar."""

    interval = JSON_INTERVAL

    def _write(self) -> None:
        rate, left = self._rate(), self._seconds_left()
        line = {
            "progress": self.desc,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "rate": None if rate is None else round(rate, 4),
            "seconds_left": None if left is None else round(left, 1),
        }
        streams.write_stderr(json_line(_plain(line | self.fields)) + "\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
