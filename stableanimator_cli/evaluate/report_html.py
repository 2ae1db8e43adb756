"""``report.html`` of an evaluation: the tables, then every video with its curves, sorted by any metric.

Nothing is loaded from outside. Side-by-side videos and worst frames are linked from ``videos/`` and ``pictures/``;
curves are drawn in the page, thinned to what a line of that width can show. All videos share one scale per metric. The
page stays usable with 1,000 videos.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from stableanimator_cli import html_pages
from stableanimator_cli.evaluate.ranking import worst_first
from stableanimator_cli.evaluate.report import TOOL
from stableanimator_cli.evaluate.scores import PAGE, Scores, number
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.evaluate.side_by_side import FOLDER, PICTURES, POSTER, WorstFrame, beside
from stableanimator_cli.metrics.result import METRICS

_MAX_STRETCHES = 60  # of a long curve, two points each: the drawing is some 300 pixels wide
_MAX_DRAWN = 100  # videos whose players and curves are in the page from the start; of more, those in view
PLOTS = (
    (("csim_ref_judge", "csim_ref"), "similarity to the reference", False),
    (("psnr",), "PSNR, dB", False),
    (("change_truth", "change"), "change from frame to frame, 0 to 1", True),
    (("keypoint_error",), "key-point error, fractions of the person's size", True),
)
"""Curves of a plot, its title, and whether its scale starts at 0."""
_KEYS = {
    "csim_ref_judge": ("the model's recogniser", "an independent one"),
    "change_truth": ("prediction", "ground truth"),
}
LEFT, RIGHT, TOP, BOTTOM = 40, 316, 6, 90
"""Edges of a plot's axes in its drawing of 320 x 110."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The vertical axis of a plot, one for all videos: its ends, and ticks as (text, height in the drawing)."""

    low: float
    high: float
    ticks: tuple[tuple[str, str], ...]

    def y(self, value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low)


def write_page(scores: Scores, images: Mapping[str, Sequence[WorstFrame]]) -> None:
    """Write the page. ``images`` are frames to show, by video."""
    metric, videos = worst_first(scores.videos)
    metrics = [name for name in METRICS if any(name in video.values for video in videos)]
    scales = [_scale(videos, names, zero) for names, _, zero in PLOTS]
    others = {one.system: {video.name: video for video in one.videos} for one in scores.sections if one.videos}
    html_pages.write_page(
        scores.output / PAGE, "evaluate", "report",
        title=scores.title,
        tool=TOOL,
        tables=scores.shown(),
        definitions=[("Protocol", _protocol(scores)), ("What the numbers mean", _definitions(scores))],
        metrics=[(name, METRICS[name].title, METRICS[name].better == "higher") for name in metrics],
        first=metric,
        rows=[(video.name, [_short(video.values.get(name, math.nan)) for name in metrics]) for video in videos],
        plots=[(title, scale) for (_, title, _), scale in zip(PLOTS, scales, strict=True)],
        edges=(LEFT, RIGHT, TOP, BOTTOM),
        lazy=len(videos) > _MAX_DRAWN,
        clips=(_clip(scores, video, images.get(video.name, ()), scales, others) for video in videos),
    )  # fmt: skip


def _short(value: float) -> str:
    return "" if math.isnan(value) else number(value)


def _scale(videos: Sequence[VideoScore], names: Sequence[str], zero: bool) -> Scale | None:
    """The scale of all curves ``names``, at round numbers; None if no video has any."""
    curves = [curve for video in videos for name in names for curve in video.curves.get(name, ()) if curve is not None]
    if not curves:
        return None
    low, high = min(curves), max(curves)
    low = min(low, 0.0) if zero else low
    rough = (high - low or abs(high) or 1.0) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    scale = Scale(first * step, last * step, ())
    ticks = tuple((f"{index * step:.6g}", f"{scale.y(index * step):.1f}") for index in range(first, last + 1))
    return replace(scale, ticks=ticks)


def _protocol(scores: Scores) -> Iterator[tuple[str, str]]:
    for key, value in scores.protocol.to_json().items():
        yield key.replace("_", " "), ", ".join(value) if isinstance(value, list | tuple) else str(value)


def _definitions(scores: Scores) -> Iterator[tuple[str, str]]:
    for name, row in scores.rows.items():
        about = "; ".join(f"{key} {value}" for key, value in row.about.items())
        yield name, f"{row.spec.definition}. Source: {row.spec.source}." + (f" ({about})" if about else "")


def _clip(
    scores: Scores,
    video: VideoScore,
    images: Sequence[WorstFrame],
    scales: Sequence[Scale | None],
    others: Mapping[str, Mapping[str, VideoScore]],
) -> dict[str, Any]:
    """A video's part of the page. ``others`` are the videos of other systems by name."""
    file, poster = f"{video.name}.mp4", f"{video.name}.{POSTER}.jpg"
    other = (
        "ground truth" if video.target is not None else "reference" if video.pair.reference is not None else "nothing"
    )
    lines = [_numbers(video), *video.notes]
    if video.worst_window is not None:
        first, end = video.worst_window
        lines.insert(1, f"least like the reference in frames {first} to {end - 1}")
    lines += [f"{system}: {_numbers(videos[video.name])}" for system, videos in others.items() if video.name in videos]
    shown = [system for system in others if beside(scores.output, system, video.name)[0].is_file()]
    return {
        "name": video.name,
        "video": _link(FOLDER, file) if (scores.output / FOLDER / file).is_file() else "",
        "poster": _link(PICTURES, poster) if (scores.output / PICTURES / poster).is_file() else "",
        "sides": ["prediction", other],
        "images": [{"frame": i.frame, "why": i.why, "source": _link(PICTURES, i.path.name)} for i in images],
        "beside": [
            {
                "system": system,
                "source": _link(f"{FOLDER}/{_quoted(system)}", file),
                "poster": _link(f"{PICTURES}/{_quoted(system)}", poster),
            }
            for system in shown
        ],
        "lines": lines,
        "last": video.frames - 1,
        "plots": list(_plots(video, scales)),
    }


def _numbers(video: VideoScore) -> str:
    numbers = [f"{key} {number(value)}" for key, value in video.values.items() if not math.isnan(value)]
    return "; ".join([f"{video.frames} frames", *numbers])


def _link(folder: str, name: str) -> str:
    return f"{folder}/{_quoted(name)}"


def _quoted(name: str) -> str:
    return quote(os.fsencode(name))


def _plots(video: VideoScore, scales: Sequence[Scale | None]) -> Iterator[dict[str, Any]]:
    """Lines over frames, with gaps where there is no value, and the places of borders."""
    total = max(1, video.frames - 1)

    def x(frame: float) -> str:
        return f"{LEFT + (RIGHT - LEFT) * frame / total:.1f}"

    for index, ((names, label, _), scale) in enumerate(zip(PLOTS, scales, strict=True)):
        if scale is None or not any(value is not None for key in names for value in video.curves.get(key, ())):
            continue
        lines = []
        for key in names:
            first = 1 if key.startswith("change") else 0
            for run in _runs(video.curves.get(key, ())):
                points = (f"{x(frame + first)},{scale.y(value):.1f}" for frame, value in _thinned(run))
                lines.append((" ".join(points), key.endswith(("_truth", "_judge"))))
        yield {
            "index": index,
            "label": label,
            "borders": [x(border - 0.5) for border in video.borders],
            "lines": lines,
            "key": _KEYS[names[0]] if any(is_other for _, is_other in lines) else None,
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
