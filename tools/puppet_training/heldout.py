"""The fixed list of 50 held-out portrait clips, chosen from a seed before any training.

``python -m tools.puppet_training.heldout`` writes ``heldout.json`` again. Scenes are from the test split, in a range of
indices that no other list uses. At least four of the eight frames of each clip show a face.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stableanimator_cli.puppets.sample import derive_rng
from stableanimator_cli.puppets.scene import Scene, sample_scene

LIST = Path(__file__).with_name("heldout.json")
SIZE = (256, 256)
FRAMES = 8
_FIRST = 120_000


def select_clips(seed: int = 17, count: int = 50) -> list[dict[str, int]]:
    """Choose ``count`` clips: an index of the test split, and which clip of that scene."""
    rng = derive_rng("held-out portraits", seed)
    chosen: list[dict[str, int]] = []
    for index in rng.permutation(20_000):
        entry = {"index": _FIRST + int(index), "clip": int(rng.integers(1000))}
        if sum(np.isfinite(frame.face_boxes).all() for frame in open_scene(entry).clip()) >= FRAMES // 2:
            chosen.append(entry)
        if len(chosen) == count:
            break
    return chosen


def open_scene(entry: dict[str, int], split: str = "test", size: tuple[int, int] = SIZE) -> Scene:
    """Open the scene of an entry of the list; split ``val`` gives other people to choose settings on."""
    return sample_scene(split, entry["index"], clip=entry["clip"], frames=FRAMES, size=size, framing="portrait")


def read_list() -> list[dict[str, int]]:
    """Read the list in the repository."""
    return json.loads(LIST.read_text(encoding="utf-8"))


if __name__ == "__main__":
    LIST.write_text("[\n" + ",\n".join(map(json.dumps, select_clips())) + "\n]\n", encoding="utf-8")
