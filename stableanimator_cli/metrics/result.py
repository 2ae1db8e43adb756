"""Specifications, values and absences of metrics.

Each metric has a ``MetricSpec``, whose name includes the variant: another computation is another name. Specs are
defined beside the functions that compute them and enter ``METRICS`` when their module is imported. A metric whose
network is not installed is a ``Missing`` in the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower", "zero", "neither"]
"""Direction of good values: high, low, near zero, or none by itself."""
ARROWS: Mapping[Better, str] = {"higher": "↑", "lower": "↓", "zero": "→0", "neither": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """``name`` includes the variant; ``title`` is for columns. ``source`` is the paper or program whose numbers it
    equals. ``network`` is its name for ``engine.metric_networks.features``, None if the metric needs no weights."""

    name: str
    title: str
    unit: str
    better: Better
    definition: str
    source: str
    range: str = ""
    network: str | None = None

    def __post_init__(self) -> None:
        if self.better not in ARROWS:
            raise ValueError(f"better: found {self.better!r}, expected one of {', '.join(map(repr, ARROWS))}")

    def to_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One metric over all videos.

    ``pooled`` is over all frames or clips together. ``per_video`` has NaN for videos without a value, and is empty for
    metrics of sets (Frechet distances). ``count`` is the number of frames or clips. ``about`` holds parameters, network
    and digest.
    """

    metric: str
    pooled: float
    per_video: Mapping[str, float] = field(default_factory=dict)
    count: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def per_video_mean(self) -> float:
        """Mean of the videos' values with equal weights; NaN if there are none."""
        known = [value for value in self.per_video.values() if not math.isnan(value)]
        return math.fsum(known) / len(known) if known else math.nan

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "pooled": json_number(self.pooled),
            "per_video_mean": json_number(self.per_video_mean),
            "per_video": {video: json_number(value) for video, value in self.per_video.items()},
            "count": self.count,
            "about": dict(self.about),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A metric that was not computed, the reason, and the command that mends it, if any."""

    metric: str
    reason: str
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric, "missing": self.reason, "command": self.command}


METRICS: dict[str, MetricSpec] = {}
"""All metrics by name, in the order in which their modules were imported."""


def define(
    name: str,
    title: str,
    better: Better,
    definition: str,
    *,
    source: str,
    range: str,
    unit: str = "",
    network: str | None = None,
) -> MetricSpec:
    """Register a metric in ``METRICS``. Raises ``ValueError`` if another one has its name."""
    spec = MetricSpec(
        name=name, title=title, unit=unit, better=better, definition=definition, source=source, range=range,
        network=network,
    )  # fmt: skip
    if METRICS.get(name, spec) != spec:
        raise ValueError(f"two metrics are named {name!r}")
    METRICS[name] = spec
    return spec


def json_number(value: float) -> float | str | None:
    """A number for any JSON reader: infinity (PSNR of identical frames) as "inf" or "-inf", NaN as null."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")
