"""Train the small networks on data with portraits: ``python -m tools.puppet_training.detectors``.

``pose`` and ``person`` suffer from the portrait framing; the face detector and both recognisers do not. Arguments and
files are those of ``tools.figure_networks.detectors``, whose checkpoints are of other data: name another ``--work``.
"""

from __future__ import annotations

import sys
from functools import partial

from tools.command import exit_code_of
from tools.figure_networks.boxes import FaceTask, PersonTask
from tools.figure_networks.data import Recipe, draw_frames
from tools.figure_networks.detectors import parse, run
from tools.figure_networks.pose import PoseTask

FRAMES = Recipe(name="frames-portraits", shards=240, draw=partial(draw_frames, portraits=0.35))


class Pose(PoseTask):
    recipes = (FRAMES,)


class Person(PersonTask):
    recipes = (FRAMES,)


class Face(FaceTask):
    recipes = (FRAMES,)


TASKS = (Pose, Person, Face)


def main() -> None:
    options = parse(None, [task.name for task in TASKS], "Train the small networks on data with portraits.")
    chosen = [task for task in TASKS if not options.tasks or task.name in options.tasks]
    run(chosen, options.work, options.out, threads=options.threads, workers=options.workers)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
