"""What is checked of all pairs before the first is scored, and which videos failed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stableanimator_cli.errors import BadInput, BatchFailed
from stableanimator_cli.evaluate.driving_points import read_poses
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.protocols import EvalProtocol
from stableanimator_cli.evaluate.scoring import check_clips
from stableanimator_cli.media import open_clip, read_picture
from stableanimator_cli.progress import Reporter

_SHOWN = 20  # problems that are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedVideo:
    """A video that could not be scored, and why."""

    name: str
    error: BadInput

    def to_json(self) -> dict[str, str | None]:
        return {"name": self.name, "error": self.error.code, "message": self.error.message, "hint": self.error.hint}


def check_pairs(pairs: Sequence[Pair], rules: EvalProtocol, *, truncate: bool, reporter: Reporter) -> None:
    """Open both videos of every pair, its reference picture and its motion, and compare sizes and counts.

    Nothing is scored unless all of them fit. Raises the first ``BadInput``; further ones are warnings before it.
    """
    problems = [problem for pair in pairs if (problem := _problem(pair, rules, truncate)) is not None]
    for problem in problems[1:_SHOWN]:
        reporter.warning(problem.message)
    if problems:
        raise problems[0]


def raise_if_none(failed: Sequence[FailedVideo], scored: int) -> None:
    """Raise if no video could be scored: the error of the only one, or ``BatchFailed``."""
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
        truth = None if pair.target is None else open_clip(pair.target)
        check_clips(clip, truth, rules, truncate=truncate)
        if pair.reference is not None:
            read_picture(pair.reference)
        if pair.poses is not None:
            read_poses(pair.poses)
    except BadInput as error:
        return error
    return None
