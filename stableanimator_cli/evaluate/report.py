"""The files of an evaluation: ``scores.json``, ``curves.jsonl``, ``scores.csv``, ``scores.tex``."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

from stableanimator_cli.evaluate.scores import CSV, CURVES, JSON, LATEX, Scores, number
from stableanimator_cli.files import atomic_write, json_text, translate_os_errors

_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\~{}",
        "^": r"\^{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "↑": r"$\uparrow$",
        "↓": r"$\downarrow$", "†": r"$^\dagger$"}  # fmt: skip


def write(scores: Scores) -> None:
    """Write all but the page. Each file appears whole or not at all."""
    out = scores.output
    write_text(out / CURVES, "".join(
        json.dumps({"name": video.name, "borders": list(video.borders), **video.curves}) + "\n"
        for video in scores.videos
    ))  # fmt: skip
    write_text(out / CSV, to_csv(*_plain(scores)))
    columns, rows = scores.table()
    parts = [to_latex(columns[1:4], [row[1:4] for row in rows], scores.title)]
    parts += [to_latex(columns, rows, title) for title, columns, rows in scores.tables]
    write_text(out / LATEX, "\n".join(parts))
    write_text(out / JSON, json_text(scores.to_json(), indent=1))


def write_text(path: Path, text: str) -> None:
    """A text file that appears whole or not at all."""
    with atomic_write(path) as part, translate_os_errors(path):
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def _plain(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """A line a metric, then a line a video and metric, at full precision."""
    columns = ["video", "metric", "value", "low", "high", "n"]
    rows = []
    for name, row in scores.rows.items():
        low, high = ("", "") if row.interval is None else (repr(row.interval[0]), repr(row.interval[1]))
        rows.append(["", name, _exact(row.shown), low, high, str(row.count)])
    for video in scores.videos:
        for name, value in video.values.items():
            rows.append([video.name, name, _exact(value), "", "", str(video.counts[name])])
    return columns, rows


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
