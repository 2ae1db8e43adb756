"""``report.html``: one page without anything from outside. Side-by-side videos and each one's worst frame lie beside it
in ``videos/`` and ``pictures/`` and load when they are played or come into sight; curves are in the page, thinned to
what a line of that width can show. The worst videos come first, and the page stays usable with 1,000 of them
(``content-visibility``)."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from stableanimator_cli.evaluate.report import TOOL
from stableanimator_cli.evaluate.scores import PAGE, Scores, number
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.evaluate.side_by_side import FOLDER, PICTURES, Picture
from stableanimator_cli.files import atomic_write, translate_os_errors
from stableanimator_cli.metrics.result import METRICS

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--bad:#c33;--ink:#2a7;--other:#88a}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;text-align:left;border-bottom:1px solid var(--line)}
.scroll{overflow-x:auto}
.clip{content-visibility:auto;contain-intrinsic-size:auto 20rem;border-top:1px solid var(--line);padding:.8rem 0}
.clip h3{font-size:1rem;margin:.2rem 0}.clip video,.clip img{max-width:32rem;width:100%;height:auto;display:block}
.both{display:flex;gap:1rem;flex-wrap:wrap}.numbers,figcaption{color:#888;font-size:.9em}figure{margin:0}
svg{width:100%;max-width:34rem;height:5rem;display:block}
polyline{fill:none;stroke:var(--ink);stroke-width:1.5;vector-effect:non-scaling-stroke}
polyline.other{stroke:var(--other)}line{stroke:var(--bad);stroke-width:1;vector-effect:non-scaling-stroke;opacity:.5}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{color:#888}dd{margin:0}
input{font:inherit;padding:.3rem .6rem;width:20rem;max-width:100%}
"""
_SCRIPT = """
const box=document.querySelector('input'),clips=[...document.querySelectorAll('.clip')];
box.addEventListener('input',()=>{const wanted=box.value.toLowerCase();
for(const clip of clips)clip.hidden=!clip.dataset.words.includes(wanted)});
"""
_STRETCHES = 60  # of a long curve, two points each: the drawing is some 500 pixels wide
CURVES = {
    "csim_ref": (("csim_ref",), "similarity to the reference"),
    "psnr": (("psnr",), "PSNR, dB"),
    "change": (("change_truth", "change"), "change from frame to frame (the truth's in grey; borders in red)"),
    "keypoint_error": (("keypoint_error",), "key-point error, shares of the person"),
}
ORDER = ("csim_ref", "psnr", "face_rate", "keypoint_error", "seam_score", "flicker_distance")
"""What "worst first" goes by: the first of these that the videos have."""


def write_page(scores: Scores, pictures: Mapping[str, Sequence[Picture]]) -> None:
    """Write the page. ``pictures`` are frames to show, by video."""
    path = scores.output / PAGE
    with (
        atomic_write(path, marked=True) as part,
        translate_os_errors(path),
        part.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(_page(scores, pictures))


def worst_first(videos: Sequence[VideoScore]) -> tuple[str | None, list[VideoScore]]:
    """The metric that decides, and the videos by it; those without a number lead."""
    name = next((n for n in ORDER if any(not math.isnan(v.values.get(n, math.nan)) for v in videos)), None)
    if name is None:
        return None, list(videos)
    sign = 1 if METRICS[name].better == "higher" else -1

    def badness(video: VideoScore) -> float:
        value = video.values.get(name, math.nan)
        return -math.inf if math.isnan(value) else sign * value

    return name, sorted(videos, key=badness)


def _page(scores: Scores, pictures: Mapping[str, Sequence[Picture]]) -> Iterator[str]:
    title = scores.title
    yield (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="generator" content="{TOOL}">'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{title}</h1>'
    )
    for name, head, body in scores.shown():
        yield f"<h2>{html.escape(name)}</h2>" + _table(head, body)
    yield "<details><summary>Protocol</summary><dl>"
    for key, value in scores.protocol.to_json().items():
        shown = ", ".join(value) if isinstance(value, list | tuple) else str(value)
        yield f"<dt>{html.escape(key.replace('_', ' '))}</dt><dd>{html.escape(shown)}</dd>"
    yield "</dl></details><details><summary>What the numbers mean</summary><dl>"
    for name, row in scores.rows.items():
        told = "; ".join(f"{key} {value}" for key, value in row.about.items())
        text = f"{row.spec.definition}. Source: {row.spec.source}." + (f" ({told})" if told else "")
        yield f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
    yield "</dl></details>"
    by, videos = worst_first(scores.videos)
    order = f"worst {by} first" if by else "in the order of their names"
    yield f'<h2>Videos, {order}</h2><p><input type="search" placeholder="name" aria-label="show only"></p>'
    for video in videos:
        yield from _clip(scores, video, pictures.get(video.name, ()))
    yield f"<script>{_SCRIPT}</script></html>\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}" for cell in columns)
    lines = []
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row))
    return f'<div class="scroll"><table><tr>{head}{"".join(lines)}</table></div>'


