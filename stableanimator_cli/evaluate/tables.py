"""Published tables of Tu et al., "StableAnimator: High-Quality Identity-Preserving Human Image Animation" (2024), as
printed, with measured rows in their columns. Published numbers are always marked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stableanimator_cli.evaluate.scores import Row, Table, number

PUBLISHED = "†"
PUBLISHED_COLUMN: Mapping[str, int] = {"tiktok": 0, "unseen100": 1}
"""Published column beside which the rows of a bench are shown; for other benches both are."""
MEMORY = "memory, 16 frames"
_NAMED = 12  # videos that a caption names
COLUMNS = ("L1", "PSNR", "PSNR*", "SSIM", "LPIPS", "CSIM", "FVD")
METRICS: Mapping[str, tuple[str, ...]] = {
    "L1": ("l1_disco",),
    "PSNR": ("psnr_disco_overflow",),
    "PSNR*": ("psnr_disco",),
    "SSIM": ("ssim",),
    "LPIPS": ("lpips_vgg_disco", "lpips_puppet", "lpips_alex"),
    "CSIM": ("csim_ref",),
    "FVD": ("fvd_disco", "fvd_puppet", "fvd_stylegan_v"),
}
"""Our metrics that may stand in a column: the first that was computed."""

_ = math.nan
TABLE1: Mapping[str, tuple[tuple[float, ...], tuple[float, ...], str]] = {
    "MRAA": ((3.21, _, 18.14, 0.672, 0.296, 0.248, 284.82), (3.62, 26.62, 17.28, 0.692, 0.313, 0.221, 540.35), "5.4G"),
    "DisCo": (
        (3.78, 29.03, 16.55, 0.668, 0.292, 0.315, 292.80), (3.74, 25.23, 15.21, 0.702, 0.302, 0.267, 544.64), "18.7G",
    ),
    "MagicAnimate": (
        (3.13, 29.16, _, 0.714, 0.239, 0.462, 179.07), (3.23, 27.03, 17.11, 0.746, 0.264, 0.338, 398.94), "20.84G",
    ),
    "AnimateAnyone": (
        (_, 29.56, _, 0.718, 0.285, 0.457, 171.90), (3.15, 27.14, 17.14, 0.759, 0.251, 0.316, 383.45), "11.18G",
    ),
    "Champ": (
        (2.94, 29.91, _, 0.802, 0.234, 0.350, 160.82), (3.02, 27.78, 17.35, 0.772, 0.234, 0.304, 373.77), "13.2G",
    ),
    "Unianimate": (
        (2.66, 30.77, 20.58, 0.811, 0.231, 0.479, 148.06), (2.82, 27.46, 18.64, 0.778, 0.253, 0.347, 394.32), "6.11G",
    ),
    "MimicMotion": (
        (5.85, _, 14.44, 0.601, 0.414, 0.262, 326.57), (3.55, 22.94, 13.97, 0.733, 0.370, 0.242, 604.13), "8.6G",
    ),
    "ControlNeXt": (
        (6.20, _, 13.83, 0.615, 0.416, 0.360, 326.57), (2.90, 25.28, 14.84, 0.743, 0.262, 0.264, 389.45), "12.23G",
    ),
    "StableAnimator": (
        (2.87, 30.81, 20.66, 0.801, 0.232, 0.831, 140.62), (2.71, 28.85, 18.85, 0.784, 0.223, 0.805, 349.94), "12.50G",
    ),
}  # fmt: skip
"""System -> (TikTok, Unseen100, memory for 16 frames of 576x1024); L1 in units of 1e-4, NaN where none is reported."""

_OURS = (2.71, 28.85, 0.784, 0.223, 0.805, 349.94)
ABLATIONS: Mapping[str, Mapping[str, tuple[str, tuple[float, ...]]]] = {
    "table2": {
        "no-face-masks": ("w/o Face Masks", (3.01, 24.10, 0.665, 0.281, 0.639, 382.25)),
        "no-face-encoder": ("w/o Face Encoder", (3.08, 22.25, 0.674, 0.282, 0.594, 385.91)),
        "addition": ("w/o Alignment", (3.11, 23.45, 0.713, 0.276, 0.716, 412.52)),
        "no-optimization": ("w/o Optimization", (2.86, 27.17, 0.769, 0.245, 0.782, 365.43)),
        "ours": ("Ours", _OURS),
    },
    "table3": {
        "no-face": ("w/o Face", (2.83, 26.75, 0.741, 0.264, 0.324, 371.38)),
        "ip-adapter": ("IP-Adapter", (3.88, 18.86, 0.672, 0.287, 0.511, 484.77)),
        "face-paste": ("FaceFusion", (3.31, 23.05, 0.734, 0.265, 0.798, 405.16)),
        "ours": ("Ours", _OURS),
    },
    "table4": {
        "addition": ("Addition", (3.11, 23.45, 0.713, 0.276, 0.716, 412.52)),
        "norm": ("Norm", (2.73, 26.67, 0.758, 0.257, 0.776, 382.49)),
        "ours": ("Ours", _OURS),
    },
    "table5": {
        "magic-ip": ("Magic+IP", (3.85, 23.14, 0.689, 0.286, 0.541, 836.33)),
        "magic-face-paste": ("Magic+FaceFusion", (3.31, 26.42, 0.725, 0.268, 0.796, 412.40)),
        "magic-opt": ("Magic+Opt", (3.02, 27.56, 0.762, 0.258, 0.480, 381.61)),
        "magic-ip-opt": ("Magic+IP+Opt", (3.61, 26.12, 0.714, 0.279, 0.624, 754.34)),
        "magic-fe-id": ("Magic+FE+ID", (2.85, 27.89, 0.767, 0.248, 0.775, 376.43)),
        "magic-fe-id-opt": ("Magic+FE+ID+Opt", (2.69, 28.13, 0.775, 0.241, 0.798, 355.23)),
    },
}
"""Table -> variant (the name of its model folder) -> (name in the paper, its numbers on Unseen100)."""
MADE_OF: Mapping[str, str] = {"no-optimization": "ours", "face-paste": "no-face"}
"""Variants that need no folder of their own, and the one that they are made of."""
OWN_TITLES: Mapping[str, str] = {
    "ip-adapter": "IP-Adapter-style",
    "face-paste": "Face paste",
    "magic-face-paste": "Magic + face paste",
}
"""Names of measured rows that differ from the paper's rows of that name."""
ABLATION_COLUMNS = ("L1", "PSNR", "SSIM", "LPIPS", "CSIM", "FVD")

