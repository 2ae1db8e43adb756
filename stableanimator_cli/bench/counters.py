"""Counters of a workload: FLOPs, peak bytes and operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stableanimator_cli.engine.memory.profile import FlopCounter, PeakMemoryMode, fused_attention


@dataclass(frozen=True, slots=True)
class Counts:
    """``flops`` (a multiplication and addition count two), peak ``bytes`` and ``operators``."""

    flops: int
    bytes: int
    operators: int


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of one run."""
    with fused_attention(), FlopCounter() as found:
        run()
    return found.total


def track_memory(run: Callable[[], object]) -> PeakMemoryMode:
    """Bytes and operators of one run."""
    with fused_attention(), PeakMemoryMode() as found:
        run()
    return found


def count_all(run: Callable[[], object]) -> Counts:
    """Count all in one run. Bytes are counted first, since the FLOP counter decomposes some operators."""
    with fused_attention(), FlopCounter() as found, PeakMemoryMode() as live:
        run()
    return Counts(found.total, live.peak, live.operators)
