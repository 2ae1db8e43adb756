"""Plot of ``sa bench frontier``: quality against network calls. matplotlib is optional, and imported here only."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stableanimator_cli.bench.frontier_cases import FIGURES, LOWER_IS_BETTER
from stableanimator_cli.bench.results import Table
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.files import MARK, atomic_write, check_replaceable, translate_os_errors

_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"Creator": MARK, "Producer": MARK, "CreationDate": None}, "png": {"Software": MARK},
}  # fmt: skip
"""Without the date: equal figures are equal files."""
_COLOURS = {"measured": "#0072B2", "search": "#999999"}


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
    """One panel per figure. Points of the search are grey; measured settings have their loss's interval and a name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 3).flat, FIGURES.items(), strict=False):
        arrow = "↓" if name in LOWER_IS_BETTER else "↑"
        axes.set(xlabel="calls of the whole network, by FLOPs", ylabel=f"{title} {arrow}", xscale="log")
        axes.plot(*_points(search, title), "o", ms=3, color=_COLOURS["search"], label="search, few videos")
        axes.plot(*_points(measured, title), "o", ms=4, color=_COLOURS["measured"], label="measured")
        for number, row in enumerate(measured.rows, start=1):
            loss = row[f"{title}: loss"]
            if loss is not None and math.isfinite(loss.low):
                half = [[loss.value - loss.low], [loss.high - loss.value]]
                axes.errorbar(row["full calls"], row[title], yerr=half, color=_COLOURS["measured"], lw=0.8, capsize=2)
            at = (row["full calls"], row[title])
            axes.annotate(str(number), at, xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    names = figure.axes[-1]  # the panel that is left
    names.set_axis_off()
    shown = "\n".join(f"{number} {row['setting']}" for number, row in enumerate(measured.rows, start=1))
    names.text(0, 1, shown, va="top", fontsize=5.5, wrap=True, transform=names.transAxes)
    names.legend(*figure.axes[0].get_legend_handles_labels(), loc="lower left", fontsize=7)
    kind = path.suffix[1:].lower()
    with atomic_write(path, marked=True) as temp, translate_os_errors(path), temp.open("wb") as stream:
        figure.savefig(stream, format=kind, dpi=150, metadata=_METADATA[kind])


def _points(table: Table, title: str) -> tuple[list[float], list[float]]:
    return [row["full calls"] for row in table.rows], [row[title] for row in table.rows]
