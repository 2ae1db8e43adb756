"""Speed of drawing puppets: frames per second of one core, by size."""

from __future__ import annotations

from collections.abc import Callable

from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.results import Table
from stableanimator_cli.puppets.scene import sample_scene

SIDES = (64, 128, 256, 512)


def time_drawing(bench: BenchRun, *, frames: int = 16) -> Table:
    """Time drawing of the same figure and motion, images and ground truth, at several sizes."""
    scene = sample_scene("test", 0, frames=frames)

    def draws(side: int) -> Callable[[], None]:
        def drawn() -> None:
            for _ in scene.clip((side, side)):
                pass

        return drawn

    timed = bench.time({str(side): draws(side) for side in SIDES})
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
        note=f"{bench.rounds} round(s), interleaved, on one core; each frame with its keypoints, faces and backdrop.",
    )
