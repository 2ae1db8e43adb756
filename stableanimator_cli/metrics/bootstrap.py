"""Confidence intervals by Student's t over videos, which are independent; frames of one video are not.

Percentiles of a bootstrap are too narrow for few videos (two cover half of what they promise, eight 88 %) and, for a
Frechet distance, are above the value itself, since a resampled covariance is biased upward. A t-interval around the
value has neither fault; the coverage of both was simulated (``docs/metrics.md``). Below five videos there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

DRAWS, LEVEL = 200, 0.95
MINIMUM = 5
"""With fewer videos there is no interval."""


def interval(
    values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None, *, level: float = LEVEL
) -> tuple[float, float] | None:
    """t-interval of the (weighted) mean of one value per video; None below five videos with finite values.

    ``weights`` (frames of each video) give the interval of the pooled mean, whose variance is linearised.
    """
    x = np.asarray(values, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    valid = np.isfinite(x) & (w > 0)
    x, w = x[valid], w[valid]
    count = len(x)
    if count < MINIMUM:
        return None
    w = w / w.sum()
    mean = float((w * x).sum())
    error = float(np.sqrt(count / (count - 1) * np.square(w * (x - mean)).sum()))
    return _around(mean, error, count, level)


def interval_of(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
    drawn: Callable[[], object] = lambda: None,
) -> tuple[float, float] | None:
    """t-interval of ``statistic(indices int64[count])`` over ``count`` videos, with the bootstrap's standard error
    (Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 6). ``drawn`` is called after each sample.

    It covers the value that as many videos have on average, bias included. None below five videos, and if the statistic
    is NaN for all videos or for all samples but one.
    """
    if count < MINIMUM:
        return None
    value = statistic(np.arange(count))
    rng = np.random.default_rng(seed)
    samples = np.empty(draws)
    for index in range(draws):
        samples[index] = statistic(rng.integers(count, size=count))
        drawn()
    samples = samples[np.isfinite(samples)]
    if len(samples) < 2 or not np.isfinite(value):
        return None
    return _around(float(value), float(samples.std(ddof=1)) * (count / (count - 1)) ** 0.5, count, level)


def wilson_interval(hits: float, total: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of a fraction, ``hits`` of ``total`` (Wilson 1927), within 0..1 and valid for small totals. (0,
    1) for none. Raises ``ValueError`` unless ``hits`` is between 0 and ``total``."""
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} of {total}")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, scale = hits / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    reach = z * np.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / scale
    low, high = float(max(0.0, centre - reach)), float(min(1.0, centre + reach))
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)


def clustered_interval(
    hits: Sequence[int] | np.ndarray, totals: Sequence[int] | np.ndarray, level: float = LEVEL
) -> tuple[float, float] | None:
    """Interval of a fraction of answers by several people: ``hits`` of ``totals`` per person. None below five people.

    It is Wilson's at the effective number of answers, as one person's answers resemble one another (Korn and Graubard,
    "Confidence Intervals for Proportions with Small Expected Number of Positive Counts", 1998). If all agree, a person
    counts as one answer.
    """
    from scipy.special import stdtrit

    x, n = np.asarray(hits, np.float64), np.asarray(totals, np.float64)
    x, n = x[n > 0], n[n > 0]
    people, answers = len(n), float(n.sum())
    if people < MINIMUM:
        return None
    p = float(x.sum()) / answers
    independent = p * (1 - p) / answers
    between = people / (people - 1) * float(np.square(x - p * n).sum()) / answers**2
    design = max(1.0, between / independent) if independent > 0 else answers / people
    quantile = 0.5 + level / 2
    effective = answers / design * (NormalDist().inv_cdf(quantile) / float(stdtrit(people - 1, quantile))) ** 2
    return wilson_interval(p * effective, effective, level)


def _around(value: float, error: float, count: int, level: float) -> tuple[float, float]:
    from scipy.special import stdtrit  # the quantile of Student's t; scikit-image brings scipy

    reach = float(stdtrit(count - 1, 0.5 + level / 2)) * error
    return value - reach, value + reach
