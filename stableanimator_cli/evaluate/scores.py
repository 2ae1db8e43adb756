"""Scores of videos summarised per metric: both means, intervals over videos, and what is missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import __version__
from stableanimator_cli.errors import BatchFailed, SaError
from stableanimator_cli.evaluate.checks import FailedVideo
from stableanimator_cli.evaluate.latex import LatexTable
from stableanimator_cli.evaluate.people import PersonScore
from stableanimator_cli.evaluate.protocols import EvalProtocol
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.metrics import bootstrap
from stableanimator_cli.metrics.result import ARROWS, METRICS, MetricSpec, Missing, Value, json_number

FORMAT = 1
Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""
T_INTERVAL = "Student's t over videos"
T_BOOTSTRAP = "Student's t with the bootstrap's standard error over videos"
_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(?:(-?\d+(?:\.\d+)?)(?![\d./]))?")
_SHOWN = 40  # videos of a table
JSON, CURVES, CSV, LATEX, PAGE = "scores.json", "curves.jsonl", "scores.csv", "scores.tex", "report.html"
PAPER = "paper.tex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric over all videos. ``shown`` is the protocol's mean, ``interval`` its 95 % interval over videos by
    ``method``, None if fewer than five videos have a value."""

    spec: MetricSpec
    shown: float
    pooled: float
    per_video_mean: float
    interval: tuple[float, float] | None
    videos: int
    count: int
    about: Mapping[str, Any] = field(default_factory=dict)
    method: str = T_INTERVAL

    def to_json(self) -> dict[str, Any]:
        return {
            **self.spec.to_json(),
            "value": json_number(self.shown),
            "interval": None if self.interval is None else list(self.interval),
            "interval_method": None if self.interval is None else self.method,
            "pooled": json_number(self.pooled),
            "per_video_mean": json_number(self.per_video_mean),
            "videos": self.videos,
            "count": self.count,
            "about": dict(self.about),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Further rows of an evaluation: another ``system``'s, or of other ``data`` (videos without ground truth).
    ``videos`` are those that ``Scores.videos`` lacks."""

    system: str
    data: str
    rows: Mapping[str, Row]
    videos: tuple[VideoScore, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A finished evaluation in the folder ``output``. ``rows`` are of videos with ground truth if any has one.

    ``tables`` are further tables for the terminal; ``latex`` holds those that are printed otherwise, by title.
    ``sections`` and ``lines`` (video, metric, value, low, high, n, system, data) are further contents of
    ``scores.csv``. If videos ``failed``, the exit code is 7. ``failure`` is the error of a check that did not hold,
    whose exit code comes first.
    """

    output: Path
    protocol: EvalProtocol
    rows: Mapping[str, Row]
    missing: tuple[Missing, ...]
    videos: tuple[VideoScore, ...]
    about: Mapping[str, Any]
    tables: tuple[Table, ...] = ()
    failed: tuple[FailedVideo, ...] = ()
    sections: tuple[Section, ...] = ()
    lines: tuple[tuple[str, ...], ...] = ()
    latex: Mapping[str, Sequence[LatexTable]] = field(default_factory=dict)
    failure: SaError | None = None

    @property
    def exit_code(self) -> int:
        if self.failure is not None:
            return self.failure.exit_code
        return BatchFailed.exit_code if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "stableanimator-cli": __version__,
            "output": str(self.output),
            "protocol": self.protocol.to_json(),
            **self.about,
            "metrics": {name: row.to_json() for name, row in self.rows.items()},
            "missing": [one.to_json() for one in self.missing],
            "videos": [video_json(video) for video in self.videos],
            "failed": [one.to_json() for one in self.failed],
            **({} if self.failure is None else json.loads(self.failure.to_json())),
        }

    def summary(self) -> str:
        return str(self.output / JSON)

    @property
    def title(self) -> str:
        count = sum(1 for video in self.videos if video.target is not None) or len(self.videos)
        return f"{count} video{'' if count == 1 else 's'}, protocol {self.protocol.name}"

    def shown(self) -> list[Table]:
        """Tables for the terminal: (title, columns, rows)."""
        columns, rows = self.table()
        shown = [(self.title, columns, rows), *self.tables]
        if self.failed:
            lines = [[one.name, one.error.message, one.error.hint or ""] for one in self.failed]
            shown.append(("not scored", ["video", "why", "what helps"], lines))
        if self.missing:
            alike: dict[tuple[str, str], list[str]] = {}
            for one in self.missing:
                alike.setdefault((one.reason, one.command), []).append(one.metric)
            lines = [[", ".join(metrics), *why] for why, metrics in alike.items()]
            shown.append(("not computed", ["metric", "why", "what helps"], lines))
        return shown

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows for people, one row per metric."""
        rows = []
        for name in shown_metrics(self.protocol, self.rows):
            row = self.rows[name]
            title = f"{row.spec.title} {ARROWS[row.spec.better]}".strip()
            identical = row.about.get("identical_frames")
            title += f" ({identical} identical frames left out)" if identical and math.isfinite(row.shown) else ""
            rows.append([name, title, *cells(row), str(row.videos), str(row.count)])
        other = "mean of videos" if self.protocol.mean == "frames" else "mean of frames"
        return ["metric", "", "value", "95 % t-interval", other, "videos", "n"], rows


def shown_metrics(rules: EvalProtocol, rows: Mapping[str, Row]) -> list[str]:
    """Metrics in the order of tables: those of the protocol's table first. DisCo's arithmetic is left to the files
    unless the protocol has it."""
    first = [name for name in rules.table if name in rows]
    return first + [name for name in rows if name not in first and "disco" not in name]


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
    videos: Sequence[VideoScore], rules: EvalProtocol, *, about: Mapping[str, Mapping[str, Any]]
) -> dict[str, Row]:
    """Rows of the metrics that any video has a value of, in the registry's order. ``about``: networks by metric.

    A video that equals its ground truth has an infinite PSNR. It is left out of the mean and counted, unless all are
    equal.
    """
    names = {name for video in videos for name in video.values}
    rows = {}
    for name in (known for known in METRICS if known in names):
        values = np.array([video.values.get(name, math.nan) for video in videos])
        counts = np.array([video.counts.get(name, 0) for video in videos])
        known = ~np.isnan(values)
        if not known.any():
            continue
        details = dict(about.get(name, {}))
        if name == "psnr" and any(video.identical_frames for video in videos):
            details["identical_frames"] = sum(video.identical_frames for video in videos)
            details["identical_videos"] = int(np.isinf(values).sum())
            known = np.isfinite(values) if np.isfinite(values).any() else known
        weights = np.where(known, counts, 0)
        pooled = _mean(values[known], weights[known])
        mean = _mean(values[known], np.ones(int(known.sum())))
        weighted = rules.mean == "frames"
        interval = None
        if np.isfinite(values[known]).all():
            interval = within(METRICS[name], bootstrap.interval(values[known], weights[known] if weighted else None))
        rows[name] = Row(
            spec=METRICS[name],
            shown=pooled if weighted else mean,
            pooled=pooled,
            per_video_mean=mean,
            interval=interval,
            videos=int(known.sum()),
            count=int(weights.sum()),
            about=details,
        )
    return rows


def by_video(videos: Sequence[VideoScore]) -> Table:
    """Identity of each video with its detection rate, in the order of names; of many videos the least similar."""
    shown = videos
    if len(videos) > _SHOWN:
        shown = sorted(videos, key=lambda video: np.nan_to_num(video.values.get("csim_ref", -1), nan=-2))[:_SHOWN]
    title = "videos" if shown is videos else f"videos, the {_SHOWN} least like the reference of {len(videos)}"
    metrics = ("csim_ref", "csim_ref_judge", "identity_drift", "identity_worst")
    rows = []
    for video in shown:
        window = video.worst_window
        worst = "–" if window is None else f"{window[0]} to {window[1] - 1}"
        rows.append([video.name, str(video.frames), *_identity_cells(video.values, metrics), worst])
        for person in video.people:
            cells_of = _identity_cells(person.values, metrics)
            rows.append([f"{video.name}, person {person.number}", str(video.frames), *cells_of, "–"])
    return title, ["video", "frames", "with a face", *metrics, "worst frames"], rows


def _identity_cells(values: Mapping[str, float], metrics: Sequence[str]) -> list[str]:
    return [_faces(values), *(number(values.get(name, math.nan)) for name in metrics)]


def _faces(values: Mapping[str, float]) -> str:
    rate = values.get("face_rate", math.nan)
    return "–" if math.isnan(rate) else f"{rate:.0%}" if rate else "no face in any frame"


def within(spec: MetricSpec, interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """An interval clipped to the metric's range."""
    limits = _RANGE.match(spec.range)
    if interval is None or limits is None:
        return interval
    low, high = float(limits[1]), float(limits[2]) if limits[2] else math.inf
    return max(low, interval[0]), min(high, interval[1])


