"""Ways by turns, ratios of rounds, and intervals that cover what they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from stableanimator_cli.bench.harness import Interval, Rounds, bootstrap_interval, load_warning, time_interleaved


def test_ways_take_turns_and_only_their_own_time_counts():
    done: list[str] = []
    now = itertools.count(0.0, 1.0)  # each look at the clock is a second later
    rounds = time_interleaved(
        {"a": lambda: done.append("a"), "b": lambda: done.append("b")},
        3,
        warm_up=1,
        setup=lambda way: done.append(f"ready {way}"),
        clock=lambda: next(now),
    )
    order = [name for name in done if not name.startswith("ready")]
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert done[0::2] == [f"ready {name}" for name in order]
    assert rounds.seconds == {"a": (1.0, 1.0, 1.0), "b": (1.0, 1.0, 1.0)}


def test_a_ratio_is_of_rounds_not_of_medians():
    """A machine that slows down four times in the middle changes no ratio."""
    rounds = Rounds({"slow": (2.0, 8.0, 8.0), "fast": (1.0, 4.0, 4.0)})
    assert rounds.ratio("slow", "fast") == Interval(2.0, 2.0, 2.0)
    assert rounds.median("slow") == 8.0


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [bootstrap_interval(rng.normal(3.0, 1.0, 40), np.mean) for _ in range(200)]
    covered = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert 0.88 <= covered <= 0.99
    assert all(one.low <= one.value <= one.high for one in found)


def test_an_interval_of_nothing_and_of_one():
    assert np.isnan(bootstrap_interval([]).value)
    assert bootstrap_interval([4.0]) == Interval(4.0, 4.0, 4.0)
    assert bootstrap_interval([1, 2, 9]) == bootstrap_interval([1, 2, 9])


@pytest.mark.parametrize(("load", "warns"), [(0.5, False), (64.0, True)])
def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch, load: float, warns: bool):
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert (load_warning() is not None) is warns


def test_a_statistic_without_an_interval_is_its_value() -> None:
    assert str(Interval(0.5, math.nan, math.nan)) == "0.5"
    assert str(Interval(0.5, 0.25, 0.75)) == "0.5 (0.25 to 0.75)"
