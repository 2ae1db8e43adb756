"""Checks of all pairs before the first is scored, and errors of videos that could not be scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stableanimator_cli.errors import BadInput, BatchFailed
from stableanimator_cli.evaluate.driving_points import read_poses
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.protocols import EvalProtocol
from stableanimator_cli.evaluate.scoring import check_clips
from stableanimator_cli.media import open_clip, read_image
from stableanimator_cli.progress import Reporter

_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedVideo:
    """A video that could not be scored, and why."""

    name: str
    error: BadInput

    def to_json(self) -> dict[str, str | None]:
        return {"name": self.name, "error": self.error.code, "message": self.error.message, "hint": self.error.hint}


def check_pairs(pairs: Sequence[Pair], rules: EvalProtocol, *, truncate: bool, reporter: Reporter) -> None:
    """Open the videos, reference image and motion of every pair, and compare sizes and counts.

    Raises the first ``BadInput``, after warnings about the others.
    """
    problems = [problem for pair in pairs if (problem := _problem(pair, rules, truncate)) is not None]
    for problem in problems[1:_MAX_WARNINGS]:
        reporter.warning(problem.message)
    if problems:
        raise problems[0]


def raise_if_none(failed: Sequence[FailedVideo], scored: int) -> None:
    """Raise the error of the only video, or ``BatchFailed``, if none could be scored."""
    if scored or not failed:
        return
    first = failed[0]
    if len(failed) == 1:
        raise first.error
    raise BatchFailed(
        f"none of {len(failed)} videos could be scored; the first is {first.name}: {first.error.message}",
        hint=first.error.hint,
    )


def _problem(pair: Pair, rules: EvalProtocol, truncate: bool) -> BadInput | None:
    try:
        clip = open_clip(pair.predicted)
        target = None if pair.target is None else open_clip(pair.target)
        check_clips(clip, target, rules, truncate=truncate)
        if pair.reference is not None:
            read_image(pair.reference)
        if pair.poses is not None:
            read_poses(pair.poses)
    except BadInput as error:
        return error
    return None
