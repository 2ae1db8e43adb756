"""Rates from timestamps, exact or rounded by a container."""

from __future__ import annotations

from fractions import Fraction

import pytest

from stableanimator_cli.motion.frame_rate import mean_rate
from stableanimator_cli.motion.motion_file import UNTIMED_FPS

NTSC = Fraction(30000, 1001)
USUAL = [Fraction(24000, 1001), NTSC, Fraction(60000, 1001), *map(Fraction, (8, 12, 15, 24, 25, 30, 50, 60, 120))]


def at(rate: Fraction | int, count: int, start: Fraction | int = 0) -> list[Fraction]:
    return [start + Fraction(index) / Fraction(rate) for index in range(count)]


@pytest.mark.parametrize("rate", [Fraction(25), NTSC, Fraction(24000, 1001), Fraction(1, 2), Fraction(999, 40)])
def test_the_rate_of_regular_times_is_exact(rate):
    assert mean_rate(at(rate, 17, start=Fraction(3, 7))) == rate


def test_without_two_times_the_rate_is_that_of_things_without_a_clock():
    assert mean_rate([]) == mean_rate([Fraction(2)]) == mean_rate([Fraction(2), Fraction(2)]) == UNTIMED_FPS == 30


def test_an_awkward_rate_still_fits_a_container():
    rate = mean_rate([Fraction(0), Fraction(1_000_003, 30_000_001), Fraction(2_000_017, 30_000_001)])
    assert rate.denominator <= 100_000
    assert float(rate) == pytest.approx(30, rel=1e-4)


@pytest.mark.parametrize("rate", USUAL)
@pytest.mark.parametrize("count", [10, 100, 3000])
@pytest.mark.parametrize("first", [0, 7])
def test_a_usual_rate_is_found_in_whole_milliseconds(rate, count, first):
    rounded = [Fraction(round(time * 1000), 1000) for time in at(rate, first + count)][first:]
    assert mean_rate(rounded) == pytest.approx(rate, rel=1e-9 if count > 10 else 2e-3)
    assert mean_rate(rounded) in (*USUAL, Fraction(120000, 1001))


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_few_frames_in_whole_milliseconds_are_enough(rate):
    assert mean_rate([Fraction(round(time * 1000), 1000) for time in at(rate, 3)]) == rate


def test_a_varying_rate_has_its_mean():
    assert mean_rate([Fraction(0), Fraction(33, 1000), Fraction(90, 1000), Fraction(100, 1000)]) == 30
    assert mean_rate([Fraction(0), Fraction(33, 1000), Fraction(90, 1000), Fraction(101, 1000)]) == Fraction(3000, 101)
