"""Small motions for the tests of files."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from stableanimator_cli.motion import keypoints as kp
from stableanimator_cli.records import Motion


def random_motion(
    *, frames: int = 3, people: int = 2, timed: bool = True, size: tuple[int, int] = (320, 240)
) -> Motion:
    """A motion of random points all over the frame; the last person misses the first frame."""
    rng = np.random.default_rng(frames * 10 + people)
    keypoints = rng.random((frames, people, kp.COUNT, 3), np.float32)
    keypoints[..., :2] = keypoints[..., :2] * np.array(size, np.float32) * 1.2 - 10
    present = np.ones((frames, people), bool)
    if people > 1:
        present[0, -1] = False
    keypoints[~present] = 0
    return Motion(
        keypoints=keypoints,
        present=present,
        track=np.arange(people) * 3 + 1,
        face_boxes=np.where(present[..., None], kp.face_box(keypoints), np.float32(np.nan)),
        size=size,
        times=tuple(Fraction(1001 * i, 30000) for i in range(frames)) if timed else None,
    )


def assert_equal(left: Motion, right: Motion) -> None:
    for name in ("keypoints", "present", "track", "face_boxes"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert left.size == right.size
    assert left.times == right.times
