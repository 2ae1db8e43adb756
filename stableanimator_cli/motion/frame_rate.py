"""The frame rate behind times that a container rounded to its ticks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from stableanimator_cli.motion.motion_file import UNTIMED_FPS

_FINEST = 100_000  # denominators beyond this do not fit a container's time base
_TICK = Fraction(1, 1000)  # the coarsest of a usual container: Matroska, WebM, FLV
_USUAL = (
    *map(Fraction, (24, 25, 30, 48, 50, 60, 120)),
    *(Fraction(nominal * 1000, 1001) for nominal in (24, 30, 48, 60, 120)),
)


def mean_rate(times: Sequence[Fraction]) -> Fraction:
    """Frames per second: exact if the times are regular, the usual rate if they are its times in whole milliseconds,
    else the mean. 30 without two times.

    Three frames of a Matroska at 30 per second are at 0, 33 and 67 ms, a mean of 29.85.
    """
    if len(times) < 2 or times[-1] <= times[0]:
        return UNTIMED_FPS
    span, last = times[-1] - times[0], len(times) - 1
    mean = last / span
    if all(time - times[0] == index / mean for index, time in enumerate(times)):
        return mean.limit_denominator(_FINEST)
    near = [rate for rate in (Fraction(max(1, round(mean))), *_USUAL) if abs(span - last / rate) <= _TICK]
    farthest, nearest = min(((_farthest(times, rate), rate) for rate in near), default=(_TICK + 1, mean))
    return nearest if farthest <= _TICK else mean.limit_denominator(_FINEST)


def _farthest(times: Sequence[Fraction], rate: Fraction) -> Fraction:
    """Seconds between a time and that of its frame at ``rate``, at most."""
    return max(abs(time - times[0] - index / rate) for index, time in enumerate(times))
