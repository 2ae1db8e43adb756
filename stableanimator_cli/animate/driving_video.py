"""The driving motion of a plain video: people detected, tracked and numbered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stableanimator_cli.config.people import PeopleConfig
from stableanimator_cli.detect.capture import CaptureOptions, Detectors, extract_motion, pose_of
from stableanimator_cli.errors import ModelMissing, NoPerson
from stableanimator_cli.motion.align import align
from stableanimator_cli.motion.track import PersonSelector
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Motion


def depends_on_numbers(config: PeopleConfig) -> bool:
    """Whether options name people by number, or by their place among the chosen ones."""
    return config.names_faces is not None or isinstance(config.person, tuple)


def open_detectors(clip: Clip, opened: Callable[[], Detectors] | None) -> Detectors:
    """Open the detectors for a plain video. Raises ``ModelMissing`` that names it."""
    try:
        if opened is None:
            raise ModelMissing("no model was given")
        return opened()
    except ModelMissing as error:
        hint = (error.hint or "name a model with detectors", "if these are skeletons, add --motion-kind skeleton")
        message = f"{clip.path}: found a plain video, and {error.message}"
        raise ModelMissing(message, hint=hint, downloads=error.downloads) from None


def detect_motion(
    clip: Clip, person: PersonSelector, detectors: Detectors, reference: np.ndarray | None, reporter: Reporter,
    frames: tuple[int, int | None] = (0, None),
) -> Motion:  # fmt: skip
    """Detect the motion of ``person`` in a plain video; ``frames``: see ``CaptureOptions``. Nothing is aligned."""
    capture = extract_motion(clip, detectors, CaptureOptions(person=person, frames=frames), reporter=reporter)
    if capture.repairs.frames or capture.repairs.points or capture.repairs.gaps:
        reporter.info(f"{clip.path.name}: {capture.repairs.describe()}")
    if capture.found.max() > 1:
        tracked = "the largest is tracked"
        if person != "largest":
            tracked = f"tracked: {', '.join(map(str, capture.motion.track.tolist()))}"
        reporter.info(f"{clip.path.name}: up to {capture.found.max()} people, {tracked}")
    keypoints = None if reference is None else pose_of(reference, detectors)
    if reference is not None and keypoints is not None:
        try:
            alignment = align(capture.motion, keypoints, (reference.shape[1], reference.shape[0]), "none").after
        except NoPerson:  # too little in common to compare
            return capture.motion
        several = ", the largest person against the largest of the image" if len(capture.motion.track) > 1 else ""
        reporter.info(
            f"{clip.path.name}{several}: {alignment.describe()}; sa preprocess --align affine --reference aligns them"
        )
    return capture.motion
