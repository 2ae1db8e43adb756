"""Paired differences of an evaluation: ours minus each other system, in JSON, ``scores.csv`` and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stableanimator_cli.evaluate.scores import Table, number
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.metrics.bootstrap import MINIMUM
from stableanimator_cli.metrics.paired import PairedDifference, paired_difference
from stableanimator_cli.metrics.result import ARROWS, METRICS

Values = Mapping[str, Mapping[str, float]]
"""Video -> metric -> value."""
Differences = Mapping[str, Mapping[str, PairedDifference]]
"""System -> metric -> ours minus that system's."""
DATA = "ours minus this system"


def values_of(videos: Sequence[VideoScore]) -> Values:
    return {video.name: video.values for video in videos}


def differences(ours: Values, others: Mapping[str, Values], *, seed: int) -> Differences:
    """Compare every metric that both systems have a value of, on the videos that both have."""
    return {system: _difference(ours, theirs, seed) for system, theirs in others.items()}


def _difference(ours: Values, theirs: Values, seed: int) -> dict[str, PairedDifference]:
    compared = {}
    for name, spec in METRICS.items():
        sides = [{video: row[name] for video, row in side.items() if name in row} for side in (ours, theirs)]
        result = paired_difference(spec, *sides, seed=seed)
        if result is not None:
            compared[name] = result
    return compared


def to_json(compared: Differences) -> dict[str, Any]:
    return {system: {name: one.to_json() for name, one in rows.items()} for system, rows in compared.items()}


def tables(compared: Differences, shown: Sequence[str]) -> list[Table]:
    """A table per system, of the metrics ``shown``."""
    columns = [
        "metric",
        "",
        "ours minus theirs",
        "95 % interval (BCa)",
        "p (Wilcoxon)",
        "won / tied / lost",
        "win rate",
    ]
    found: list[Table] = []
    for system, rows in compared.items():
        lines = [_cells(name, rows[name]) for name in shown if name in rows]
        count = max((one.videos for one in rows.values()), default=0)
        few = "" if count >= MINIMUM else f"; intervals and tests need {MINIMUM}"
        title = f"ours minus {system}, paired by video ({count} video{'' if count == 1 else 's'}{few})"
        found.append((title, columns, lines))
    return found


def _cells(name: str, one: PairedDifference) -> list[str]:
    interval = "" if one.interval is None else f"{number(one.interval[0])} to {number(one.interval[1])}"
    p = "" if one.p_value is None else f"{one.p_value:.2g}"
    title = f"{METRICS[name].title} {ARROWS[METRICS[name].better]}"
    won = f"{one.wins} / {one.ties} / {one.losses}"
    return [name, title, number(one.mean), interval, p, won, f"{one.win_rate:.0%}"]


def lines(compared: Differences) -> list[list[str]]:
    """Lines of ``scores.csv``: video, metric, value, low, high, n, system, data. One per metric and one per video and
    metric, which is named ``psnr difference``; then ``psnr win rate`` and ``psnr Wilcoxon p``."""
    found = []
    for system, rows in compared.items():
        for name, one in rows.items():
            low, high = ("", "") if one.interval is None else map(repr, one.interval)
            end = [str(one.videos), system, DATA]
            found.append(["", f"{name} difference", repr(one.mean), low, high, *end])
            found.append(["", f"{name} win rate", repr(one.win_rate), "", "", *end])
            if one.p_value is not None:
                found.append(["", f"{name} Wilcoxon p", repr(one.p_value), "", "", *end])
            found += [
                [video, f"{name} difference", repr(value), "", "", "1", system, DATA]
                for video, value in one.per_video.items()
            ]
    return found
