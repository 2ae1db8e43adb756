"""Order of videos from the worst to the best, and a selection from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.metrics.result import METRICS

ORDER = ("csim_ref", "psnr", "face_rate", "keypoint_error", "seam_score", "flicker_distance")
"""Metrics that decide which video is the worst: the first of these that the videos have."""


def worst_first(videos: Sequence[VideoScore]) -> tuple[str | None, list[VideoScore]]:
    """The metric that decides, and the videos sorted by it; those without a value lead."""
    name = next((n for n in ORDER if any(not math.isnan(v.values.get(n, math.nan)) for v in videos)), None)
    if name is None:
        return None, list(videos)
    sign = 1 if METRICS[name].better == "higher" else -1

    def quality(video: VideoScore) -> float:
        value = video.values.get(name, math.nan)
        return -math.inf if math.isnan(value) else sign * value

    return name, sorted(videos, key=quality)


def select(videos: Sequence[VideoScore], count: int, rule: str | tuple[str, ...]) -> list[tuple[VideoScore, int]]:
    """``count`` of ``videos`` with their ranks, 1 for the worst. ``rule``: one of ``STRIP_RULES``, or names of videos.

    ``spread``: evenly spaced ranks from the worst to the best; of one, the median. A name that no video has is left
    out.
    """
    _, ranked = worst_first(videos)
    if not isinstance(rule, str):
        by_name = {video.name: (video, rank) for rank, video in enumerate(ranked, 1)}
        return [by_name[name] for name in rule if name in by_name]
    last, count = len(ranked) - 1, min(count, len(ranked))
    if rule == "spread" and count > 1:
        ranks = [int(rank) for rank in np.rint(np.linspace(0, last, count))]
    else:
        middle = (last + 1 - count) // 2  # a single one of the rule spread is the median too
        first = {"worst": 0, "best": last + 1 - count}.get(rule, middle)
        ranks = list(range(first, first + count))
    return [(ranked[rank], rank + 1) for rank in ranks]
