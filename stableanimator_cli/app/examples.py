"""Examples for the first press of the button: drawn people for ``puppet``, and their motions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from stableanimator_cli.media import write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.scene import sample_scene

FIGURES = {10: "wave", 11: "talk", 12: "dance"}  # people of the test split, whom no training saw, and their movements
COUPLE = 13  # two people, to be animated together
FRAMES, SIZE = 12, (256, 256)


class Example(NamedTuple):
    picture: Path
    motion: Path


def draw_examples(folder: Path) -> list[Example]:
    """Write a picture and a motion per example into ``folder``."""
    examples = []
    scenes = {
        move: sample_scene("test", figure, size=SIZE, frames=FRAMES, framing="portrait", behaviour=move)
        for figure, move in FIGURES.items()
    }
    scenes["couple"] = sample_scene("test", COUPLE, people=2, size=SIZE, frames=FRAMES, framing="portrait")
    for number, (move, scene) in enumerate(scenes.items(), 1):
        example = Example(folder / f"person-{number}.png", folder / f"{move}-{number}.npz")
        write_image(example.picture, scene.reference((2 * SIZE[0], 2 * SIZE[1])).image)
        save_motion(example.motion, scene.motion())
        examples.append(example)
    return examples
