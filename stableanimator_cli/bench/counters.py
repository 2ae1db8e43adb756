"""What a piece of work costs, counted: FLOPs, bytes alive at once and operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stableanimator_cli.engine.memory.profile import FlopCounter, PeakMemoryMode, fused_attention


@dataclass(frozen=True, slots=True)
class Counts:
    """``flops`` (two for a multiplication and addition), most ``bytes`` alive at once, and ``operators``."""

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
    """All of them in one run. Bytes are counted first: to know their FLOPs, some operators are taken apart."""
    with fused_attention(), FlopCounter() as found, PeakMemoryMode() as live:
        run()
    return Counts(found.total, live.peak, live.operators)
