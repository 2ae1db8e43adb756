"""Paired differences over seeds and people, with intervals for both.

All arrays are float64[s,p]: one value per training seed and person; NaN where none was measured. Seeds and people are
crossed: every seed is scored on the same people. Their standard error is that of a bootstrap that resamples both
(Owen, "The pigeonhole bootstrap", 2007). The interval is Student's t with one degree of freedom less than seeds,
because percentiles of a bootstrap of five are too narrow (docs/metrics.md, "Intervals"). Coverage in simulation with
5 seeds and 24 people: .92 if seeds alone differ, .98 if seeds, people and single values differ alike, .99 if people do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval, over so many seeds and people; ``low`` and ``high`` are NaN below two seeds."""

    value: float
    low: float
    high: float
    seeds: int
    people: int

    @property
    def has_effect(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        finite = {name: number if np.isfinite(number) else None for name, number in numbers.items()}
        return {**finite, "seeds": self.seeds, "people": self.people}


def estimate(values: np.ndarray, draws: int = DRAWS) -> Estimate:
    """Mean of ``values`` float64[s,p] with its interval; NaN without values."""
    known = np.isfinite(values)
    values, known = (array[known.any(axis=1)][:, known.any(axis=0)] for array in (values, known))
    seeds, people = values.shape
    if not seeds:
        return Estimate(value=np.nan, low=np.nan, high=np.nan, seeds=0, people=0)
    filled, mean = np.where(known, values, 0.0), float(values[known].mean())
    if seeds < 2 or people < 2:
        return Estimate(value=mean, low=np.nan, high=np.nan, seeds=seeds, people=people)
    rng = np.random.default_rng(0)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float) for n in (seeds, people))
    counts = np.einsum("bs,sp,bp->b", rows, known.astype(float), columns, optimize=True)
    sums = np.einsum("bs,sp,bp->b", rows, filled, columns, optimize=True)
    margin = float((sums[counts > 0] / counts[counts > 0]).std(ddof=1) * stdtrit(seeds - 1, (1 + LEVEL) / 2))
    return Estimate(value=mean, low=mean - margin, high=mean + margin, seeds=seeds, people=people)
