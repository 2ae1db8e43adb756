"""From videos to a table: both means, intervals over videos, and what is missing, all under the metrics' names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import __version__
from stableanimator_cli.evaluate.protocols import Protocol
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.metrics import bootstrap
from stableanimator_cli.metrics.result import METRICS, MetricSpec, Missing, Value, json_number

FORMAT = 1
Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""
JSON, CURVES, CSV, LATEX, PAGE = "scores.json", "curves.jsonl", "scores.csv", "scores.tex", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric over all videos. ``shown`` is the mean that the protocol asks for, ``interval`` its 95 % interval over
    videos, None where one video or none has a value."""

    spec: MetricSpec
    shown: float
    pooled: float
    per_video_mean: float
    interval: tuple[float, float] | None
    videos: int
    count: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.spec.to_json(),
            "value": json_number(self.shown),
            "interval": None if self.interval is None else list(self.interval),
            "pooled": json_number(self.pooled),
            "per_video_mean": json_number(self.per_video_mean),
            "videos": self.videos,
            "count": self.count,
            "about": dict(self.about),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A finished evaluation. ``output`` is the folder with ``scores.json``, ``scores.csv``, ``scores.tex`` and
    ``report.html``; ``tables`` further tables for the terminal, (title, columns, rows)."""

    output: Path
    protocol: Protocol
    rows: Mapping[str, Row]
    missing: tuple[Missing, ...]
    videos: tuple[VideoScore, ...]
    about: Mapping[str, Any]
    tables: tuple[Table, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "stableanimator-cli": __version__,
            "output": str(self.output),
            "protocol": self.protocol.to_json(),
            **self.about,
            "metrics": {name: row.to_json() for name, row in self.rows.items()},
            "missing": [one.to_json() for one in self.missing],
            "videos": [_video(video) for video in self.videos],
        }

    def summary(self) -> str:
        return str(self.output / JSON)

    @property
    def title(self) -> str:
        count = len(self.videos)
        return f"{count} video{'' if count == 1 else 's'}, protocol {self.protocol.name}"

    def shown(self) -> list[Table]:
        """Tables for the terminal: (title, columns, rows)."""
        columns, rows = self.table()
        shown = [(self.title, columns, rows), *self.tables]
        if self.missing:
            lines = [[one.metric, one.reason, one.command] for one in self.missing]
            shown.append(("not computed", ["metric", "why", "what helps"], lines))
        return shown

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows for people, a metric a row, those of the protocol's table first. What only repeats published
        arithmetic is left to the files where the protocol does not ask for it."""
        first = [name for name in self.protocol.table if name in self.rows]
        rest = [name for name in self.rows if name not in first and "disco" not in name]
        rows = []
        for name in (*first, *rest):
            row = self.rows[name]
            arrow = "↑" if row.spec.better == "higher" else "↓"
            rows.append([name, f"{row.spec.title} {arrow}", *cells(row), str(row.videos), str(row.count)])
        other = "mean of videos" if self.protocol.mean == "frames" else "mean of frames"
        return ["metric", "", "value", "95 % interval", other, "videos", "n"], rows


def cells(row: Row) -> list[str]:
    """Value, interval and the other mean, as text."""
    interval = "" if row.interval is None else f"{number(row.interval[0])} to {number(row.interval[1])}"
    other = row.per_video_mean if row.shown == row.pooled else row.pooled
    return [number(row.shown), interval, number(other)]


def number(value: float) -> str:
    """Four significant digits; small numbers in E notation, as tables of this field write L1."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.2E}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def summarise(
    videos: Sequence[VideoScore], rules: Protocol, *, draws: int, seed: int, about: Mapping[str, Mapping[str, Any]]
) -> dict[str, Row]:
    """Rows of the metrics that any video has a value of, in the registry's order; ``about``: networks by metric."""
    names = {name for video in videos for name in video.values}
    rows = {}
    for name in (known for known in METRICS if known in names):
        values = np.array([video.values.get(name, math.nan) for video in videos])
        counts = np.array([video.counts.get(name, 0) for video in videos])
        known = ~np.isnan(values)
        if not known.any():
            continue
        weights = np.where(known, counts, 0)
        pooled = _mean(values[known], weights[known])
        mean = _mean(values[known], np.ones(int(known.sum())))
        weighted = rules.mean == "frames"
        finite = np.isfinite(values[known]).all()
        rows[name] = Row(
            spec=METRICS[name],
            shown=pooled if weighted else mean,
            pooled=pooled,
            per_video_mean=mean,
            interval=bootstrap.interval(values, weights if weighted else None, seed=seed, draws=draws)
            if finite
            else None,
            videos=int(known.sum()),
            count=int(weights.sum()),
            about=dict(about.get(name, {})),
        )
    return rows


def row_of(value: Value, interval: tuple[float, float] | None, videos: int) -> Row:
    """A metric that is only defined of all videos together, as the Frechet distances are."""
    return Row(
        spec=METRICS[value.metric],
        shown=value.pooled,
        pooled=value.pooled,
        per_video_mean=value.pooled,
        interval=interval,
        videos=videos,
        count=value.count,
        about=value.about,
    )


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    if not weights.sum():
        return math.nan
    kept = weights > 0
    return float((values[kept] * weights[kept]).sum() / weights[kept].sum())


def _video(video: VideoScore) -> dict[str, Any]:
    return {
        "name": video.name,
        "frames": video.frames,
        "predicted": dict(video.predicted),
        "truth": None if video.truth is None else dict(video.truth),
        "reference_picture": None if video.pair.reference is None else str(video.pair.reference),
        "poses": None if video.pair.poses is None else str(video.pair.poses),
        "borders": list(video.borders),
        "values": {name: json_number(value) for name, value in video.values.items()},
        "counts": dict(video.counts),
        "notes": list(video.notes),
    }
