"""Which checkpoint of a run is the best: scores of validation, in which an absent person or face always loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ERROR_WEIGHT = 10  # of the key-point error beside CSIM
ABSENT_ERROR = 1.0  # key-point error of a frame without a person: the whole side of the image


def summarize(clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of ``scores.jsonl`` from the rows of its clips.

    ``score`` is CSIM less ten times the key-point error, None if neither was measured. A frame without a person counts
    as an error of 1; a frame without a face counts as a CSIM of 0 already. ``absent`` is true if no frame of any clip
    shows a person, or none a face, where a detector looked for one.
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
    """The step with the best score among ``steps``, the later of two equal ones; None if none was scored.

    A checkpoint that shows no person or no face ranks below every other one that was scored.
    """
    known = set(steps)
    scored = [row for row in rows if row["step"] in known and row.get("score") is not None]
    measured = any(row.get("keypoint_error") is not None for row in scored)

    def rank(row: Mapping[str, Any]) -> tuple[bool, float, int]:
        # rows of earlier versions have no ``absent``: there a person was missing where the error is
        absent = row.get("absent", measured and row.get("keypoint_error") is None)
        return not absent, row["score"], row["step"]

    return max(scored, key=rank)["step"] if scored else None


def unscored(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Steps that were validated without a score: nothing tells whether they are good, so they are not deleted."""
    return {row["step"] for row in rows if row.get("score") is None}


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that were measured; None if none was."""
    known = _known(values)
    return sum(known) / len(known) if known else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
