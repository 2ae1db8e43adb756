"""``report.html`` of an evaluation: the tables, then every video with its curves, the worst first.

Nothing is loaded from outside. Side-by-side videos and worst frames are linked from ``videos/`` and ``pictures/``;
curves are drawn in the page, thinned to what a line of that width can show. The page stays usable with 1,000 videos.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from stableanimator_cli import html_pages
from stableanimator_cli.evaluate.ranking import worst_first
from stableanimator_cli.evaluate.report import TOOL
from stableanimator_cli.evaluate.scores import PAGE, Scores, number
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.evaluate.side_by_side import FOLDER, PICTURES, WorstFrame

_MAX_STRETCHES = 60  # of a long curve, two points each: the drawing is some 500 pixels wide
PLOTS = (
    (("csim_ref",), "similarity to the reference"),
    (("psnr",), "PSNR, dB"),
    (("change_truth", "change"), "change from frame to frame (the truth's in grey; borders in red)"),
    (("keypoint_error",), "key-point error, shares of the person"),
)


def write_page(scores: Scores, images: Mapping[str, Sequence[WorstFrame]]) -> None:
    """Write the page. ``images`` are frames to show, by video."""
    metric, videos = worst_first(scores.videos)
    html_pages.write_page(
        scores.output / PAGE, "evaluate", "report",
        title=scores.title,
        tool=TOOL,
        tables=scores.shown(),
        definitions=[("Protocol", _protocol(scores)), ("What the numbers mean", _definitions(scores))],
        order=f"worst {metric} first" if metric else "in the order of their names",
        clips=(_clip(scores, video, images.get(video.name, ())) for video in videos),
    )  # fmt: skip


def _protocol(scores: Scores) -> Iterator[tuple[str, str]]:
    for key, value in scores.protocol.to_json().items():
        yield key.replace("_", " "), ", ".join(value) if isinstance(value, list | tuple) else str(value)


def _definitions(scores: Scores) -> Iterator[tuple[str, str]]:
    for name, row in scores.rows.items():
        about = "; ".join(f"{key} {value}" for key, value in row.about.items())
        yield name, f"{row.spec.definition}. Source: {row.spec.source}." + (f" ({about})" if about else "")


def _clip(scores: Scores, video: VideoScore, images: Sequence[WorstFrame]) -> dict[str, Any]:
    file = f"{video.name}.mp4"
    numbers = [f"{key} {number(value)}" for key, value in video.values.items() if not math.isnan(value)]
    return {
        "name": video.name,
        "video": _link(FOLDER, file) if (scores.output / FOLDER / file).is_file() else "",
        "images": [{"frame": i.frame, "why": i.why, "source": _link(PICTURES, i.path.name)} for i in images],
        "lines": ["; ".join([f"{video.frames} frames", *numbers]), *video.notes],
        "plots": list(_plots(video)),
    }


def _link(folder: str, name: str) -> str:
    return f"{folder}/{quote(os.fsencode(name))}"


def _plots(video: VideoScore) -> Iterator[dict[str, Any]]:
    """Lines over frames, with gaps where there is no value, and the places of borders."""
    total = max(1, video.frames - 1)
    for names, label in PLOTS:
        curves = [(key, video.curves[key]) for key in names if key in video.curves]
        values = [value for _, curve in curves for value in curve if value is not None]
        if not values:
            continue
        low, high = min([*values, 0.0]), max([*values, 0.0])
        span = (high - low) or 1.0
        lines = []
        for key, curve in curves:
            first = 1 if key.startswith("change") else 0
            for run in _runs(curve):
                points = (f"{100 * (i + first) / total:.2f},{39 - 38 * (v - low) / span:.2f}" for i, v in _thinned(run))
                lines.append((" ".join(points), key.endswith("_truth")))
        yield {
            "label": label,
            "range": f"{number(low)} to {number(high)}",
            "borders": [f"{100 * (border - 0.5) / total:.2f}" for border in video.borders],
            "lines": lines,
        }


def _thinned(run: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """A long run as the lowest and highest point of each stretch: dips of one frame stay to be seen."""
    if len(run) <= 2 * _MAX_STRETCHES:
        return run
    step = math.ceil(len(run) / _MAX_STRETCHES)
    selected: list[tuple[int, float]] = []
    for first in range(0, len(run), step):
        part = run[first : first + step]
        selected += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return selected


def _runs(curve: Sequence[float | None]) -> Iterator[list[tuple[int, float]]]:
    run: list[tuple[int, float]] = []
    for index, value in enumerate(curve):
        if value is not None:
            run.append((index, value))
        elif run:
            yield run
            run = []
    if run:
        yield run
