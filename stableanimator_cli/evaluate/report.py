"""The files of an evaluation: ``scores.json``, ``curves.jsonl``, ``scores.csv``, ``scores.tex``, ``paper.tex``."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stableanimator_cli import __version__
from stableanimator_cli.evaluate import latex
from stableanimator_cli.evaluate.scores import (
    CSV,
    CURVES,
    JSON,
    LATEX,
    PAGE,
    PAPER,
    T_BOOTSTRAP,
    T_INTERVAL,
    Row,
    Scores,
    Table,
    number,
)
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import MARK, atomic_write, json_text, remove_temporary_files, translate_os_errors
from stableanimator_cli.metrics.bootstrap import MINIMUM

TOOL = f"{MARK} {__version__}"
"""The program, as files name it."""


def files_of(output: Path) -> list[Path]:
    """The files of an evaluation, besides those of each video."""
    return [output / name for name in (JSON, CURVES, CSV, LATEX, PAPER, PAGE)]


def remove_unfinished(output: Path) -> None:
    """Remove temporary files of killed runs from the folder, which must be locked."""
    folders = [output / name for name in ("videos", "pictures", "media", "figures", "animated")]
    inner = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()]
    for folder in (output, *folders, *inner):
        remove_temporary_files(folder)


def write(scores: Scores) -> None:
    """Write all files but the page, each atomically."""
    out = scores.output
    write_text(out / CURVES, "".join(
        json.dumps({"tool": TOOL, "name": video.name, "borders": list(video.borders), **video.curves}) + "\n"
        for video in scores.videos
    ))  # fmt: skip
    write_text(out / CSV, to_csv(*_plain(scores)))
    write_text(out / LATEX, "\n".join([f"% {TOOL}", *_latex_tables(scores)]))
    write_paper(scores, ())
    write_text(out / JSON, json_text(scores.to_json(), indent=1))


def write_paper(scores: Scores, figures: Sequence[str]) -> None:
    """Write ``paper.tex``, which pdflatex turns into a page of the tables and ``figures`` (in LaTeX)."""
    write_text(scores.output / PAPER, latex.document([rf"\input{{{LATEX}}}", *figures, r"\clearpage"], TOOL))


def _latex_tables(scores: Scores) -> Iterator[str]:
    """Every table: comparisons of systems, as papers have them, then the rest, of which the narrow table of the scored
    system is the last. All notes are below the first."""
    columns, rows = scores.table()
    own: Table = (scores.title, columns[:4], [row[:4] for row in rows])
    tables = [table for table in scores.tables if table[1] != ["note"]]
    first = [table for table in tables if table[0] in scores.latex]
    notes = [row[0] for table in scores.tables if table[1] == ["note"] for row in table[2]]
    methods = {row.method for row in scores.rows.values() if row.interval is not None}
    also = "; of Frechet distances with the bootstrap's standard error" if T_BOOTSTRAP in methods else ""
    intervals = [f"95 % intervals: {T_INTERVAL}, from {MINIMUM} videos on{also}."] if methods else []
    rest = [table for table in tables if table not in first]
    for title, columns, rows in [*first, *rest, own] if first else [own, *rest]:
        if columns[:2] == ["metric", ""]:  # the titles of metrics suffice on paper
            columns, rows = columns[1:], [row[1:] for row in rows]
        below = [*(intervals if title in scores.latex or title == own[0] else []), *notes]
        notes = []
        if title not in scores.latex:
            yield latex.to_latex(columns, rows, title, below)
            continue
        head, *rest = scores.latex[title]
        yield replace(head, notes=(*head.notes, *below)).render()
        yield from (table.render() for table in rest)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. It replaces only a file that ``sa`` wrote."""
    with atomic_write(path, marked=True) as temp, translate_os_errors(path):
        temp.write_text(text, encoding="utf-8", errors="backslashreplace")


def _plain(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Columns and lines of ``scores.csv``: one line per metric, then one per video and metric, at full precision; the
    same for every further section; and ``Scores.lines``. ``data`` names videos other than those with ground truth."""
    columns = ["video", "metric", "value", "low", "high", "n", "system", "data", "tool"]
    system = str(scores.about.get("model", ""))
    has_target = any(video.target is not None for video in scores.videos)
    rows = [[*line, system, ""] for line in _of_rows(scores.rows)]
    for video in scores.videos:
        data = "cross-identity" if has_target and video.target is None else ""
        rows += [[*line, system, data] for line in _of_video(video)]
    for section in scores.sections:
        rows += [[*line, section.system, section.data] for line in _of_rows(section.rows)]
        rows += [[*line, section.system, section.data] for video in section.videos for line in _of_video(video)]
    return columns, [[*row, TOOL] for row in [*rows, *map(list, scores.lines)]]


def _of_rows(rows: Mapping[str, Row]) -> Iterator[list[str]]:
    for name, row in rows.items():
        low, high = ("", "") if row.interval is None else (repr(row.interval[0]), repr(row.interval[1]))
        yield ["", name, _exact(row.shown), low, high, str(row.count)]


def _of_video(video: VideoScore) -> Iterator[list[str]]:
    for name, value in video.values.items():
        yield [video.name, name, _exact(value), "", "", str(video.counts[name])]


def _exact(value: float) -> str:
    return "" if math.isnan(value) else repr(value) if math.isfinite(value) else number(value)


def to_csv(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """RFC 4180 with plain line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
