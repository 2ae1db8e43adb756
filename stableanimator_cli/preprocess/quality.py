"""Quality of a clip as training data or driving motion: numbers and findings (``docs/formats.md``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from stableanimator_cli.motion.keypoints import BODY, bounding_box, visible
from stableanimator_cli.preprocess.visual_quality import VisualQuality
from stableanimator_cli.records import Motion

SHORTEST = 16
"""Frames that training reads at once. Shorter clips cannot be trained on."""

_LIMITS = {
    "absent": 0.1,  # share of frames without the person
    "faceless": 0.5,  # share of the person's frames without a face
    "crowded": 0.2,  # share of frames with people who were not selected
    "unsure": 0.5,  # mean score of body points, below
    "jitter": 0.02,  # of the body's size, per frame
    "off_canvas": 0.3,  # share of visible points outside the frame
    "background": 4.0,  # grey levels per frame
    "sharpness": 20.0,  # variance of the Laplacian, below
    "repeated": 0.3,  # share of frames equal to the one before
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFinding:
    """A flaw of a clip. An ``error`` would break training on it, a ``warning`` would make training worse."""

    code: str
    severity: Literal["error", "warning"]
    text: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def measure_quality(motion: Motion, found: np.ndarray | None, visual: VisualQuality | None) -> dict[str, Any]:
    """The numbers of one clip. ``found`` int64[t]: people detected per frame; None, as ``visual``, if unknown.

    ``confidence``: mean score of body points of present people, at most 1 each. ``jitter``: median over visible body
    points of the second difference in time, |a - 2b + c|, relative to the root of the body's box area.
    ``off_canvas``: share of visible body points outside the frame. ``faceless``: share of the people's frames without a
    face box.
    """
    present, body = motion.present, motion.keypoints[:, :, BODY]
    seen = visible(body) & present[..., None]
    width, height = motion.size
    inside = ((body[..., :2] >= 0) & (body[..., :2] <= (width, height))).all(axis=-1)
    count = int(present.sum())
    numbers: dict[str, Any] = {
        "frames": len(motion),
        "people": int(present.any(axis=0).sum()),
        "absent": _fraction((~present.any(axis=1)).sum(), len(motion)),
        "confidence": round(float(body[..., 2][present].clip(0, 1).mean()), 4) if count else 0.0,
        "faceless": _fraction((present & np.isnan(motion.face_boxes).any(axis=-1)).sum(), count),
        "off_canvas": _fraction((seen & ~inside).sum(), int(seen.sum())),
        "jitter": _jitter(body, seen),
    }
    if found is not None:
        numbers["found"] = {"mean": round(float(found.mean()), 3), "most": int(found.max())}
        numbers["crowded"] = _fraction((found > present.sum(axis=1)).sum(), len(motion))
    return numbers if visual is None else numbers | asdict(visual)


def findings(numbers: Mapping[str, Any], shortest: int = SHORTEST) -> list[ClipFinding]:
    """Everything wrong with a clip of these ``numbers``, errors first. The texts are part of ``clip.json``."""
    frames, absent, faceless = numbers["frames"], numbers["absent"], numbers["faceless"]
    jitter, background, sharpness = numbers["jitter"] or 0.0, numbers.get("background") or 0.0, numbers.get("sharpness")
    crowded, repeated = numbers.get("crowded") or 0.0, numbers.get("repeated") or 0.0
    errors = {
        "too-short": (frames < shortest, f"{frames} frames, training reads {shortest} at once"),
        "nobody": (absent == 1, "no person in any frame"),
        "no-face": (faceless == 1, "no face in any frame: nothing to learn an identity from"),
    }
    warnings = {
        "absent": (_LIMITS["absent"] < absent < 1, f"no person in {absent:.0%} of the frames"),
        "faceless": (_LIMITS["faceless"] < faceless < 1, f"no face in {faceless:.0%} of the person's frames"),
        "unsure": (
            0 < numbers["confidence"] < _LIMITS["unsure"],
            f"body points score {numbers['confidence']:.2f} on average",
        ),
        "jitter": (
            jitter > _LIMITS["jitter"],
            f"points jump by {jitter:.1%} of the body per frame; --smooth 2 reduces this",
        ),
        "off-canvas": (
            numbers["off_canvas"] > _LIMITS["off_canvas"],
            f"{numbers['off_canvas']:.0%} of the visible points are outside the frame",
        ),
        "crowded": (crowded > _LIMITS["crowded"], f"other people in {crowded:.0%} of the frames"),
        "moving-background": (
            background > _LIMITS["background"],
            f"the background changes by {background:.1f} grey levels per frame",
        ),
        "blurred": (
            sharpness is not None and sharpness < _LIMITS["sharpness"],
            f"sharpness {sharpness or 0:.0f}, below {_LIMITS['sharpness']:.0f}",
        ),
        "repeated": (
            repeated > _LIMITS["repeated"] and frames > 1,
            f"{repeated:.0%} of the frames repeat the one before",
        ),
    }
    return [
        *(ClipFinding(code=code, severity="error", text=text) for code, (wrong, text) in errors.items() if wrong),
        *(ClipFinding(code=code, severity="warning", text=text) for code, (wrong, text) in warnings.items() if wrong),
    ]


def _fraction(count: Any, total: int) -> float:
    return round(float(count) / total, 4) if total else 0.0


def _jitter(body: np.ndarray, seen: np.ndarray) -> float | None:
    """None if no point is visible in three consecutive frames."""
    if len(body) < 3:
        return None
    boxes = bounding_box(body).astype(np.float64)
    size = np.sqrt(np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1))[1:-1, :, None]
    bend = np.linalg.norm(body[:-2, ..., :2] - 2 * body[1:-1, ..., :2] + body[2:, ..., :2], axis=-1)
    known = seen[:-2] & seen[1:-1] & seen[2:] & (np.nan_to_num(size) > 0)
    if not known.any():
        return None
    return round(float(np.median((bend / np.where(known, size, 1.0))[known])), 5)