TABLE6: Mapping[str, tuple[float, float, float, float]] = {
    "DisCo": (95.6, 96.8, 94.2, 98.7),
    "MagicAnimate": (94.5, 94.8, 92.7, 97.4),
    "AnimateAnyone": (94.8, 93.1, 92.5, 98.3),
    "Champ": (95.0, 91.3, 91.7, 96.6),
    "Unianimate": (89.7, 88.4, 90.5, 95.8),
    "MimicMotion": (95.3, 95.5, 94.1, 97.6),
    "ControlNeXt": (93.6, 92.4, 90.3, 96.2),
}
"""Competitor -> per cent that preferred StableAnimator in motion, appearance, background and identity."""

FOOTNOTES = (
    "† published (StableAnimator, Table 1), not measured here; the paper says neither how CSIM was paired nor what was "
    "done without a face, and takes competitors' TikTok numbers from their papers.",
    "measured PSNR is the overflow that explains the published TikTok column: 8-bit arithmetic that wraps, never below "
    "24.17 dB. Published values below that floor (22.94 on Unseen100, and several of Tables 2 to 5) cannot be that "
    "metric: on Unseen100 PSNR has another, unpublished definition.",
    "L1 of order 1e-4 implies frames of about 256x256, while memory is given for 576x1024.",
    "FVD 326.57 (TikTok) is printed in two rows, MimicMotion and ControlNeXt: probably a slip. Two L1 values of the "
    "TikTok column, 2.66 and 2.87, are both set bold as the best.",
    "The text's gains in CSIM over Unianimate, 36.9 % and 45.8 %: the differences are 0.352 and 0.458.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One measured row: a system's name, its metrics, its ``memory`` (peak bytes, and the frames of that run; None if
    unknown), and its videos, which are never the paper's: those are not published."""

    name: str
    rows: Mapping[str, Row]
    memory: tuple[int, int] | None = None
    videos: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name} ({_measured(len(self.videos))})"


Measured = Mapping[str, tuple[Mapping[str, Row], Mapping[str, tuple[float, float]]]]
"""Variant -> its rows, and intervals by metric."""


def table1(bench: str, measured: Sequence[TableRow]) -> Table:
    """All nine published systems, then measured ones. ``bench`` selects the published column; for other data both are
    shown, for orders of magnitude only."""
    selected = (PUBLISHED_COLUMN[bench],) if bench in PUBLISHED_COLUMN else (0, 1)
    lines = []
    for system, columns in TABLE1.items():
        cells = [
            " / ".join(_published_cell(column, float(columns[k][index])) for k in selected)  # type: ignore[arg-type]
            for index, column in enumerate(COLUMNS)
        ]
        lines.append([f"{system} {PUBLISHED}", *cells, columns[2]])
    lines += [[r.label, *(measured_cell(r.rows, column) for column in COLUMNS), memory(r.memory)] for r in measured]
    data = {"tiktok": "TikTok", "unseen100": "Unseen100"}.get(bench, "TikTok / Unseen100")
    names = next((row.videos for row in measured if row.videos), ())
    own = (
        f"; measured rows on other data: {videos_text(len(names))} of bench {bench} ({_some(names)})"
        if measured
        else ""
    )
    return f"Table 1: {data} as published{own}", ["model", *COLUMNS, MEMORY], lines


