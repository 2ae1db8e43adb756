"""How sure is a mean over videos? Percentile intervals by drawing the videos anew (Efron and Tibshirani, "An
Introduction to the Bootstrap"). Frames of a video are not independent of one another: the video is what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

DRAWS, LEVEL = 1000, 0.95


def interval(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> tuple[float, float] | None:
    """Interval of the (weighted) mean of one value a video; NaN values are left out. None below two videos, of which
    nothing can be said. ``weights`` (frames of each video) give the interval of the pooled mean."""
    kept = np.isfinite(np.asarray(values, np.float64))
    x = np.asarray(values, np.float64)[kept]
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)[kept]
    if len(x) < 2 or w.sum() <= 0:
        return None
    picks = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    drawn = w[picks].sum(axis=1)
    means = (x * w)[picks].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    return _ends(means, level)


def interval_of(
    statistic: Callable[[np.ndarray], float], count: int, *, seed: int = 0, draws: int = 200, level: float = LEVEL
) -> tuple[float, float] | None:
    """Interval of any statistic of which videos were drawn: ``statistic(indices int64[count])`` gives a number, NaN
    where it cannot. None below two videos, or where no draw gives a number."""
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.integers(count, size=count)) for _ in range(draws)], np.float64)
    found = found[np.isfinite(found)]
    return _ends(found, level) if len(found) else None


def share(hits: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a share, ``hits`` of ``total`` (Wilson 1927): it stays within 0..1 and is honest for small
    totals. (0, 1) where nothing was asked. ``ValueError`` where hits are not among the total."""
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} of {total}")
    if total == 0:
        return 0.0, 1.0
    z = _quantile(0.5 + level / 2)
    p, scale = hits / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    reach = z * np.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / scale
    low, high = float(max(0.0, centre - reach)), float(min(1.0, centre + reach))
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)


def _ends(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
