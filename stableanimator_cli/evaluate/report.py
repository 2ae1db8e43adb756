"""The files of an evaluation: ``scores.json``, ``curves.jsonl``, ``scores.csv``, ``scores.tex``."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stableanimator_cli import __version__
from stableanimator_cli.evaluate.scores import CSV, CURVES, JSON, LATEX, PAGE, Row, Scores, number
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.files import MARK, atomic_write, json_text, remove_temporary_files, translate_os_errors

_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\~{}",
        "^": r"\^{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "↑": r"$\uparrow$",
        "↓": r"$\downarrow$", "→": r"$\rightarrow$", "†": r"$^\dagger$"}  # fmt: skip


TOOL = f"{MARK} {__version__}"
"""The program, as files name it."""


def files_of(output: Path) -> list[Path]:
    """The files of an evaluation, besides those of each video."""
    return [output / name for name in (JSON, CURVES, CSV, LATEX, PAGE)]


def remove_unfinished(output: Path) -> None:
    """Remove temporary files of killed runs from the folder, which must be locked."""
    for folder in (output, output / "videos", output / "pictures", output / "media"):
        remove_temporary_files(folder)


def write(scores: Scores) -> None:
    """Write all files but the page, each atomically."""
    out = scores.output
    write_text(out / CURVES, "".join(
        json.dumps({"tool": TOOL, "name": video.name, "borders": list(video.borders), **video.curves}) + "\n"
        for video in scores.videos
    ))  # fmt: skip
    write_text(out / CSV, to_csv(*_plain(scores)))
    columns, rows = scores.table()
    parts = [to_latex(columns[1:4], [row[1:4] for row in rows], scores.title)]
    parts += [to_latex(columns, rows, title) for title, columns, rows in scores.tables]
    write_text(out / LATEX, "\n".join([f"% {TOOL}", *parts]))
    write_text(out / JSON, json_text(scores.to_json(), indent=1))


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


def to_latex(columns: list[str], rows: list[list[str]], caption: str) -> str:
    """A ``tabular`` in a ``table``; needs the package booktabs."""
    shape = "l" + "r" * (len(columns) - 1)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex(caption)}}}", rf"\begin{{tabular}}{{{shape}}}"]
    lines += [r"\toprule", " & ".join(map(tex, columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(tex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
