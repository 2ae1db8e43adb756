"""Turn of the head, estimated from nose and eyes, for similarity against the head's angle."""

from __future__ import annotations

import numpy as np

from stableanimator_cli.metrics.motion import SEEN
from stableanimator_cli.motion.keypoints import INDEX

_NOSE, _RIGHT, _LEFT = INDEX["nose"], INDEX["right_eye"], INDEX["left_eye"]


def head_yaw(points: np.ndarray) -> np.ndarray:
    """Turn of the head in degrees, float64[t] in -90..90, positive to the right of the image; 0 faces the viewer.

    ``points`` are float[t,134,3] in pixels. NaN unless the nose and both eyes are seen. An average adult's nose is
    about as far in front of the eyes as each eye is from the middle (32 mm). The tangent of the turn is then the
    distance of the nose from the middle of the eyes, along the eyes' line, divided by half of the eyes' distance.
    """
    points = np.asarray(points, np.float64)
    nose, right, left = (points[:, index, :2] for index in (_NOSE, _RIGHT, _LEFT))
    half = (left - right) / 2  # the person's left eye is on the right of the image
    distance = np.linalg.norm(half, axis=-1)
    used = points[:, (_NOSE, _RIGHT, _LEFT)]
    seen = (used[..., 2] > SEEN).all(axis=-1) & np.isfinite(used).all(axis=(-2, -1)) & (distance > 0)
    along = ((nose - (left + right) / 2) * half).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        yaw = np.degrees(np.arctan(along / distance**2))
    return np.where(seen, yaw, np.nan)
