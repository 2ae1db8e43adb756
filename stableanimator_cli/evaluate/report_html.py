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
from stableanimator_cli.evaluate.scores import PAGE, Scores, number, shown_metrics
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.evaluate.side_by_side import FOLDER, PICTURES, POSTER, WorstFrame, beside, folder_of
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
_SYSTEMS = "similarity to the reference, all systems, by the model's recogniser"
_STYLES = 6  # of other systems' lines in the template; further systems repeat them
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
    known = {name for video in videos for name, value in video.values.items() if not math.isnan(value)}
    ordered = dict.fromkeys([metric, *shown_metrics(scores.protocol, scores.rows), *METRICS])
    metrics = [name for name in ordered if name in known]
    others = {one.system: {video.name: video for video in one.videos} for one in scores.sections if one.videos}
    every = [*videos, *(video for one in others.values() for video in one.values())]
    scales = [_scale(every, names, zero) for names, _, zero in PLOTS]
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
    plots = list(_plots(video, scales))
    same = {name: one[video.name] for name, one in others.items() if video.name in one}
    plots[1:1] = _systems_plot(video, same, scales)  # after ours alone, on the same scale
    if video.worst_window is not None:
        first, end = video.worst_window
        lines.insert(1, f"least like the reference in frames {first} to {end - 1}")
    lines += [f"{system}: {_numbers(one)}" for system, one in same.items()]
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
                "source": _link(f"{FOLDER}/{_quoted(folder_of(system))}", file),
                "poster": _link(f"{PICTURES}/{_quoted(folder_of(system))}", poster),
            }
            for system in shown
        ],
        "lines": lines,
        "plots": plots,
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
    for index, ((names, label, _), scale) in enumerate(zip(PLOTS, scales, strict=True)):
        curves = [("other" if key.endswith(("_truth", "_judge")) else "", video, key) for key in names]
        lines = [] if scale is None else list(_lines(curves, scale, video.frames))
        if lines:
            has_other = any(style for style, _ in lines)
            legend = list(zip(("", "other"), _KEYS[names[0]], strict=True)) if has_other else []
            yield _plot(index, label, video, video.frames, lines, legend)


def _systems_plot(
    video: VideoScore, others: Mapping[str, VideoScore], scales: Sequence[Scale | None]
) -> Iterator[dict[str, Any]]:
    """Identity of ours and of ``others`` over frames, on the scale of the first plot; nothing without their curves."""
    name = PLOTS[0][0][-1]
    styles = {system: f"s{index % _STYLES + 1}" for index, system in enumerate(others)}
    frames = max([video.frames, *(other.frames for other in others.values())])
    curves = [(styles[system], other, name) for system, other in others.items()]
    if scales[0] is not None and any(_lines(curves, scales[0], frames)):
        lines = list(_lines([*curves, ("", video, name)], scales[0], frames))
        yield _plot(0, _SYSTEMS, video, frames, lines, [("", "ours"), *((styles[one], one) for one in others)])


def _plot(
    index: int,
    label: str,
    video: VideoScore,
    frames: int,
    lines: Sequence[tuple[str, str]],
    legend: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """A plot of the page: (class, points) of its ``lines``, (class, text) of its ``legend``."""
    borders = [f"{_x(border - 0.5, frames):.1f}" for border in video.borders]
    return {"index": index, "label": label, "last": frames - 1, "borders": borders, "lines": lines, "legend": legend}


def _lines(curves: Sequence[tuple[str, VideoScore, str]], scale: Scale, frames: int) -> Iterator[tuple[str, str]]:
    """(class, points) of the runs of each curve (class, video, its name) in a plot of so many ``frames``."""
    for style, video, name in curves:
        first = 1 if name.startswith("change") else 0
        for run in _runs(video.curves.get(name, ())):
            points = [f"{_x(frame + first, frames):.1f},{scale.y(value):.1f}" for frame, value in _thinned(run)]
            yield style, " ".join(points if len(points) > 1 else points * 2)  # a dot, by the round ends of lines


def _x(frame: float, frames: int) -> float:
    return LEFT + (RIGHT - LEFT) * frame / max(1, frames - 1)


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
