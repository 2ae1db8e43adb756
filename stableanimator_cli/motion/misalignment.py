"""Distance between a motion and a reference image, as one number (``docs/formats.md``, "Misalignment")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.keypoints import COUNT, visible
from stableanimator_cli.motion.limb_lengths import GROUPS, lengths, ratios, shoulder_width
from stableanimator_cli.records import Motion

LARGEST_RATIO = 4.0
"""A length that differs more counts as differing this many times."""

_ANCHORS = (1, 0, 14, 15, 16, 17, 2, 5, 8, 11)  # neck, nose, eyes, ears, shoulders, hips: the first visible one


@dataclass(frozen=True, slots=True, kw_only=True)
class Misalignment:
    """``limbs``: mean of the absolute log ratios of lengths, over ``groups`` (reference / motion, by name);
    ``place``: the distance between the anchor in the motion and in the reference, in shoulder widths of the reference.
    NaN if the two have nothing in common to compare."""

    limbs: float
    place: float
    groups: Mapping[str, float]

    @property
    def number(self) -> float:
        """0 where the same body is at the same place; 0.1 is hard to see, 1 is a body of another size elsewhere."""
        return self.limbs + self.place

    def describe(self) -> str:
        """One line."""
        if math.isnan(self.number):
            return "misalignment unknown: reference and motion show no common limb or place"
        off = ", ".join(f"{name} x{ratio:.2f}" for name, ratio in self.groups.items())
        return f"misalignment {self.number:.2f}: limbs {self.limbs:.2f} ({off}), place {self.place:.2f} shoulder widths"

    def to_json(self) -> dict[str, Any]:
        def known(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            "number": known(self.number),
            "limbs": known(self.limbs),
            "place": known(self.place),
            "groups": dict(self.groups),
        }


def misalignment(motion: Motion, reference: np.ndarray, size: tuple[int, int], person: int = 0) -> Misalignment:
    """Compare ``person`` (an index in the motion) with a reference float[134,3] in an image of ``size`` (w, h).

    A motion of another size is first scaled and centred, as ``--resize pad`` does.
    """
    if tuple(motion.size) != tuple(size):
        motion = resize_transform(motion.size, size, "pad").transform_motion(motion)
    points = motion.keypoints[motion.present[:, person], person].astype(np.float64)
    return compare(points, np.asarray(reference, np.float64))


def compare(points: np.ndarray, reference: np.ndarray) -> Misalignment:
    """``misalignment`` of one person float64[t,134,3] in frames with that person, and float64[134,3], in one frame's
    pixels."""
    body = lengths(reference)
    each = ratios(body, lengths(points))
    groups = {}
    for group, names in GROUPS.items():
        logs = [math.log(each[name]) for name in names if not math.isnan(each[name])]
        if logs:
            groups[group] = math.exp(float(np.median(logs)))
    bound = math.log(LARGEST_RATIO)
    limbs = float(np.mean([min(abs(math.log(r)), bound) for r in groups.values()])) if groups else math.nan
    return Misalignment(limbs=limbs, place=_place(points, reference, shoulder_width(body)), groups=groups)


def _place(points: np.ndarray, reference: np.ndarray, unit: float) -> float:
    shown = visible(reference.reshape(COUNT, 3))
    seen = visible(points) if len(points) else np.zeros((0, COUNT), bool)
    for share in (0.5, 0.0):  # an anchor that is visible in half of the frames, or else in any
        for anchor in _ANCHORS:
            if shown[anchor] and seen[:, anchor].sum() > share * len(points):
                middle = np.median(points[seen[:, anchor], anchor, :2], axis=0)
                return float(np.linalg.norm(middle - reference[anchor, :2]) / unit)
    return math.nan
