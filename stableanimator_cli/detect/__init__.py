"""Detection without torch: ONNX sessions, faces, people and their key points, a video turned into a motion."""

from __future__ import annotations

import os

# ONNX Runtime reads this while it is first imported, and otherwise leaves an id and a database in the user's cache.
# It stands here because this file runs before any room of the package, whichever of them is imported first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

THRESHOLD = 0.3
"""The smallest score of a person (objectness times class)."""
