"""What a piece of work costs, counted: FLOPs, bytes alive at once and operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stableanimator_cli.engine.memory.profile import FlopCounter, PeakMemoryMode, fused_attention


@dataclass(frozen=True, slots=True)
class Counted:
    """``flops`` (two for a multiplication and addition), most ``bytes`` alive at once, and ``operators``."""

    flops: int
    bytes: int
    operators: int


def flops(run: Callable[[], object]) -> int:
    """FLOPs of one run."""
    with fused_attention(), FlopCounter() as found:
        run()
    return found.total


def alive(run: Callable[[], object]) -> PeakMemoryMode:
    """Bytes and operators of one run."""
    with fused_attention(), PeakMemoryMode() as found:
        run()
    return found


def counted(run: Callable[[], object]) -> Counted:
    """All of them in one run. Bytes are counted first: to know their FLOPs, some operators are taken apart."""
    with fused_attention(), FlopCounter() as found, PeakMemoryMode() as live:
        run()
    return Counted(found.total, live.peak, live.operators)
