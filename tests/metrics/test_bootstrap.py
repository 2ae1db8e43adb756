"""Intervals: seeded, of videos, honest about how little one video says."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.metrics.bootstrap import interval, interval_of, share


def test_the_interval_holds_the_mean_and_is_the_same_for_a_seed() -> None:
    values = np.random.default_rng(0).normal(5, 1, 40)
    low, high = interval(values, seed=3) or (0, 0)
    assert low < values.mean() < high
    assert interval(values, seed=3) == (low, high)
    assert interval(values, seed=4) != (low, high)


def test_it_agrees_with_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    low, high = interval(values, draws=4000) or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_one_video_says_nothing_and_absence_is_left_out() -> None:
    assert interval([0.5]) is None
    assert interval([0.5, np.nan]) is None
    assert interval([0.5, np.nan, 0.5]) == (0.5, 0.5)


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
    assert share(hits, total) == pytest.approx((low, high), abs=2e-4)


def test_a_share_of_nothing_and_of_too_little() -> None:
    assert share(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        share(3, 2)
