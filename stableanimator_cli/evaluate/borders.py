"""Where the windows and decoded chunks of a video meet, as its run record tells (``OUT.json`` of ``sa animate``)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

from stableanimator_cli.metrics.seams import decode_borders, window_borders
from stableanimator_cli.motion.geometry import Mode

_WINDOW = re.compile(r"window \d+: ([\d, -]+)")


def read_record(video: Path) -> dict[str, Any] | None:
    """The run record beside a video, None where there is none that is ours."""
    try:
        record = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and "stableanimator-cli" in record and isinstance(record.get("output"), dict)
    return record if ours else None


def of_record(record: dict[str, Any]) -> tuple[int, ...] | None:
    """First frames of windows and chunks in the numbering of the output; None where the record does not tell."""
    config, frames = record.get("config", {}), record["output"].get("frames")
    decode = config.get("decode", {})
    chunk, overlap = decode.get("chunk"), decode.get("overlap", 0)
    windows = [_frames(line) for line in record.get("windows", []) if isinstance(line, str)]
    if not isinstance(frames, int) or not windows or None in windows:
        return None
    how = config.get("windows", {})
    shift = int(how.get("anchor") == "reference")  # its frame 0 is not in the output
    # windows that met elsewhere in every step have no border: what is left are those of decoded chunks
    placed = [] if how.get("blend") == "shifted" else [window for window in windows if window]
    found = {border - shift for border in window_borders(placed)}
    if isinstance(chunk, int) and isinstance(overlap, int) and chunk > overlap:
        found |= set(decode_borders(frames, chunk, overlap))
    return tuple(sorted(border for border in found if 1 <= border < frames))


def fitting_of(record: dict[str, Any] | None) -> tuple[Mode, int]:
    """How the motion was fitted to the output, and its frame that the output begins with."""
    config = (record or {}).get("config", {})
    resize, frames = config.get("resize"), str(config.get("frames", ":"))
    start = frames.partition(":")[0]
    return (resize if resize in get_args(Mode) else "crop"), (int(start) if start.isdecimal() else 0)


def _frames(line: str) -> list[int] | None:
    """``window 2: 0, 13-27`` -> [0, 13, ..., 27]."""
    known = _WINDOW.fullmatch(line.strip())
    if known is None:
        return None
    frames: list[int] = []
    for part in known[1].split(","):
        first, _, last = part.strip().partition("-")
        frames += range(int(first), int(last or first) + 1)
    return frames
