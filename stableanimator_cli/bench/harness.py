"""Measuring side by side: ways of doing one thing run by turns in one process, compared pair by pair.

A machine's speed drifts while it is used; two ways that run a moment apart drift together. Ratios are taken within a
round and summed up by their median with a bootstrap interval (Efron, "Bootstrap Methods", 1979).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BOOTSTRAP_SAMPLES = 2000
LEVEL = 0.95
Statistic = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of a sample with the 95 % interval of its bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, statistic: Statistic = np.median, seed: int = 0
) -> Interval:
    """Bootstrap of ``statistic`` (which takes ``axis``) over a sample; NaN for an empty one."""
    sample = np.asarray(values, np.float64)
    if not len(sample):
        return Interval(float("nan"), float("nan"), float("nan"))
    picks = np.random.default_rng(seed).integers(len(sample), size=(BOOTSTRAP_SAMPLES, len(sample)))
    low, high = np.quantile(statistic(sample[picks], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(statistic(sample, axis=0)), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of each variant in each round."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, variant: str) -> float:
        return float(np.median(self.seconds[variant]))

    def ratio(self, slow: str, fast: str) -> Interval:
        """Speed-up of ``fast``: seconds of ``slow`` over those of ``fast``, round by round."""
        return bootstrap_interval(np.divide(self.seconds[slow], self.seconds[fast]))


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    setup: Callable[[str], object] = lambda variant: None,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    tick: Callable[[], object] = lambda: None,
) -> Rounds:
    """Time every variant ``rounds`` times, in alternating order (A B, B A, ...), after ``warm_up`` runs of each.

    ``setup`` prepares a variant outside of its time. ``synchronize`` waits for the device before the clock is read.
    ``tick`` is called after each run.
    """
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for index in range(-warm_up, rounds):
        for variant in list(variants) if index % 2 == 0 else reversed(list(variants)):
            setup(variant)
            synchronize()
            started = clock()
            variants[variant]()
            synchronize()
            if index >= 0:
                seconds[variant].append(clock() - started)
            tick()
    return Rounds({variant: tuple(times) for variant, times in seconds.items()})


def load_warning() -> str | None:
    """A warning if the machine has more work than cores, else None."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load <= cores:
        return None
    return f"the load of this machine is {load:.1f} on {cores} cores: read ratios, not seconds"
