"""Plot of ``sa bench frontier``: quality against network calls. matplotlib is optional, and imported here only."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stableanimator_cli.bench.frontier_cases import FIGURES
from stableanimator_cli.bench.results import Table
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.files import MARK, atomic_write, check_replaceable, translate_os_errors

_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": MARK, "Producer": MARK, "CreationDate": None}, "png": {"Software": MARK},
}  # fmt: skip
"""Without the date: equal figures are equal files."""
_COLUMNS = 3
_TICKS = (4, 6, 8, 12, 20, 50)


def check(path: Path) -> None:
    """Raise ``ConfigError`` for another kind of file and without matplotlib, ``BadInput`` for a file that is not
    ours."""
    if path.suffix[1:].lower() not in _METADATA:
        raise ConfigError("--plot", path.name, "a name that ends in .pdf or .png")
    if find_spec("matplotlib") is None:
        hint = "pip install 'stableanimator-cli[figures]', or leave --plot out"
        raise ConfigError("--plot", "no matplotlib", "the package that draws figures", hint=hint)
    check_replaceable(path)


def write(path: Path, measured: Table, search: Table) -> None:
    """One panel per figure: what it loses against the first measured setting. Points of the search are grey."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    rows, columns = math.ceil(len(FIGURES) / _COLUMNS), _COLUMNS
    figure = Figure(figsize=(9.0, 2.6 * rows + 0.9), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [0.3])
    panels = [figure.add_subplot(grid[index // columns, index % columns]) for index in range(len(FIGURES))]
    for axes, title in zip(panels, FIGURES.values(), strict=True):
        axes.set_xscale("log")
        axes.set_xlabel("calls of the whole network, by FLOPs", fontsize=8)
        axes.set_ylabel(f"loss: {title}", fontsize=8)
        axes.set_xticks(_TICKS)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axhline(0, color="black", lw=0.6)
        for table, name, size in ((search, "search, few videos", 3), (measured, "measured", 4)):
            colour = "#999999" if table is search else "#0072B2"
            axes.plot(*_points(table, title), "o", ms=size, color=colour, label=name)
        for number, row in enumerate(measured.rows, start=1):
            loss = row[f"{title}: loss"]
            if loss is not None and math.isfinite(loss.low):
                half = [[loss.value - loss.low], [loss.high - loss.value]]
                axes.errorbar(row["full calls"], loss.value, yerr=half, color="#0072B2", lw=0.8, capsize=2)
            if loss is not None:
                at = (row["full calls"], loss.value)
                axes.annotate(str(number), at, xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    names = figure.add_subplot(grid[rows, :])
    names.set_axis_off()
    shown = "\n".join(f"{number} {row['setting']}" for number, row in enumerate(measured.rows, start=1))
    names.text(0, 1, shown, va="top", fontsize=6, transform=names.transAxes)
    names.legend(*panels[0].get_legend_handles_labels(), loc="upper right", fontsize=7)
    kind = path.suffix[1:].lower()
    with atomic_write(path, marked=True) as temp, translate_os_errors(path), temp.open("wb") as stream:
        figure.savefig(stream, format=kind, dpi=150, metadata=_METADATA[kind])


def _points(table: Table, title: str) -> tuple[list[float], list[float]]:
    rows = [row for row in table.rows if row[f"{title}: loss"] is not None]
    return [row["full calls"] for row in rows], [row[f"{title}: loss"].value for row in rows]
