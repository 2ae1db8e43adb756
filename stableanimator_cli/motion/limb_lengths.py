"""Lengths of a body, by which the builds of two people are compared.

An image shows limbs foreshortened, never lengthened. So a length is that of the longer side of the body, and a high
percentile over the frames of a clip, which a few wrong points do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from stableanimator_cli.motion.keypoints import COUNT, FACE, LEFT_HAND, RIGHT_HAND, visible

PERCENTILE = 90.0

Ends = tuple[tuple[int, ...], tuple[int, ...]]  # a length is measured between the centres of two groups of points

_BRIDGE, _CHIN = FACE.start + 27, FACE.start + 8
_KNUCKLE = 9  # of the middle finger
SEGMENTS: Mapping[str, tuple[Ends, ...]] = MappingProxyType(
    {
        "shoulders": (((2,), (5,)),),
        "hips": (((8,), (11,)),),
        "trunk": (((1,), (8, 11)),),
        "upper_arm": (((2,), (3,)), ((5,), (6,))),
        "forearm": (((3,), (4,)), ((6,), (7,))),
        "thigh": (((8,), (9,)), ((11,), (12,))),
        "shin": (((9,), (10,)), ((12,), (13,))),
        "neck": (((1,), (0,)),),
        "eyes": (((14,), (15,)),),
        "ears": (((16,), (17,)),),
        "face": (((_BRIDGE,), (_CHIN,)),),
        "hand": tuple(((part.start,), (part.start + _KNUCKLE,)) for part in (RIGHT_HAND, LEFT_HAND)),
    }
)
"""Ends of each length by name: of one, or of those of the right and the left side."""

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shoulders": ("shoulders",),
        "hips": ("hips",),
        "trunk": ("trunk",),
        "arms": ("upper_arm", "forearm"),
        "legs": ("thigh", "shin"),
        "head": ("neck", "eyes", "ears"),
    }
)
"""Groups of lengths by which two bodies are compared; each group counts once."""


def lengths(points: np.ndarray) -> dict[str, float]:
    """The lengths in pixels of one person float[t,134,3] in t frames (an image is t = 1); NaN if never visible.

    Each is the 90th percentile over the frames in which both ends are visible, and the longer one of two sides.
    """
    points = np.asarray(points, np.float64).reshape(-1, COUNT, 3)
    seen = visible(points)
    found = {}
    for name, sides in SEGMENTS.items():
        longest = np.nan
        for start, end in sides:
            shown = seen[:, [*start, *end]].all(axis=1)
            if shown.any():
                across = points[shown][:, end, :2].mean(axis=1) - points[shown][:, start, :2].mean(axis=1)
                longest = np.fmax(longest, np.percentile(np.linalg.norm(across, axis=-1), PERCENTILE))
        found[name] = float(longest)
    return found


def ratios(reference: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """reference / other of each length; NaN if one of them is unknown or zero."""
    return {
        name: reference[name] / other[name] if reference[name] > 0 and other[name] > 0 else float("nan")
        for name in SEGMENTS
    }


def shoulder_width(lengths_: Mapping[str, float]) -> float:
    """A body's shoulder width in pixels, NaN if it cannot be estimated.

    For a side view it is estimated from the trunk (about 1.4 shoulder widths), for a head alone from the ears (0.42) or
    the eyes (0.2).
    """
    body = np.fmax(lengths_["shoulders"], lengths_["trunk"] / 1.4)
    if np.isnan(body):
        body = np.fmax(lengths_["ears"] / 0.42, lengths_["eyes"] / 0.2)
    return float(body)