def ablation(table: str, measured: Measured, videos: Sequence[str] = ()) -> Table:
    """Each variant's measured line, with intervals over ``videos``, then its published line. A variant without a model
    folder has only the latter."""
    lines = []
    for variant, (title, published) in ABLATIONS[table].items():
        own = OWN_TITLES.get(variant, title)
        if variant in measured:
            rows, intervals = measured[variant]
            label = f"{own} ({_measured(max((row.videos for row in rows.values()), default=0))})"
            lines.append([label, *(measured_cell(rows, column, intervals) for column in ABLATION_COLUMNS)])
        else:
            lines.append([f"{own}: no folder {MADE_OF.get(variant, variant)}/", *["" for _ in ABLATION_COLUMNS]])
        lines.append([f"{title} {PUBLISHED}", *map(_published_cell, ABLATION_COLUMNS, published)])
    own = f"; measured rows on other data: {videos_text(len(videos))} ({_some(videos)})" if videos else ""
    return f"Table {table[5:]} († published, on Unseen100{own})", ["variant", *ABLATION_COLUMNS], lines


def measured_cell(
    rows: Mapping[str, Row], column: str, intervals: Mapping[str, tuple[float, float]] | None = None
) -> str:
    """The value of a column with its interval, followed by its metric if that is not the column's first choice."""
    name = metric_of(column, rows)
    if name is None:
        return "–"
    text = number(rows[name].shown)
    interval = rows[name].interval if intervals is None else intervals.get(name)
    if interval is not None:
        text += f" [{number(interval[0])}, {number(interval[1])}]"
    return text if name == METRICS[column][0] else f"{text} {name}"


def published_lines(bench: str) -> list[list[str]]:
    """The published rows of Table 1 as lines of ``scores.csv``: video, metric, value, low, high, n, system, data."""
    lines = []
    for index, data in ((0, "TikTok"), (1, "Unseen100")):
        if PUBLISHED_COLUMN.get(bench, index) != index:
            continue
        for system, columns in TABLE1.items():
            source = f"Table 1, {data}, published"
            lines += _published_lines(COLUMNS, columns[index], system, source)  # type: ignore[arg-type]
            lines.append(["", MEMORY, columns[2], "", "", "", system, source])
    return lines


def measured_lines(row: TableRow) -> list[list[str]]:
    """A measured row of Table 1 as lines of ``scores.csv``; a column names its metric in brackets."""
    data = f"Table 1, {_measured(len(row.videos))}"
    intervals = {name: one.interval for name, one in row.rows.items() if one.interval is not None}
    lines = [_measured_line(column, row.rows, intervals, row.name, data) for column in COLUMNS]
    if row.memory is not None:
        lines.append(["", MEMORY, memory(row.memory), "", "", "", row.name, data])
    return [line for line in lines if line]


def ablation_lines(table: str, measured: Measured) -> list[list[str]]:
    """The rows of an ablation as lines of ``scores.csv``; ``system`` is the variant."""
    lines = []
    for variant, (_, published) in ABLATIONS[table].items():
        rows, intervals = measured.get(variant, ({}, {}))
        for column in ABLATION_COLUMNS:
            name = metric_of(column, rows)
            videos = 0 if name is None else rows[name].videos
            lines.append(_measured_line(column, rows, intervals, variant, f"Table {table[5:]}, {_measured(videos)}"))
        lines += _published_lines(ABLATION_COLUMNS, published, variant, f"Table {table[5:]}, Unseen100, published")
    return [line for line in lines if line]


def memory(peak: tuple[int, int] | None) -> str:
    """Peak bytes as gigabytes of 2^30, with the number of frames unless it is 16."""
    if peak is None:
        return "–"
    return f"{peak[0] / 2**30:.2f}G" + ("" if peak[1] == 16 else f" ({peak[1]} frames)")


def metric_of(column: str, rows: Mapping[str, Row]) -> str | None:
    return next((name for name in METRICS[column] if name in rows), None)


def _measured_line(
    column: str, rows: Mapping[str, Row], intervals: Mapping[str, tuple[float, float]], system: str, data: str
) -> list[str]:
    """Empty if no metric of the column was computed."""
    name = metric_of(column, rows)
    if name is None:
        return []
    low, high = map(repr, intervals[name]) if name in intervals else ("", "")
    return ["", f"{column} ({name})", repr(rows[name].shown), low, high, str(rows[name].count), system, data]


def _published_lines(columns: Sequence[str], values: Sequence[float], system: str, data: str) -> list[list[str]]:
    return [
        ["", column, f"{value * 1e-4 if column == 'L1' else value:.6g}", "", "", "", system, data]
        for column, value in zip(columns, map(float, values), strict=True)
        if not math.isnan(value)
    ]


def _published_cell(column: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    digits = 3 if column in ("SSIM", "LPIPS", "CSIM") else 2
    return f"{value:.{digits}f}" + ("E-4" if column == "L1" else "")


def _measured(count: int) -> str:
    return f"measured on other data, {videos_text(count)}"


def videos_text(count: int) -> str:
    return f"{count} video{'' if count == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
