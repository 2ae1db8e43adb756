"""``report.html`` of preprocessing: contact sheets within the page, worst clips first, nothing loaded from outside.

The page stays usable with 1,000 videos: browsers lay out only the visible part (``content-visibility``).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stableanimator_cli import html_pages
from stableanimator_cli.clip_folder import SHEET
from stableanimator_cli.files import MARK

_LABELS = {
    "frames": "frames", "people": "people", "absent": "without the person", "confidence": "confidence",
    "faceless": "without a face", "off_canvas": "off canvas", "jitter": "jitter", "crowded": "with other people",
    "background": "background change", "sharpness": "sharpness", "repeated": "repeated frames",
}  # fmt: skip
_FRACTIONS = frozenset({"absent", "faceless", "off_canvas", "crowded", "repeated"})


def write_page(path: Path, out: Path, report: Mapping[str, Any]) -> None:
    """Write the page of a ``report.json``. Contact sheets are read from the clip folders one by one."""
    totals = report["totals"]
    html_pages.write_page(
        path, "preprocess", "report",
        marked=False,  # folders of older versions have a page without it
        mark=MARK,
        title=f"{totals['clips']} clips of {totals['videos']} videos",
        totals=totals,
        findings=sorted(totals["findings"].items(), key=lambda pair: -pair[1]),
        failed=[(Path(one["source"]).name, one["message"], one["hint"] or "") for one in report["failed"]],
        clips=_clips(out, sorted(report["clips"], key=_severity)),
    )  # fmt: skip


def _severity(clip: Mapping[str, Any]) -> tuple[int, int]:
    severities = [one["severity"] for one in clip["findings"]]
    return -severities.count("error"), -len(severities)


def _clips(out: Path, clips: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for clip in clips:
        name = str(clip["clip"])
        sheet = out / name / SHEET
        yield {
            "name": name,
            "words": " ".join([name, clip["source"]["name"], *(one["code"] for one in clip["findings"])]),
            "sheet": base64.b64encode(sheet.read_bytes()).decode() if sheet.is_file() else "",
            "numbers": "; ".join(_numbers(clip)),
            "findings": clip["findings"],
        }


def _numbers(clip: Mapping[str, Any]) -> Iterator[str]:
    yield "{}x{}".format(*clip["size"])
    if clip["fps"]:
        yield f"{clip['fps']} fps"
    for key, label in _LABELS.items():
        value = clip["quality"].get(key)
        if value is not None:
            yield f"{label} {value:.0%}" if key in _FRACTIONS else f"{label} {value:g}"
    if clip["repairs"]["frames"] or clip["repairs"]["points"]:
        yield f"put back: {clip['repairs']['frames']} frames, {clip['repairs']['points']} points"
    if clip["misalignment"]:
        yield f"misalignment {clip['misalignment']['number']}"
