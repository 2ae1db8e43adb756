"""Detectors that a video of people needs, by role of a model."""

from __future__ import annotations

from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.records import ModelFolder

ROLES = ("person_detector", "pose_detector")


def require_detectors(model: ModelFolder) -> None:
    """Raise ``ModelMissing`` if the model lacks the person or the pose detector."""
    missing = [role for role in ROLES if role not in model.files]
    if missing:
        problem, hint = " and no ".join(missing), "`sa models pull dwpose`, or --model puppet for drawn figures"
        raise ModelMissing(f"model {model.name} has no {problem} here", hint=hint, downloads=("dwpose",))
