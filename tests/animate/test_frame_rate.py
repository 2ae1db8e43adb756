"""Exact time: the frame that is shown at each tick."""

from __future__ import annotations

from fractions import Fraction

import pytest

from stableanimator_cli.animate.frame_rate import frame_indices_at, is_regular

NTSC = Fraction(30000, 1001)


def at(rate: Fraction | int, count: int, start: Fraction | int = 0) -> list[Fraction]:
    return [start + Fraction(index) / Fraction(rate) for index in range(count)]


@pytest.mark.parametrize("rate", [Fraction(25), NTSC, Fraction(24000, 1001), Fraction(1, 2), Fraction(999, 40)])
def test_regular_times_are_regular_from_any_start(rate):
    assert is_regular(at(rate, 17, start=Fraction(3, 7)), rate)


def test_ticks_of_a_container_are_regular_and_holes_are_not():
    rounded = [Fraction(round(time * 1000), 1000) for time in at(30, 100)]
    assert is_regular(rounded, Fraction(30))
    assert not is_regular([*at(30, 10), Fraction(11, 30)], Fraction(30))  # one frame was dropped
    assert not is_regular(at(30, 100), Fraction(29))


def test_the_same_rate_shows_every_frame_once():
    assert frame_indices_at(at(NTSC, 9), NTSC, 1 / NTSC) == list(range(9))


def test_half_the_rate_takes_every_second_and_double_shows_twice():
    assert frame_indices_at(at(30, 9), Fraction(15), Fraction(1, 30)) == [0, 2, 4, 6]
    assert frame_indices_at(at(15, 3), Fraction(30), Fraction(1, 15)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("rate", [Fraction(12), Fraction(24), Fraction(25), NTSC, Fraction(60)])
@pytest.mark.parametrize("count", [1, 2, 30, 101])
def test_the_duration_is_kept_to_one_frame(rate, count):
    shown = frame_indices_at(at(30, count), rate, Fraction(1, 30))
    assert abs(len(shown) / rate - Fraction(count, 30)) <= 1 / rate
    assert shown == sorted(shown)
    assert 0 <= shown[0] <= shown[-1] < count


def test_a_long_pause_shows_the_frame_before_it():
    times = [Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(6, 10)]
    assert frame_indices_at(times, Fraction(10), Fraction(1, 10)) == [0, 1, 1, 1, 1, 2, 3]


def test_times_that_a_container_rounded_up_do_not_shift_frames():
    times = [Fraction(0), Fraction(34, 1000), Fraction(67, 1000), Fraction(100, 1000)]
    assert frame_indices_at(times, Fraction(30), Fraction(1, 30)) == [0, 1, 2, 3]
