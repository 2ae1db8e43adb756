"""The head's turn from nose and eyes, of a head that is turned in three dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from stableanimator_cli.metrics.head_angle import head_yaw
from stableanimator_cli.motion.keypoints import COUNT, INDEX


def _turned(yaw: float, roll: float = 0.0) -> np.ndarray:
    """float[1,134,3] of an average head (millimetres as pixels), turned by degrees."""
    head = {"nose": (0, 40, 32), "left_eye": (32, 0, 0), "right_eye": (-32, 0, 0)}
    points, y, r = np.zeros((1, COUNT, 3)), np.radians(yaw), np.radians(roll)
    for name, (x, down, depth) in head.items():
        across = x * np.cos(y) + depth * np.sin(y)
        points[0, INDEX[name]] = (
            200 + across * np.cos(r) - down * np.sin(r), 200 + across * np.sin(r) + down * np.cos(r), 1
        )  # fmt: skip
    return points


@pytest.mark.parametrize("yaw", [-60, -20, 0, 10, 45, 75])
@pytest.mark.parametrize("roll", [0, 25])
def test_a_turn_is_found_whatever_the_head_leans(yaw: float, roll: float) -> None:
    assert head_yaw(_turned(yaw, roll)) == pytest.approx([yaw], abs=1e-6)


def test_without_both_eyes_there_is_no_angle() -> None:
    points = np.concatenate([_turned(20)] * 3)
    points[0, INDEX["left_eye"], 2] = 0.1
    points[1, INDEX["nose"], 0] = np.nan
    points[2, INDEX["left_eye"]] = points[2, INDEX["right_eye"]]
    assert np.isnan(head_yaw(points)).all()
