"""How good a clip is to train on or to animate after: numbers, and what is wrong with them (``docs/formats.md``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from stableanimator_cli.motion.keypoints import BODY, bounding_box, visible
from stableanimator_cli.preprocess.visual_quality import Look
from stableanimator_cli.records import Motion

SHORTEST = 16
"""Frames: what training reads at once. Shorter clips cannot be trained on."""

_LIMITS = {
    "absent": 0.1,  # share of frames without the person
    "faceless": 0.5,  # share of the person's frames without a face
    "crowded": 0.2,  # share of frames with people who were not kept
    "unsure": 0.5,  # mean score of body points, below
    "jitter": 0.02,  # of the body's size, a frame
    "off_canvas": 0.3,  # share of seen points outside the frame
    "background": 4.0,  # grey levels a frame
    "sharpness": 20.0,  # variance of the Laplacian, below
    "repeated": 0.3,  # share of frames equal to the one before
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong with a clip. An ``error`` would break training on it, a ``warning`` would make it worse."""

    code: str
    severity: Literal["error", "warning"]
    text: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def measure(motion: Motion, found: np.ndarray | None, look: Look | None) -> dict[str, Any]:
    """The numbers of one clip. ``found`` int64[t] people detected in each frame, ``look`` what its pixels are like;
    both None where only the motion is known.

    ``confidence``: mean score of body points of people who are there, at most 1 each. ``jitter``: median over seen body
    points of the second difference in time, |a - 2b + c|, in shares of the body's size (the root of its box's area).
    ``off_canvas``: share of seen body points outside the frame. ``faceless``: share of the people's frames without a
    face box.
    """
    present, body = motion.present, motion.keypoints[:, :, BODY]
    seen = visible(body) & present[..., None]
    width, height = motion.size
    inside = ((body[..., :2] >= 0) & (body[..., :2] <= (width, height))).all(axis=-1)
    there = int(present.sum())
    numbers: dict[str, Any] = {
        "frames": len(motion),
        "people": int(present.any(axis=0).sum()),
        "absent": _share((~present.any(axis=1)).sum(), len(motion)),
        "confidence": round(float(body[..., 2][present].clip(0, 1).mean()), 4) if there else 0.0,
        "faceless": _share((present & np.isnan(motion.face_boxes).any(axis=-1)).sum(), there),
        "off_canvas": _share((seen & ~inside).sum(), int(seen.sum())),
        "jitter": _jitter(body, seen),
    }
    if found is not None:
        numbers["found"] = {"mean": round(float(found.mean()), 3), "most": int(found.max())}
        numbers["crowded"] = _share((found > present.sum(axis=1)).sum(), len(motion))
    return numbers if look is None else numbers | asdict(look)


def findings(numbers: Mapping[str, Any], shortest: int = SHORTEST) -> list[Finding]:
    """What is wrong, worst first."""
    told = []

    def add(wrong: bool, code: str, severity: Literal["error", "warning"], text: str) -> None:
        if wrong:
            told.append(Finding(code=code, severity=severity, text=text))

    frames = numbers["frames"]
    add(frames < shortest, "too-short", "error", f"{frames} frames, training reads {shortest} at once")
    add(numbers["absent"] == 1.0, "nobody", "error", "nobody in any frame")
    add(numbers["faceless"] == 1.0, "no-face", "error", "no face in any frame: nothing to learn an identity from")
    add(_LIMITS["absent"] < numbers["absent"] < 1, "absent", "warning",
        f"nobody in {numbers['absent']:.0%} of the frames")  # fmt: skip
    add(_LIMITS["faceless"] < numbers["faceless"] < 1, "faceless", "warning",
        f"no face in {numbers['faceless']:.0%} of the person's frames")  # fmt: skip
    add(0 < numbers["confidence"] < _LIMITS["unsure"], "unsure", "warning",
        f"body points score {numbers['confidence']:.2f} on average")  # fmt: skip
    add((numbers["jitter"] or 0) > _LIMITS["jitter"], "jitter", "warning",
        f"points jump by {numbers['jitter']:.1%} of the body a frame; --smooth 2 calms them"
        if numbers["jitter"] else "")  # fmt: skip
    add(numbers["off_canvas"] > _LIMITS["off_canvas"], "off-canvas", "warning",
        f"{numbers['off_canvas']:.0%} of the seen points lie outside the frame")  # fmt: skip
    crowded = numbers.get("crowded", 0.0)
    add(crowded > _LIMITS["crowded"], "crowded", "warning", f"other people in {crowded:.0%} of the frames")
    background = numbers.get("background")
    add(background is not None and background > _LIMITS["background"], "moving-background", "warning",
        f"the background changes by {background or 0:.1f} grey levels a frame")  # fmt: skip
    sharpness = numbers.get("sharpness")
    add(sharpness is not None and sharpness < _LIMITS["sharpness"], "blurred", "warning",
        f"sharpness {sharpness or 0:.0f}, below {_LIMITS['sharpness']:.0f}")  # fmt: skip
    repeated = numbers.get("repeated", 0.0)
    add(repeated > _LIMITS["repeated"] and frames > 1, "repeated", "warning",
        f"{repeated:.0%} of the frames repeat the one before")  # fmt: skip
    return sorted(told, key=lambda one: one.severity)


def _share(part: Any, whole: int) -> float:
    return round(float(part) / whole, 4) if whole else 0.0


def _jitter(body: np.ndarray, seen: np.ndarray) -> float | None:
    """None where no point is seen in three frames running."""
    if len(body) < 3:
        return None
    boxes = bounding_box(body).astype(np.float64)
    size = np.sqrt(np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1))[1:-1, :, None]
    bend = np.linalg.norm(body[:-2, ..., :2] - 2 * body[1:-1, ..., :2] + body[2:, ..., :2], axis=-1)
    known = seen[:-2] & seen[1:-1] & seen[2:] & (np.nan_to_num(size) > 0)
    if not known.any():
        return None
    return round(float(np.median((bend / np.where(known, size, 1.0))[known])), 5)
