"""The shipped detectors on puppets they never saw, against the truth; ``tests.preprocess.truth`` prints more scenes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.detect.capture import ROLES, Detectors
from tests.preprocess import truth


@pytest.fixture(scope="module")
def detectors() -> Detectors:
    return Detectors.open(open_model("puppet", ROLES), "cpu", threads=1)


@pytest.mark.parametrize(
    ("name", "error", "within"),
    [("one, half", 0.06, 0.9), ("two people", 0.09, 0.8), ("leaving and coming back", 0.06, 0.9)],
)
def test_motion_faces_and_who_is_who_are_near_the_truth(detectors, name, error, within):
    scene = truth.scenes()[name]
    found = truth.compare(truth.look(scene, detectors).motion, scene.motion())
    print(name, found)
    assert found.error < error
    assert found.within > within
    assert found.present > 0.9
    assert found.face > 0.95
    assert found.switches == 0


def test_the_comparison_sees_what_is_wrong(detectors):
    motion = truth.scenes()["two people"].motion()
    same = truth.compare(motion, motion)
    assert (same.error, same.within, same.present, same.face, same.switches) == (0, 1, 1, 1, 0)
    swapped = motion.keypoints.copy()
    swapped[10:] = swapped[10:, ::-1]
    assert truth.compare(dataclasses.replace(motion, keypoints=swapped), motion).switches == 2
    off = motion.keypoints + np.float32([30, 0, 0])
    assert truth.compare(dataclasses.replace(motion, keypoints=off), motion).error > 0.1
