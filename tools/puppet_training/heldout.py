"""The fixed lists of 50 held-out portraits and of 16 of two people, chosen from seeds before any training.

``python -m tools.puppet_training.heldout`` writes ``heldout.json`` and ``heldout_people.json`` again. Scenes are from
the test split, in ranges of indices that no other list uses. At least four of the eight frames of each clip show the
faces of everybody.

``python -m tools.puppet_training.heldout FOLDER`` writes a folder for ``sa bench frontier --bench FOLDER --search 4
--clips 50``: four clips of other people, on which settings are chosen, before the fifty.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.media import VideoWriter, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.sample import derive_rng
from stableanimator_cli.puppets.scene import Scene, sample_scene
from tools.command import exit_code_of

LIST = Path(__file__).with_name("heldout.json")
LIST_OF_PEOPLE = Path(__file__).with_name("heldout_people.json")
SIZE = (256, 256)
FRAMES = 8
_FIRST, _FIRST_OF_PEOPLE = 120_000, 150_000
_RATE = Fraction(8)


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


def select_pairs(seed: int = 18, count: int = 16) -> list[dict[str, int]]:
    """Choose ``count`` clips of two people like ``select_clips``; the reference shows both faces, too."""
    rng = derive_rng("held-out pairs", seed)
    chosen: list[dict[str, int]] = []
    for index in rng.permutation(20_000):
        entry = {"index": _FIRST_OF_PEOPLE + int(index), "clip": int(rng.integers(1000)), "people": 2}
        scene = open_scene(entry)
        seen = [np.isfinite(frame.face_boxes).all() for frame in scene.clip()]
        if sum(seen) >= FRAMES // 2 and np.isfinite(scene.reference().face_boxes).all():
            chosen.append(entry)
        if len(chosen) == count:
            break
    return chosen


def open_scene(entry: dict[str, int], split: str = "test", size: tuple[int, int] = SIZE) -> Scene:
    """Open the scene of an entry of the list; split ``val`` gives other people to choose settings on."""
    people = entry.get("people", 1)
    return sample_scene(
        split, entry["index"], clip=entry["clip"], people=people, frames=FRAMES, size=size, framing="portrait"
    )


def read_list(path: Path = LIST) -> list[dict[str, int]]:
    """Read a list in the repository: ``LIST``, or ``LIST_OF_PEOPLE``."""
    return json.loads(path.read_text(encoding="utf-8"))


def _write_list(path: Path, entries: list[dict[str, int]]) -> None:
    path.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n", encoding="utf-8")


def write_bench(folder: Path, *, search: int = 4, count: int = 50) -> None:
    """Write the first ``search`` entries of split ``val``, then ``count`` of the list, as ``sa evaluate --bench`` reads
    them: lossless videos, references at twice their size, motions."""
    entries = [*((entry, "val") for entry in read_list()[:search]), *((entry, "test") for entry in read_list()[:count])]
    for name in ("videos", "references", "poses"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (entry, split) in enumerate(entries):
        scene, name = open_scene(entry, split), f"{number:03d}"
        with VideoWriter(folder / "videos" / f"{name}.mp4", SIZE, _RATE, lossless=True) as video:
            for frame in scene.clip():
                video.write(frame.image)
        write_image(folder / "references" / f"{name}.png", scene.reference((2 * SIZE[0], 2 * SIZE[1])).image)
        save_motion(folder / "poses" / f"{name}.npz", scene.motion())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training.heldout", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="write the clips of `sa bench frontier`, not the lists")
    options = parser.parse_args(arguments)
    if options.folder is not None:
        write_bench(options.folder)
        return
    _write_list(LIST, select_clips())
    _write_list(LIST_OF_PEOPLE, select_pairs())


if __name__ == "__main__":
    sys.exit(exit_code_of(main, resumes=False))
