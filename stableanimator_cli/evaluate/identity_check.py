"""Requirements of faces: one in each reference image, one in some video, and the similarity of ``--min-csim``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.errors import CheckFailed, ModelMissing, NoFace, SaError
from stableanimator_cli.evaluate.detections import VideoDetector
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.people import PersonScore
from stableanimator_cli.evaluate.scores import number
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.media import read_image


def check_recogniser(config: EvaluateConfig, detector: VideoDetector) -> None:
    """Raise ``ModelMissing`` if ``--min-csim`` cannot be measured, or ``--face-paste`` finds no faces."""
    for flag, is_given in (("--min-csim", config.min_csim is not None), ("--face-paste", config.face_paste)):
        if is_given and detector.reader is None:
            reason, command = detector.unavailable["faces"]
            raise ModelMissing(f"{flag}: found {reason}", hint=f"{command}, or leave {flag} out")


def check_references(pairs: Sequence[Pair], detector: VideoDetector) -> None:
    """Raise ``NoFace`` for the first reference image without a face, unless no recogniser is installed."""
    if detector.reader is None:
        return
    for path in dict.fromkeys(pair.reference for pair in pairs if pair.reference is not None):
        if math.isnan(detector.embed_largest_face(read_image(path))[0][0]):
            raise NoFace(
                f"{path}: no face found, which the videos are compared with",
                hint="give the image that was animated, or one in which the face is larger",
            )


def failure(videos: Sequence[VideoScore], config: EvaluateConfig) -> SaError | None:
    """The error that ends a run whose scores are written: identity below ``--min-csim``, or no face in any video that
    is scored without a ground truth. None if neither applies."""
    if config.min_csim is not None:
        return _below(videos, config.min_csim)
    if not config.without_target or not videos or not all(video.values.get("face_rate") == 0 for video in videos):
        return None
    path = videos[0].pair.predicted
    found = f"{path}: no frame shows a face" if len(videos) == 1 else f"none of {len(videos)} videos shows a face"
    return NoFace(f"{found}, identity is not measured", hint="the other scores were written; look at report.html")


def about(videos: Sequence[VideoScore], config: EvaluateConfig) -> dict[str, Any]:
    """The check as ``scores.json`` describes it; empty without one."""
    if config.min_csim is None:
        return {}
    failed = [video.name for video in _failed(videos, config.min_csim)]
    result = {"min_csim": config.min_csim, "result": "failed" if failed else "passed", "failed_videos": failed}
    return {"identity_check": result}


def _failed(videos: Sequence[VideoScore], minimum: float) -> list[VideoScore]:
    """Videos below the minimum, the lowest first, those without a face last."""
    below = [video for video in videos if not _similarity(video) >= minimum]  # NaN is no pass
    return sorted(below, key=lambda video: (math.isnan(_similarity(video)), _similarity(video)))


def _below(videos: Sequence[VideoScore], minimum: float) -> CheckFailed | None:
    failed = _failed(videos, minimum)
    if not failed:
        return None
    worst, value = failed[0], _similarity(failed[0])
    person = _weakest(worst.people) if worst.people else None
    of_whom = "" if person is None else f" of person {person.number}"
    problem = f"csim_ref{of_whom} is {number(value)}"
    if math.isnan(value):
        is_lost = (worst.values if person is None else person.values).get("face_rate") == 0
        missing = f"csim_ref{of_whom} has no value: no face in what it is compared with"
        problem = f"no frame shows a face{of_whom}" if is_lost else missing
    text = f"{worst.pair.predicted}: {problem}, --min-csim is {minimum:g}"
    if len(failed) > 1:
        text += f"; {len(failed)} of {len(videos)} videos do not reach it"
    return CheckFailed(text, hint="the scores were written; report.html shows the worst frames")


def _similarity(video: VideoScore) -> float:
    """The video's, of several people the lowest; NaN if one of them has none."""
    values = _weakest(video.people).values if video.people else video.values
    return values.get("csim_ref", math.nan)


def _weakest(people: Sequence[PersonScore]) -> PersonScore:
    """The person that decides the check: one without a similarity, else the one with the lowest."""
    return min(people, key=lambda one: (not math.isnan(one.values["csim_ref"]), one.values["csim_ref"]))
