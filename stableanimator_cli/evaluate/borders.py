"""Where the windows and decoded chunks of a video meet, as its run record tells (``OUT.json`` of ``sa animate``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from stableanimator_cli.errors import BadInput
from stableanimator_cli.metrics.seams import decode_borders, window_borders
from stableanimator_cli.motion.geometry import Mode
from stableanimator_cli.readers import read_json

_MOST = 10**6  # frames of a video
_WINDOW = re.compile(r"window \d+: ([\d, -]+)")


def read_record(video: Path) -> dict[str, Any] | None:
    """The run record beside a video, None where there is none that is ours."""
    try:
        record = read_json(video.with_suffix(".json"), "the record of a run", nan=True)
    except BadInput:
        return None
    if not isinstance(record, dict) or "stableanimator-cli" not in record or not isinstance(record.get("output"), dict):
        return None
    return {**record, "config": _table(record, "config"), "peak_bytes": _table(record, "peak_bytes")}


def _table(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def of_record(record: dict[str, Any]) -> tuple[int, ...] | None:
    """First frames of windows and chunks in the numbering of the output; None where the record does not tell."""
    config, frames, lines = record.get("config", {}), record["output"].get("frames"), record.get("windows")
    decode, how = _table(config, "decode"), _table(config, "windows")
    chunk, overlap = decode.get("chunk"), decode.get("overlap", 0)
    windows = [_frames(line) for line in lines if isinstance(line, str)] if isinstance(lines, list) else []
    if not isinstance(frames, int) or frames > _MOST or not windows or None in windows:
        return None
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
    return (resize if resize in get_args(Mode) else "crop"), (int(start) if re.fullmatch("[0-9]{1,9}", start) else 0)


def _frames(line: str) -> list[int] | None:
    """``window 2: 0, 13-27`` -> [0, 13, ..., 27]."""
    known = _WINDOW.fullmatch(line.strip())
    if known is None:
        return None
    frames: list[int] = []
    for part in known[1].split(","):
        first, _, last = part.strip().partition("-")
        if not re.fullmatch("[0-9]{1,9}", first) or not re.fullmatch("[0-9]{0,9}", last):
            return None
        if len(frames) + int(last or first) - int(first) > _MOST:
            return None
        frames += range(int(first), int(last or first) + 1)
    return frames