def row_of(value: Value, interval: tuple[float, float] | None, videos: int) -> Row:
    """Row of a metric that is only defined for all videos together: a Frechet distance."""
    return Row(
        spec=METRICS[value.metric],
        shown=value.pooled,
        pooled=value.pooled,
        per_video_mean=value.pooled,
        interval=within(METRICS[value.metric], interval),
        method=T_BOOTSTRAP,
        videos=videos,
        count=value.count,
        about=value.about,
    )


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    if not weights.sum():
        return math.nan
    counted = weights > 0
    return float((values[counted] * weights[counted]).sum() / weights[counted].sum())


def video_json(video: VideoScore) -> dict[str, Any]:
    return {
        "name": video.name,
        "frames": video.frames,
        "frames_left_out": video.dropped,
        "identical_frames": video.identical_frames,
        "predicted": dict(video.predicted),
        "truth": None if video.target is None else dict(video.target),
        "reference_picture": None if video.pair.reference is None else str(video.pair.reference),
        "poses": None if video.pair.poses is None else str(video.pair.poses),
        "borders": list(video.borders),
        "values": {name: json_number(value) for name, value in video.values.items()},
        "counts": dict(video.counts),
        "notes": list(video.notes),
        "worst_window": None if video.worst_window is None else list(video.worst_window),
        **({"people": [_person_json(one) for one in video.people]} if video.people else {}),
    }


def _person_json(person: PersonScore) -> dict[str, Any]:
    values = {name: json_number(value) for name, value in person.values.items()}
    return {"person": person.number, "values": values, "counts": dict(person.counts)}
