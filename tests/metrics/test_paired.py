"""Paired differences: planted ones are found, a copy differs by nothing, and intervals cover what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stableanimator_cli.metrics import paired, pixel
from stableanimator_cli.metrics.paired import PairedDifference, bca_interval, expanded_level, paired_difference
from stableanimator_cli.metrics.result import METRICS

PSNR, MAE = METRICS["psnr"], METRICS["mae_unit"]
OURS = {f"v{n}": 20 + value for n, value in enumerate(np.random.default_rng(0).normal(0, 3, 8))}
assert pixel  # defines the metrics


def _found(spec: object, ours: dict[str, float], theirs: dict[str, float]) -> PairedDifference:
    found = paired_difference(spec, ours, theirs)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_copy_differs_by_exactly_nothing() -> None:
    for ours in (OURS, dict.fromkeys(OURS, math.inf)):
        found = _found(PSNR, ours, dict(ours))
        assert (found.mean, found.interval, found.p_value) == (0, (0, 0), 1)
        assert (found.wins, found.ties, found.losses, found.win_rate) == (0, 8, 0, 0.5)


@pytest.mark.parametrize(("spec", "wins"), [(PSNR, 0), (MAE, 8)])
def test_a_better_rival_is_found_by_the_known_amount(spec: object, wins: int) -> None:
    noise = np.random.default_rng(1).normal(0, 0.2, 8)
    theirs = {name: value + 2 + own for (name, value), own in zip(OURS.items(), noise, strict=True)}
    found = _found(spec, OURS, theirs)
    assert found.mean == pytest.approx(-2 - noise.mean())
    assert found.interval is not None
    assert found.interval[0] < -2 < found.interval[1] < -1.5
    assert found.p_value == pytest.approx(2 / 2**8)  # exact: all signs agree
    assert (found.wins, found.losses) == (wins, 8 - wins)
    assert found.per_video["v3"] == pytest.approx(OURS["v3"] - theirs["v3"])


def test_fewer_than_five_videos_claim_nothing() -> None:
    found = _found(PSNR, dict(list(OURS.items())[:4]), dict.fromkeys(OURS, 0.0))
    assert (found.videos, found.interval, found.p_value, found.win_rate) == (4, None, None, 1)
    assert found.to_json()["interval_method"] is None


def test_videos_without_a_finite_difference_are_left_out() -> None:
    found = _found(PSNR, {"a": 1, "b": math.nan, "c": math.inf, "d": 3, "e": 1}, {"a": 0, "b": 1, "c": 2, "d": 3})
    assert found.per_video == {"a": 1, "d": 0}
    assert (found.wins, found.ties) == (1, 1)
    assert paired_difference(PSNR, {"a": math.nan}, {"a": 1.0}) is None
    assert paired_difference(PSNR, {"a": 1.0}, {"b": 1.0}) is None
    assert paired_difference(METRICS["ssim"], {}, {}) is None


def test_a_metric_without_a_better_direction_is_not_compared() -> None:
    from stableanimator_cli.metrics import flicker

    assert flicker
    for name in ("flicker", "flicker_excess"):
        assert paired_difference(METRICS[name], {"a": 1.0}, {"a": 2.0}) is None


def test_differences_that_are_equal_but_for_rounding_have_an_interval() -> None:
    """BCa of these is not a number."""
    values = np.array([25.0, 25, 25, 25, 25 + 4e-15])
    assert bca_interval(values) == (25, values[-1])
    steps = {f"v{n}": 0.9 - n / 10 for n in range(5)}
    found = _found(PSNR, steps, {name: value - 0.1 for name, value in steps.items()})
    assert found.interval == pytest.approx((0.1, 0.1))


def test_the_interval_repeats_and_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array(list(OURS.values()))
    first = bca_interval(values, seed=3)
    monkeypatch.setattr(paired, "_BATCH", 1000)
    assert first == bca_interval(values, seed=3) != bca_interval(values, seed=4)
    assert first is not None
    assert first[0] < values.mean() < first[1]


def test_coverage_of_few_videos() -> None:
    """The plain level covers .88 of eight normal values, the expanded one .94 (docs/metrics.md)."""
    assert expanded_level(5) == pytest.approx(0.99809, abs=1e-5)
    assert expanded_level(1000) == pytest.approx(0.95, abs=1e-3)
    rng, hits, tries = np.random.default_rng(0), 0, 150
    for _ in range(tries):
        interval = bca_interval(rng.normal(1, 1, 8), samples=999)
        assert interval is not None
        hits += interval[0] <= 1 <= interval[1]
    assert 0.89 <= hits / tries <= 0.98
