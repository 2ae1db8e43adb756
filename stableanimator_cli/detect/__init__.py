"""Detection without torch: ONNX sessions, faces, people and their keypoints, the motion of a video."""

from __future__ import annotations

import os

# ONNX Runtime reads this at its first import, and otherwise leaves an id and a database in the user's cache.
# This file runs before every module of the package.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

THRESHOLD = 0.3
"""The minimum score of a person (objectness times class)."""