def _clip(scores: Scores, video: VideoScore, pictures: Sequence[Picture]) -> Iterator[str]:
    name = html.escape(video.name)
    yield f'<div class="clip" data-words="{html.escape(video.name.lower())}"><h3>{name}</h3><div class="both">'
    file = f"{video.name}.mp4"
    if (scores.output / FOLDER / file).is_file():
        yield f'<video controls loop muted preload="none" src="{FOLDER}/{quote(os.fsencode(file))}"></video>'
    for picture in pictures:
        source = f"{PICTURES}/{quote(os.fsencode(picture.path.name))}"
        yield (
            f'<figure><img loading="lazy" alt="frame {picture.frame} of {name}" src="{source}">'
            f"<figcaption>{html.escape(picture.why)}</figcaption></figure>"
        )
    yield "</div>"
    told = [f"{video.frames} frames"]
    told += [f"{key} {number(value)}" for key, value in video.values.items() if not math.isnan(value)]
    yield f'<div class="numbers">{html.escape("; ".join(told))}</div>'
    for note in video.notes:
        yield f'<div class="numbers">{html.escape(note)}</div>'
    for names, label in CURVES.values():
        curves = [(key, video.curves[key]) for key in names if key in video.curves]
        if any(value is not None for _, curve in curves for value in curve):
            yield f"<figure>{_svg(curves, video)}<figcaption>{html.escape(label)}</figcaption></figure>"
    yield "</div>"


def _svg(curves: Sequence[tuple[str, Sequence[float | None]]], video: VideoScore) -> str:
    """Lines over frames; gaps where there is nothing, a red line at each border."""
    values = [value for _, curve in curves for value in curve if value is not None]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    span = (high - low) or 1.0
    total = max(1, video.frames - 1)
    parts = []
    for border in video.borders:
        x = 100 * (border - 0.5) / total
        parts.append(f'<line x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="40"/>')
    for key, curve in curves:
        first = 1 if key.startswith("change") else 0
        for run in _runs(curve):
            points = " ".join(
                f"{100 * (i + first) / total:.2f},{39 - 38 * (v - low) / span:.2f}" for i, v in _thinned(run)
            )
            parts.append(f'<polyline{" class=other" if key.endswith("_truth") else ""} points="{points}"/>')
    marks = f"{number(low)} to {number(high)}"
    return (
        f'<svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label="{marks}">'
        f"<title>{marks}</title>{''.join(parts)}</svg>"
    )


def _thinned(run: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """A long run as the lowest and highest point of each stretch: dips of one frame stay to be seen."""
    if len(run) <= 2 * _STRETCHES:
        return run
    step = math.ceil(len(run) / _STRETCHES)
    kept: list[tuple[int, float]] = []
    for first in range(0, len(run), step):
        part = run[first : first + step]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


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
