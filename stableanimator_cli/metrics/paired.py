"""Paired differences of two systems: ours minus theirs, video by video, with an interval, a test and a win rate.

The interval is a BCa bootstrap over videos (Efron, "Better Bootstrap Confidence Intervals", 1987) at the expanded level
of Hesterberg ("What Teachers Should Know About the Bootstrap", 2015), because the plain one is too narrow: with five
videos it covers 80 to 85 %. ``docs/metrics.md`` has the coverage in simulation. Below five videos there is neither an
interval nor a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stableanimator_cli.metrics.bootstrap import LEVEL, MINIMUM
from stableanimator_cli.metrics.result import MetricSpec, json_number

SAMPLES = 9999  # the expanded level looks far into the tails
_BATCH = 2_000_000  # resampled values at a time, so that memory does not grow with the number of videos
_ROUNDING = 1e-12  # relative: equal differences of rounded values, as .9 - .8 and .8 - .7
INTERVAL = "BCa bootstrap over videos, expanded level"
TEST = "Wilcoxon signed-rank, two-sided"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """One metric of two systems on the same videos. ``mean`` is that of ``per_video``, ours minus theirs. ``wins`` are
    the videos in which ours is better, ``losses`` those in which it is worse. ``interval`` (95 %) and ``p_value`` are
    None below five videos."""

    mean: float
    interval: tuple[float, float] | None
    p_value: float | None
    wins: int
    ties: int
    losses: int
    per_video: Mapping[str, float]

    @property
    def videos(self) -> int:
        return len(self.per_video)

    @property
    def win_rate(self) -> float:
        """Fraction of videos in which ours is better; ties count half."""
        return (self.wins + self.ties / 2) / self.videos

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": json_number(self.mean),
            "interval": None if self.interval is None else list(self.interval),
            "interval_method": None if self.interval is None else INTERVAL,
            "p_value": self.p_value,
            "test": None if self.p_value is None else TEST,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "win_rate": self.win_rate,
            "videos": self.videos,
            "per_video": dict(self.per_video),
        }


def paired_difference(
    spec: MetricSpec, ours: Mapping[str, float], theirs: Mapping[str, float], *, seed: int = 0
) -> PairedDifference | None:
    """Compare values by video. A video without a finite difference is left out; equal values differ by 0, if infinite
    too.

    None if no video is left, or for a metric of which neither high nor low values are better.
    """
    if spec.better not in ("higher", "lower"):
        return None
    pairs = {name: (value, theirs[name]) for name, value in ours.items() if name in theirs}
    differences = {name: 0.0 if a == b else a - b for name, (a, b) in pairs.items()}
    differences = {name: float(value) for name, value in differences.items() if math.isfinite(value)}
    if not differences:
        return None
    values = np.array(list(differences.values()))
    gains = values if spec.better == "higher" else -values
    return PairedDifference(
        mean=float(values.mean()),
        interval=bca_interval(values, seed=seed),
        p_value=signed_rank(values),
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
        per_video=differences,
    )


def bca_interval(
    values: np.ndarray, *, seed: int = 0, level: float = LEVEL, samples: int = SAMPLES
) -> tuple[float, float] | None:
    """BCa interval of the mean of float[n], at the expanded level. None below five values.

    Equal values, but for rounding, have an interval without width. ``seed`` is that of the bootstrap.
    """
    if len(values) < MINIMUM:
        return None
    if np.ptp(values) <= _ROUNDING * np.abs(values).max():  # BCa is not defined: no resample differs
        return float(values.min()), float(values.max())
    from scipy import stats

    found = stats.bootstrap(
        (values,), np.mean, method="BCa", confidence_level=expanded_level(len(values), level), n_resamples=samples,
        batch=max(1, _BATCH // len(values)), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def expanded_level(count: int, level: float = LEVEL) -> float:
    """The level at which a bootstrap of ``count`` values is as wide as Student's t: .998 for 95 % of five."""
    from scipy.special import ndtr, stdtrit

    reach = stdtrit(count - 1, 0.5 + level / 2) * math.sqrt(count / (count - 1))
    return float(2 * ndtr(reach) - 1)


def signed_rank(values: np.ndarray) -> float | None:
    """p-value of the Wilcoxon signed-rank test that differences float[n] are symmetric about 0; exact for few values.

    None below five values. Zeros are discarded; 1 if nothing else is left.
    """
    if len(values) < MINIMUM:
        return None
    nonzero = values[values != 0]
    if not len(nonzero):
        return 1.0
    from scipy import stats

    result: Any = stats.wilcoxon(nonzero)
    return float(result.pvalue)
