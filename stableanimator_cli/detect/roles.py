"""Detectors that a video of people needs, by role of a model."""

from __future__ import annotations

from stableanimator_cli.catalogue.remedy import download_for, remedy
from stableanimator_cli.errors import ModelMissing
from stableanimator_cli.records import ModelFolder

ROLES = ("person_detector", "pose_detector")

BATCH = 16
"""Frames per call of the networks; at most three batches are in memory. Fixed, so that batches do not depend on the
machine or the number of workers."""
DETECTOR_SIDE = 640
"""Height and width of the person detector's input, if its file does not fix them."""
DETECTOR_BATCH = 8
"""Frames per run of the person detector."""
CROP = (288, 384)
"""Width and height of the pose detector's input, if its file does not fix them."""
POSE_BATCH = 16
"""People per run of the pose detector."""


def require_detectors(model: ModelFolder) -> None:
    """Raise ``ModelMissing`` if the model lacks the person or the pose detector."""
    missing = [role for role in ROLES if role not in model.files]
    if missing:
        problem = " and no ".join(missing)
        hint = f"{remedy(model, missing[0])}, or --model puppet for drawn figures"
        downloads = tuple(filter(None, (download_for(model, missing[0]),)))
        raise ModelMissing(f"model {model.name} has no {problem} here", hint=hint, downloads=downloads)
