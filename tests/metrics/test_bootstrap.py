"""Intervals: over videos, as wide as few of them demand, none below five."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.metrics.bootstrap import interval, interval_of, wilson_interval
from stableanimator_cli.metrics.frechet import Moments, frechet_distance


def test_the_interval_holds_the_mean_and_is_the_same_for_a_seed() -> None:
    values = np.random.default_rng(0).normal(5, 1, 40)
    low, high = interval(values) or (0, 0)
    assert low < values.mean() < high
    assert (low + high) / 2 == pytest.approx(values.mean())
    found = [interval_of(lambda picks: float(values[picks].mean()), 40, seed=seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_it_agrees_with_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    low, high = interval(values) or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.01)


def test_fewer_than_five_videos_have_no_interval_and_absence_is_left_out() -> None:
    assert interval([0.5]) is None
    assert interval([0.1, 0.2, 0.3, 0.4, np.nan, np.inf]) is None
    assert interval([0.5, np.nan, 0.5, 0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert interval_of(lambda picks: float(picks.mean()), 4) is None


def test_it_is_students() -> None:
    """Quantile of t with 4 degrees of freedom: 2.776."""
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - 2.776 * 0.5**0.5, 3 + 2.776 * 0.5**0.5), abs=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_few_videos_are_covered_as_often_as_promised(weighted: bool) -> None:
    """The percentiles of a bootstrap cover 84 % with five videos and 88 % with eight."""
    rng = np.random.default_rng(5)
    for count in (5, 8):
        hits = 0
        for _ in range(2000):
            lengths = rng.integers(20, 60, count) if weighted else None
            low, high = interval(rng.normal(0.8, 0.1, count), lengths) or (1, 0)
            hits += low <= 0.8 <= high
        assert 0.93 <= hits / 2000 <= 0.975


def test_the_interval_of_a_biased_statistic_holds_its_own_value_and_its_mean() -> None:
    """A Frechet distance of few vectors lies above that of the Gaussians; percentiles of draws lie above both."""
    rng = np.random.default_rng(6)

    def distance(made: np.ndarray, truth: np.ndarray) -> float:
        sides = (Moments.of(side.reshape(-1, side.shape[-1])) for side in (made, truth))
        return frechet_distance(*sides)

    def world() -> tuple[np.ndarray, np.ndarray]:
        truth = rng.normal(size=(8, 1, 24)) + 0.5 * rng.normal(size=(8, 4, 24))
        return truth + 0.3 + 0.4 * rng.normal(size=truth.shape), truth

    expected, hits = np.mean([distance(*world()) for _ in range(100)]), 0
    for _ in range(30):
        made, truth = world()
        low, high = interval_of(lambda p, a=made, b=truth: distance(a[p], b[p]), 8, draws=50) or (1, 0)  # type: ignore[misc]
        assert low <= distance(made, truth) <= high
        hits += low <= expected <= high
    assert hits >= 26


def test_weights_move_it_towards_long_videos() -> None:
    low, high = interval([0.0] * 10 + [1.0] * 10, [1] * 10 + [9] * 10) or (0, 0)
    assert low > 0.5 < high


def test_any_statistic_can_be_drawn() -> None:
    values = np.arange(10.0)
    low, high = interval_of(lambda picks: float(np.median(values[picks])), 10) or (0, 0)
    assert 0 < low < 4.5 < high < 9
    assert interval_of(lambda picks: float("nan"), 10) is None
    assert interval_of(lambda picks: 1.0, 1) is None


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval(hits: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(hits, total) == pytest.approx((low, high), abs=2e-4)


def test_a_share_of_nothing_and_of_too_little() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)
