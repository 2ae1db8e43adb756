"""Exact times: the source frame shown at each tick of the output's clock."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction


def is_regular(times: Sequence[Fraction], rate: Fraction) -> bool:
    """Whether frame k is shown at k / rate, within half a frame (containers round times to their ticks)."""
    return all(abs(time - times[0] - index / rate) * rate < Fraction(1, 2) for index, time in enumerate(times))


def frame_indices_at(times: Sequence[Fraction], rate: Fraction, last: Fraction) -> list[int]:
    """Index of the frame shown at k / ``rate``, for the full duration, which is preserved to one output frame.

    ``last`` is the duration of the final frame in seconds.
    """
    relative = [time - times[0] for time in times]
    count = max(1, round((relative[-1] + last) * rate))
    slack = min(Fraction(1, 1000), 1 / (4 * rate))  # containers round times up as well as down
    return [max(0, bisect_right(relative, tick / rate + slack) - 1) for tick in range(count)]
