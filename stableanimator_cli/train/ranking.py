"""Rank the checkpoints of a run by validation. A missing person or face always ranks last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ERROR_WEIGHT = 10  # weight of the keypoint error relative to CSIM
ABSENT_ERROR = 1.0  # keypoint error of a frame without a person: the full side of the image


def summarize(clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of ``scores.jsonl`` from the rows of its clips.

    ``score`` is CSIM minus ten times the keypoint error, None if neither was measured. Frames without a person count
    as an error of 1, frames without a face as a CSIM of 0. ``absent``: the detector found no person in any frame, or no
    face in any frame.
    """
    csim, error = mean(row["csim"] for row in clips), mean(row["keypoint_error"] for row in clips)
    faces, people = (_known(row.get(name) for row in clips) for name in ("faces", "people"))
    errors = [
        (row["keypoint_error"] or 0.0) * row["people"] + ABSENT_ERROR * (1 - row["people"])
        for row in clips
        if row.get("people") is not None
    ]
    judged = csim is not None or bool(errors)
    return {
        "score": (csim or 0.0) - ERROR_WEIGHT * (mean(errors) or 0.0) if judged else None,
        "csim": csim,
        "keypoint_error": error,
        "absent": any(bool(shares) and max(shares) == 0 for shares in (faces, people)),
        "clips": list(clips),
    }


def best(rows: Sequence[Mapping[str, Any]], steps: Iterable[int]) -> int | None:
    """The step among ``steps`` with the best score, the later of equals; None if none has a score.

    Checkpoints without a person or a face rank last.
    """
    known = set(steps)
    scored = [row for row in rows if row["step"] in known and row.get("score") is not None]
    measured = any(row.get("keypoint_error") is not None for row in scored)

    def rank(row: Mapping[str, Any]) -> tuple[bool, float, int]:
        # rows of earlier versions have no ``absent``, but no error without a person
        absent = row.get("absent", measured and row.get("keypoint_error") is None)
        return not absent, row["score"], row["step"]

    return max(scored, key=rank)["step"] if scored else None


def unscored(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Steps that were validated without a score. They are not deleted, as their quality is unknown."""
    return {row["step"] for row in rows if row.get("score") is None}


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the measured values, None if there are none."""
    known = _known(values)
    return sum(known) / len(known) if known else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
