"""``report.html``: one page without anything from outside, contact sheets in it, that stays usable with 1,000 videos.

Browsers lay out only what is in sight (``content-visibility``), and what is wrong comes first.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stableanimator_cli.clip_folder import SHEET
from stableanimator_cli.files import MARK, atomic_write, translate_os_errors

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--bad:#c33;--so:#b80}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;text-align:left;border-bottom:1px solid var(--line)}
.clip{content-visibility:auto;contain-intrinsic-size:auto 13rem;border-top:1px solid var(--line);padding:.8rem 0}
.clip img{max-width:100%;height:auto;display:block}.clip h3{font-size:1rem;margin:.2rem 0}
.numbers{color:#888;font-size:.9em}.error{color:var(--bad)}.warning{color:var(--so)}
input{font:inherit;padding:.3rem .6rem;width:20rem;max-width:100%}
"""
_SCRIPT = """
const box=document.querySelector('input'),clips=[...document.querySelectorAll('.clip')];
box.addEventListener('input',()=>{const wanted=box.value.toLowerCase();
for(const clip of clips)clip.hidden=!clip.dataset.words.includes(wanted)});
"""
_NAMES = {
    "frames": "frames", "people": "people", "absent": "without the person", "confidence": "confidence",
    "faceless": "without a face", "off_canvas": "off canvas", "jitter": "jitter", "crowded": "with other people",
    "background": "background change", "sharpness": "sharpness", "repeated": "repeated frames",
}  # fmt: skip
_SHARES = frozenset({"absent", "faceless", "off_canvas", "crowded", "repeated"})


def write_page(path: Path, out: Path, report: Mapping[str, Any]) -> None:
    """Write the page of ``report.json``'s content. A clip's sheet is read from its folder as it is written."""
    with (
        atomic_write(path) as part,
        translate_os_errors(path),
        part.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(_page(out, report))


def _page(out: Path, report: Mapping[str, Any]) -> Iterator[str]:
    totals = report["totals"]
    title = f"{totals['clips']} clips of {totals['videos']} videos"
    yield (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="{MARK}">'
        f"<title>{title}</title>"
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{title}</h1>'
        f"<p>{totals['frames']} frames; {totals['failed']} left out; {totals['pending']} not looked at yet; "
        f"{totals['same_source']} the same as another.</p>"
    )
    if totals["findings"]:
        yield "<h2>What was found</h2><table>"
        for code, count in sorted(totals["findings"].items(), key=lambda pair: -pair[1]):
            yield f"<tr><td>{html.escape(code)}<td>{count} clips"
        yield "</table>"
    if report["failed"]:
        yield "<h2>Left out</h2><table><tr><th>video<th>why<th>what helps"
        for one in report["failed"]:
            cells = (Path(one["source"]).name, one["message"], one["hint"] or "")
            yield "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in cells)
        yield "</table>"
    yield '<h2>Clips</h2><p><input type="search" placeholder="name or finding" aria-label="show only"></p>'
    for clip in sorted(report["clips"], key=_badness):
        yield from _clip(out, clip)
    yield f"<script>{_SCRIPT}</script></html>\n"


def _badness(clip: Mapping[str, Any]) -> tuple[int, int]:
    severities = [one["severity"] for one in clip["findings"]]
    return -severities.count("error"), -len(severities)


def _clip(out: Path, clip: Mapping[str, Any]) -> Iterator[str]:
    name = str(clip["clip"])
    words = " ".join([name, clip["source"]["name"], *(one["code"] for one in clip["findings"])]).lower()
    width, height = clip["size"]
    yield f'<div class="clip" data-words="{html.escape(words)}"><h3>{html.escape(name)}</h3>'
    sheet = out / name / SHEET
    if sheet.is_file():
        data = base64.b64encode(sheet.read_bytes()).decode()
        yield f'<img loading="lazy" alt="frames of {html.escape(name)}" src="data:image/jpeg;base64,{data}">'
    told = [f"{width}x{height}"] + ([f"{clip['fps']} fps"] if clip["fps"] else [])
    for key, label in _NAMES.items():
        value = clip["quality"].get(key)
        if value is not None:
            told.append(f"{label} {value:.0%}" if key in _SHARES else f"{label} {value:g}")
    if clip["repairs"]["frames"] or clip["repairs"]["points"]:
        told.append(f"put back: {clip['repairs']['frames']} frames, {clip['repairs']['points']} points")
    if clip["misalignment"]:
        told.append(f"misalignment {clip['misalignment']['number']}")
    yield f'<div class="numbers">{html.escape("; ".join(told))}</div>'
    for one in clip["findings"]:
        yield f'<div class="{one["severity"]}">{html.escape(one["text"])}</div>'
    yield "</div>"
