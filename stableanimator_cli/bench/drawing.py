"""How fast puppets are drawn: one core's frames a second by size, which decides whether a training draws as it goes."""

from __future__ import annotations

from collections.abc import Callable

from stableanimator_cli.bench.harness import time_interleaved
from stableanimator_cli.bench.results import Table
from stableanimator_cli.puppets.scene import sample_scene

SIDES = (64, 128, 256, 512)


def time_drawing(rounds: int, tick: Callable[[], object], *, frames: int = 16) -> Table:
    """Every size draws the same figure and motion, picture and truth, by turns."""
    scene = sample_scene("test", 0, frames=frames)

    def draws(side: int) -> Callable[[], None]:
        def drawn() -> None:
            for _ in scene.clip((side, side)):
                pass

        return drawn

    timed = time_interleaved({str(side): draws(side) for side in SIDES}, rounds, tick=tick)
    rows = [
        {
            "size": f"{side}x{side}",
            "frames per second": frames / timed.median(str(side)),
            "times the time of 128x128": timed.ratio(str(side), "128") if side != 128 else None,
        }
        for side in SIDES
    ]
    return Table(
        title=f"Drawing puppets: {frames} frames of one figure",
        rows=rows,
        note=f"{rounds} round(s), interleaved, on one core; each frame with its key points, faces and backdrop.",
    )
