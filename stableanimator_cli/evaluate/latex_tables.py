"""Tables 1 to 6 as LaTeX: measured rows in a block of their own beside the published ones, with the paper's digits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from stableanimator_cli.evaluate.latex import Block, Cell, LatexTable
from stableanimator_cli.evaluate.scores import Row
from stableanimator_cli.evaluate.tables import (
    ABLATION_COLUMNS,
    ABLATIONS,
    COLUMNS,
    METRICS,
    OWN_TITLES,
    PUBLISHED,
    PUBLISHED_COLUMN,
    TABLE1,
    Measured,
    TableRow,
    memory,
    metric_of,
    videos_text,
)
from stableanimator_cli.metrics.result import METRICS as SPECS
from stableanimator_cli.metrics.result import Better

DIGITS: Mapping[str, int] = {"L1": 2, "PSNR": 2, "PSNR*": 2, "SSIM": 3, "LPIPS": 3, "CSIM": 3, "FVD": 2}
_BETTER: Mapping[str, Better] = {"L1": "lower", "LPIPS": "lower", "FVD": "lower"}
Intervals = Mapping[str, tuple[float, float]]


def table1_latex(bench: str, measured: Sequence[TableRow], caption: str) -> LatexTable:
    """Table 1, our rows last. ``bench`` selects the published column; other data are shown beside both."""
    selected = (PUBLISHED_COLUMN[bench],) if bench in PUBLISHED_COLUMN else (0, 1)
    data = {"tiktok": "TikTok", "unseen100": "Unseen100"}.get(bench, "TikTok / Unseen100")
    published = [
        (f"{name} {PUBLISHED}", (*_published(COLUMNS, [columns[k] for k in selected]), columns[2]))  # type: ignore[misc]
        for name, columns in TABLE1.items()
    ]
    marks = _Marks()
    rows = [
        (
            row.name,
            (*(_measured(row.rows, column, None, marks) for column in COLUMNS), memory(row.memory)),
        )
        for row in [*measured[1:], *measured[:1]]
    ]
    count = max((len(row.videos) for row in measured), default=0)
    blocks = [Block(rows=tuple(published), heading=f"published {PUBLISHED}: {data}")]
    if rows:
        blocks.append(Block(rows=tuple(rows), heading=f"measured on other data: {videos_text(count)}"))
    return LatexTable(
        caption=_unnumbered(caption), columns=(*_columns(COLUMNS), ("Mem", "lower")), blocks=tuple(blocks),
        notes=tuple(marks.notes),
    )  # fmt: skip


def systems_latex(measured: Sequence[TableRow], metrics: Sequence[str]) -> list[LatexTable]:
    """Measured systems, ours first, below the published rows of Table 1, and their ``metrics`` that it lacks."""
    names = {name for column in METRICS.values() for name in column}
    rest = [name for name in metrics if name in measured[0].rows and name not in names]
    tables = [table1_latex("", measured, "Quantitative comparison, below Table 1 of StableAnimator as published.")]
    if rest:
        rows = [(row.name, tuple(_value(row.rows.get(name), measured, name) for name in rest)) for row in measured]
        tables.append(
            LatexTable(
                caption=f"Further metrics of the same systems ({videos_text(len(measured[0].videos))}).",
                columns=(("Model", "neither"), *((SPECS[name].title, SPECS[name].better) for name in rest)),
                blocks=(Block(rows=(*rows[1:], *rows[:1])),),
            )
        )
    return tables


def _value(row: Row | None, measured: Sequence[TableRow], name: str) -> Cell:
    """Three or four digits of the largest value of the column."""
    values = [abs(one.rows[name].shown) for one in measured if name in one.rows]
    largest = max((value for value in values if math.isfinite(value)), default=0.0)
    digits = 3 if largest < 10 else 2 if largest < 100 else 1
    digits = 4 if largest < 0.1 else digits
    return Cell(values=(math.nan if row is None else row.shown,), digits=digits)


def ablation_latex(table: str, measured: Measured, caption: str) -> LatexTable:
    """One of Tables 2 to 5: variants that were measured, and the published rows."""
    marks, rows = _Marks(), []
    for variant, (title, _) in ABLATIONS[table].items():
        if variant in measured:
            metrics, intervals = measured[variant]
            cells = tuple(_measured(metrics, column, intervals, marks) for column in ABLATION_COLUMNS)
            rows.append((OWN_TITLES.get(variant, title), cells))
    published = [(f"{title} {PUBLISHED}", tuple(_published(ABLATION_COLUMNS, [values])))
                 for title, values in ABLATIONS[table].values()]  # fmt: skip
    blocks = (
        Block(rows=tuple(published), heading=f"published {PUBLISHED}: Unseen100"),
        *([Block(rows=tuple(rows), heading="measured on other data")] if rows else []),
    )
    return LatexTable(
        caption=_unnumbered(caption), columns=_columns(ABLATION_COLUMNS), blocks=blocks, notes=tuple(marks.notes)
    )


def _unnumbered(caption: str) -> str:
    """A caption of the terminal without its number: LaTeX numbers tables itself."""
    return re.sub(r"^(Table \d):?\s*", r"As \1 of StableAnimator: ", caption)


def _columns(names: Sequence[str]) -> tuple[tuple[str, Better], ...]:
    higher: Better = "higher"
    first: tuple[str, Better] = ("Model", "neither")
    return first, *((f"{name} (E-4)" if name == "L1" else name, _BETTER.get(name, higher)) for name in names)


def _published(columns: Sequence[str], sets: Sequence[Sequence[float]]) -> list[Cell]:
    return [
        Cell(values=tuple(float(values[index]) for values in sets), digits=DIGITS[column])
        for index, column in enumerate(columns)
    ]


def _measured(rows: Mapping[str, Row], column: str, intervals: Intervals | None, marks: _Marks) -> Cell:
    name = metric_of(column, rows)
    if name is None:
        return Cell(values=(math.nan,), digits=2)
    interval = rows[name].interval if intervals is None else intervals.get(name)
    scale = 1e4 if column == "L1" else 1.0
    return Cell(
        values=(rows[name].shown * scale,),
        digits=DIGITS[column],
        interval=None if interval is None else (interval[0] * scale, interval[1] * scale),
        mark=marks.of(column, name),
    )


class _Marks:
    """Letters of the metrics that stand in a column for its first choice, with their notes."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}
        self.notes: list[str] = []

    def of(self, column: str, metric: str) -> str:
        if metric == METRICS[column][0]:
            return ""
        if metric not in self._letters:
            self._letters[metric] = "abcdefgh"[len(self._letters)]
            self.notes.append(f"{self._letters[metric]}: {metric} in place of {METRICS[column][0]}.")
        return self._letters[metric]
