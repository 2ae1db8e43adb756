"""Run records (``OUT.json`` of ``sa animate``): borders of windows and decoded chunks, and the resizing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from stableanimator_cli.config.animate import record_beside
from stableanimator_cli.config.people import parse_person
from stableanimator_cli.errors import BadInput, ConfigError, NoPerson
from stableanimator_cli.metrics.seams import decode_borders, window_borders
from stableanimator_cli.motion.geometry import Mode
from stableanimator_cli.motion.track import Numbers, select
from stableanimator_cli.readers import read_json
from stableanimator_cli.records import Motion

_MAX_FRAMES = 10_000_000
_WINDOW = re.compile(r"window \d+: ([\d, -]+)")


def read_record(video: Path, warn: Callable[[str], None] | None = None) -> dict[str, Any] | None:
    """The run record beside a video, None if there is none of ours. ``warn`` gets a sentence about one that is damaged,
    which counts as none."""
    path = record_beside(video)
    if not os.path.lexists(path):
        return None
    try:
        record = read_json(path, "the record of a run", nan=True)
        if not isinstance(record, dict) or "stableanimator-cli" not in record:
            return None
        if not isinstance(record.get("output"), dict):
            raise BadInput.because(path, "it is a run record without its output")
    except BadInput as error:
        if warn is not None:
            warn(f"the run record beside the video is damaged and not used: {error.message}")
        return None
    return {**record, "config": _table(record.get("config")), "peak_bytes": _table(record.get("peak_bytes"))}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def piece_borders(record: Mapping[str, Any]) -> tuple[int, ...] | None:
    """First frames of windows and chunks, numbered as the output; None if the record lacks them."""
    config, frames = _table(record.get("config")), record["output"].get("frames")
    decode, stored = _table(config.get("decode")), record.get("windows")
    chunk, overlap = decode.get("chunk"), decode.get("overlap", 0)
    if type(frames) is not int or not 0 < frames <= _MAX_FRAMES or not isinstance(stored, list):
        return None
    windows = [_frames(window, frames) for window in stored]
    if not windows or None in windows:
        return None
    options = _table(config.get("windows"))
    shift = int(options.get("anchor") == "reference")  # its frame 0 is not in the output
    # shifted windows meet elsewhere in every step and have no border: only decoded chunks have
    placed = [] if options.get("blend") == "shifted" else [window for window in windows if window]
    borders = {border - shift for border in window_borders(placed)}
    if type(chunk) is int and type(overlap) is int and chunk > overlap >= 0:
        borders |= set(decode_borders(frames, chunk, overlap))
    return tuple(sorted(border for border in borders if 1 <= border < frames))


def resize_mode(record: Mapping[str, Any] | None) -> Mode:
    """Resize mode of the motion."""
    resize = _table((record or {}).get("config")).get("resize")
    return resize if isinstance(resize, str) and resize in get_args(Mode) else "crop"  # type: ignore[return-value]


def animated_people(record: Mapping[str, Any] | None, motion: Motion) -> Motion:
    """The people of ``motion`` whom the run drew (``--person``); all if the record does not choose any."""
    chosen = _table(_table((record or {}).get("config")).get("people")).get("person")
    try:
        person = None if chosen is None else parse_person(chosen)
        if person is None or person == "all":
            return motion
        return select(motion, "largest" if isinstance(person, str) else Numbers(person))
    except (ConfigError, NoPerson):  # a damaged record, or another motion
        return motion


def _frames(window: Any, count: int) -> list[int] | None:
    """Frames of a window: a list or, of older versions, ``window 2: 0, 13-27`` -> [0, 13, ..., 27].

    None for anything else, and for frames beyond the ``count`` of the output.
    """
    if isinstance(window, list):
        return window if all(type(frame) is int and 0 <= frame <= count for frame in window) else None
    match = _WINDOW.fullmatch(window.strip()) if isinstance(window, str) else None
    if match is None:
        return None
    frames: list[int] = []
    for part in match[1].split(","):
        first, _, last = part.strip().partition("-")
        if not all(re.fullmatch("[0-9]{1,9}", side) and int(side) <= count for side in (first, last or first)):
            return None
        frames += range(int(first), int(last or first) + 1)
    return frames
