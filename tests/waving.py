"""A scripted motion: a standing person who waves, 134 points a frame. ``python -m tests.waving OUT.npz [FRAMES]``."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.motion.keypoints import face_box
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.records import Motion

# OpenPose's 18 body points of somebody who stands, in shares of the frame: nose, neck, right arm, left arm, right leg,
# left leg, eyes, ears (right and left are the person's own; the right is at the picture's left)
_BODY = [
    (0.50, 0.17), (0.50, 0.27), (0.41, 0.28), (0.36, 0.40), (0.35, 0.52), (0.59, 0.28), (0.64, 0.40), (0.65, 0.52),
    (0.45, 0.53), (0.44, 0.72), (0.44, 0.91), (0.55, 0.53), (0.56, 0.72), (0.56, 0.91),
    (0.48, 0.155), (0.52, 0.155), (0.455, 0.165), (0.545, 0.165),
]  # fmt: skip
_FEET = [(0.57, 0.945), (0.59, 0.94), (0.55, 0.93), (0.43, 0.945), (0.41, 0.94), (0.45, 0.93)]


def waving(frames: int, size: tuple[int, int] = (512, 512), fps: Fraction = Fraction(25)) -> Motion:
    """The left arm goes up and waves twice a second, the head nods a little; everything else stands still."""
    keypoints = np.ones((frames, 1, 134, 3), np.float32)
    boxes = np.zeros((frames, 1, 4), np.float32)
    for index in range(frames):
        seconds = float(index / fps)
        points = _standing()
        elbow = points[5] + 0.13 * _direction(-20)
        wrist = elbow + 0.13 * _direction(-80 + 30 * np.sin(4 * np.pi * seconds))
        points[6], points[7] = elbow, wrist
        points[92:113] = _hand(wrist, _direction(-85 + 30 * np.sin(4 * np.pi * seconds)))
        points[[0, *range(14, 18), *range(24, 92)], 1] += 0.004 * np.sin(2 * np.pi * seconds)
        keypoints[index, 0, :, :2] = points * size
        boxes[index, 0] = face_box(keypoints[index, 0])
    return Motion(
        keypoints=keypoints,
        present=np.ones((frames, 1), bool),
        track=np.zeros(1, np.int64),
        face_boxes=boxes,
        size=size,
        times=tuple(index / fps for index in range(frames)),
    )


def _standing() -> np.ndarray:
    points = np.zeros((134, 2))
    points[:18], points[18:24] = _BODY, _FEET
    points[24:92] = _face(np.array([0.5, 0.165]), np.array([0.042, 0.055]))
    points[92:113] = _hand(points[7], _direction(90))
    points[113:134] = _hand(points[4], _direction(90))
    return points


def _face(centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """68 points in iBUG's order: jaw, brows, nose, eyes, mouth."""
    jaw = [(np.cos(a), np.sin(a)) for a in np.linspace(np.pi, 0, 17)]
    brows = [(x, -0.55) for x in (*np.linspace(-0.7, -0.2, 5), *np.linspace(0.2, 0.7, 5))]
    nose = [(0, y) for y in np.linspace(-0.3, 0.1, 4)] + [(x, 0.2) for x in np.linspace(-0.2, 0.2, 5)]
    ring = [(np.cos(a), np.sin(a)) for a in np.linspace(-np.pi, np.pi, 7)[:6]]
    eyes = [(side + 0.16 * x, -0.3 + 0.08 * y) for side in (-0.42, 0.42) for x, y in ring]
    mouth = [(w * np.cos(a), 0.5 + h * np.sin(a)) for w, h, n in ((0.35, 0.14, 13), (0.25, 0.06, 9))
             for a in np.linspace(-np.pi, np.pi, n)[: n - 1]]  # fmt: skip
    return centre + np.array(jaw + brows + nose + eyes + mouth) * radius


def _hand(wrist: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Wrist and five fingers of four points, spread about ``along``."""
    across = np.array([-along[1], along[0]])
    fingers = [
        wrist + along * reach * joint / 4 + across * spread * (0.4 + 0.15 * joint)
        for spread, reach in zip((-0.03, -0.015, 0.0, 0.013, 0.026), (0.035, 0.06, 0.065, 0.06, 0.05), strict=True)
        for joint in (1, 2, 3, 4)
    ]
    return np.array([wrist, *fingers])


def _direction(degrees: float) -> np.ndarray:
    """Unit vector; 0 is right, 90 is down."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


if __name__ == "__main__":
    print(save_motion(Path(sys.argv[1]), waving(int(sys.argv[2]) if len(sys.argv) > 2 else 48)))
