"""Plots of scores with axes: similarity over time and against the head's angle, and boxes of every metric."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.metrics.bootstrap import interval
from stableanimator_cli.metrics.result import ARROWS, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Systems = Mapping[str, Sequence[VideoScore]]
STYLE: dict[Any, Any] = {
    "font.family": "serif", "font.serif": ["STIXGeneral", "DejaVu Serif"], "mathtext.fontset": "stix", "font.size": 8,
    "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "legend.frameon": False, "legend.fontsize": 7, "lines.linewidth": 1.2, "pdf.fonttype": 42, "savefig.dpi": 300,
}  # fmt: skip
"""Type 42 fonts, which conferences require, at the size of a caption."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people who confuse red and green can distinguish."""
_LINES = ("-", "--", "-.", ":")
ANGLES = (0, 10, 20, 30, 45, 60, 90)
"""Edges of the bins of head angles, degrees."""
CURVES = ("csim_ref", "head_yaw")
"""Curves of ``VideoScore`` that are drawn."""
_PANELS = 12
_MAX_POINTS = 1500  # per system: a vector drawing stays small


def csim_over_time(systems: Systems) -> Figure | None:
    """Mean CSIM over videos at each frame, with its interval from five videos on. None without CSIM."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.3), layout="constrained")
    axes = figure.add_subplot(xlabel="frame", ylabel="CSIM with the reference ↑")
    drawn = False
    for style, (name, videos) in zip(_styles(len(systems)), systems.items(), strict=True):
        curves = [_numbers(video, "csim_ref") for video in videos if "csim_ref" in video.curves]
        length = max((len(curve) for curve in curves), default=0)
        table = np.full((len(curves), length), np.nan)
        for row, curve in zip(table, curves, strict=True):
            row[: len(curve)] = curve
        frames = np.flatnonzero(np.isfinite(table).any(axis=0))
        if len(frames):
            _line(axes, frames, [table[:, frame] for frame in frames], name, style)
            drawn = True
    axes.locator_params(axis="x", integer=True)
    return _with_legend(figure, axes) if drawn else None


def csim_against_angle(systems: Systems) -> Figure | None:
    """CSIM against the head's angle in the driving motion: frames, and means over videos in bins. None without both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.3), layout="constrained")
    axes = figure.add_subplot(xlabel="head angle, degrees from the front", ylabel="CSIM with the reference ↑")
    drawn = False
    for style, (name, videos) in zip(_styles(len(systems)), systems.items(), strict=True):
        points = [_angles_and_csim(video) for video in videos]
        every = np.concatenate([part for part in points if len(part)] or [np.zeros((0, 2))])
        if not len(every):
            continue
        shown = every[:: math.ceil(len(every) / _MAX_POINTS)]
        axes.plot(*shown.T, ".", markersize=3.5, alpha=0.35, color=style["color"], markeredgewidth=0)
        centres, values = [], []
        for low, high in itertools.pairwise(ANGLES):
            inside = [part[(part[:, 0] >= low) & (part[:, 0] < high + (high == ANGLES[-1]))] for part in points]
            means = np.array([part.mean(axis=0) for part in inside if len(part)])
            if len(means):
                centres.append(float(means[:, 0].mean()))
                values.append(means[:, 1])
        _line(axes, centres, values, name, {**style, "marker": "o", "markersize": 3})
        drawn = True
    return _with_legend(figure, axes) if drawn else None


def metric_boxes(systems: Systems, metrics: Sequence[str]) -> Figure | None:
    """One panel per metric: quartiles of the videos' values for each system, and their mean as a diamond."""
    from matplotlib.figure import Figure

    def values(name: str, videos: Sequence[VideoScore]) -> list[float]:
        return [value for video in videos if math.isfinite(value := video.values.get(name, math.nan))]

    shown = [name for name in metrics if any(len(values(name, videos)) > 1 for videos in systems.values())][:_PANELS]
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.75 * columns, (1.5 + 0.12 * len(systems)) * rows), layout="constrained")
    for position, name in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, position)
        spec = METRICS[name]
        title = f"{spec.title}, {spec.unit}" if spec.unit else spec.title
        axes.set_title(f"{title} {ARROWS[spec.better]}".strip(), parse_math=False)
        parts = axes.boxplot(
            [values(name, videos) for videos in systems.values()], orientation="horizontal", widths=0.6,
            patch_artist=True, showmeans=True,
            medianprops={"color": "black"}, flierprops={"marker": ".", "markersize": 3},
            meanprops={"marker": "D", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "black"},
        )  # fmt: skip
        for box, style in zip(parts["boxes"], _styles(len(systems)), strict=True):
            box.set(facecolor=style["color"], alpha=0.6)
        axes.invert_yaxis()
        axes.set_yticks(
            range(1, len(systems) + 1), list(systems) if (position - 1) % columns == 0 else [""] * len(systems)
        )
        for label in axes.get_yticklabels():
            label.set_parse_math(False)
        axes.locator_params(axis="x", nbins=4)
    return figure


def _line(axes: Axes, at: Sequence[float] | np.ndarray, samples: Sequence[np.ndarray], name: str, style: Any) -> None:
    """Means of samples (one value per video) with a band for their intervals."""
    axes.plot(at, [np.nanmean(sample) for sample in samples], label=name, **style)
    limits = [interval(sample) or (np.nan, np.nan) for sample in samples]
    if np.isfinite(limits).any():
        axes.fill_between(at, *np.transpose(limits), color=style["color"], alpha=0.15, linewidth=0)


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    if len(lines) > 1:
        for text in axes.legend().get_texts():
            text.set_parse_math(False)
    return figure


def _styles(count: int) -> list[dict[str, Any]]:
    cycle = [{"color": colour, "linestyle": line} for line in _LINES for colour in COLOURS]
    return [cycle[index % len(cycle)] for index in range(count)]


def _numbers(video: VideoScore, name: str) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in video.curves.get(name, ())], np.float64)


def _angles_and_csim(video: VideoScore) -> np.ndarray:
    """float[n,2] of the frames that have both."""
    angles, csim = np.abs(_numbers(video, "head_yaw")), _numbers(video, "csim_ref")
    shared = min(len(angles), len(csim))
    pairs = np.stack([angles[:shared], csim[:shared]], axis=1)
    return pairs[np.isfinite(pairs).all(axis=1)]
