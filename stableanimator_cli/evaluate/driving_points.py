"""Keypoints that drove each frame of a video, in the output's pixels."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import require_file, sha256_of
from stableanimator_cli.media.decode import VIDEO_SUFFIXES
from stableanimator_cli.media.image import SUFFIXES as IMAGES
from stableanimator_cli.motion.geometry import Mode, resize_transform
from stableanimator_cli.motion.motion_file import load_motion
from stableanimator_cli.motion.openpose import load_openpose
from stableanimator_cli.motion.track import largest
from stableanimator_cli.records import Motion

_MAKE = "`sa preprocess VIDEO --poses poses.mp4` writes poses.npz beside it"
_TIME = re.compile(r"\d{1,18}(?:/[1-9]\d{0,17})?")
_TOLERANCE = Fraction(1, 200)  # relative difference of rates that a container may have rounded


class Unmatched(ValueError):
    """Frames of a motion cannot be matched with those of a video, for the reason given."""


def find_poses(path: Path) -> dict[str, Path]:
    """Motions by name: one ``.npz`` or OpenPose ``.json``, or a folder of them. Raises ``BadInput`` for none."""
    expected = "a poses.npz, OpenPose JSON, or a folder of them, one per video"
    if not path.is_dir():
        if require_file(path, expected).suffix.lower() in (*VIDEO_SUFFIXES, *IMAGES):
            raise BadInput(path, f"a file ending in {path.suffix}", expected, hint=_MAKE)
        return {path.stem: path}
    files = sorted(path.glob("*.npz")) or sorted(path.glob("*.json"))
    if not files:
        raise BadInput(path, "no motion", expected, hint=_MAKE)
    return {file.stem: file for file in files}


def read_poses(path: Path) -> Motion:
    """The motion in a ``.npz`` or in OpenPose JSON. Raises ``BadInput``."""
    return load_motion(path) if path.suffix.lower() == ".npz" else load_openpose(path).motion


def driven_points(motion: Motion, size: tuple[int, int], indices: Sequence[int], *, resize: Mode) -> np.ndarray:
    """Points float32[t,134,3] of the largest person in the motion's frames ``indices``, in pixels of ``size``, resized
    as ``sa animate`` does. Absent people have score 0."""
    motion = resize_transform(motion.size, size, resize).transform_motion(motion)
    person = largest(motion)
    points = motion.keypoints[:, person].copy()
    points[~motion.present[:, person], :, 2] = 0
    return points[list(indices)]


def indices_shown(
    path: Path, motion: Motion, record: Mapping[str, Any] | None, times: Sequence[Fraction | None]
) -> list[int]:
    """The motion's frame that each frame of a video shows. ``path`` is the motion's file, ``times`` are the video's.

    The run record lists the frames. An older record has their range and rate, which suffice unless frames were repeated
    or dropped. Without a record, frame k shows frame k if the counts are equal; else times are compared. Raises
    ``Unmatched`` if none of that decides.
    """
    if record is None:
        return _by_clocks(motion, times)
    shown = record.get("motion")
    if isinstance(shown, Mapping) and isinstance(shown.get("frames"), list):
        return _recorded(path, motion, record, shown["frames"], shown.get("times"), len(times))
    return _of_older_record(path, motion, record, times)


def _recorded(
    path: Path, motion: Motion, record: Mapping[str, Any], frames: list[Any], clock: Any, count: int
) -> list[int]:
    if len(frames) != count or not all(type(frame) is int and frame >= 0 for frame in frames):
        raise Unmatched(f"the run record has {len(frames)} frames of the motion, the video has {count}")
    if clock is None or motion.times is None or _is_input(path, record):
        if max(frames) >= len(motion):
            raise Unmatched(f"the run record names frame {max(frames)} of the motion, {path.name} has {len(motion)}")
        return list(frames)
    if not isinstance(clock, list) or len(clock) != count:
        raise Unmatched(f"the run record lacks times of the {count} frames")
    if not all(isinstance(time, str) and _TIME.fullmatch(time) for time in clock):
        raise Unmatched("the run record has times that are not fractions")
    return _at_times(motion, [Fraction(time) for time in clock])


def _of_older_record(
    path: Path, motion: Motion, record: Mapping[str, Any], times: Sequence[Fraction | None]
) -> list[int]:
    """Records of versions before ``motion`` was among their keys."""
    config = record.get("config")
    config = config if isinstance(config, Mapping) else {}
    first, _, last = str(config.get("frames", ":")).partition(":")
    try:
        bounds = [int(side) if side else None for side in (first, last)]
        rate = record["output"].get("fps")
        rate = _rate_of(times) if rate is None else Fraction(_TIME.fullmatch(str(rate))[0])  # type: ignore[index]
    except (TypeError, ValueError):
        raise Unmatched("the run record lacks the range or the rate of its frames") from None
    indices = list(range(len(motion)))[slice(*bounds)]
    if motion.times is None:
        repeated = config.get("fps") is not None and not _is_input(path, record)
    else:
        repeated = rate is not None and not _is_regular(motion.times, rate)
    if repeated or len(indices) != len(times):
        raise Unmatched("the run record is too old to show which frame of the motion each frame has")
    return indices


def _by_clocks(motion: Motion, times: Sequence[Fraction | None]) -> list[int]:
    if len(motion) == len(times):
        return list(range(len(times)))
    known = [time for time in times if time is not None]
    if motion.times is None or len(known) < len(times) or not known:
        raise Unmatched(
            f"the motion has {len(motion)} frames, the video has {len(times)}, one of them has no times, and no run "
            "record exists"
        )
    return _at_times(motion, [time - known[0] + motion.times[0] for time in known])


def _at_times(motion: Motion, requested: Sequence[Fraction]) -> list[int]:
    """The frame that the motion shows at each time; its last one stays for a mean span."""
    assert motion.times is not None
    times = motion.times
    span = (times[-1] - times[0]) / max(1, len(times) - 1) or Fraction(1, 30)
    slack = min(Fraction(1, 1000), span / 4)  # containers round times to their ticks
    for time in requested:
        if not times[0] - slack <= time < times[-1] + span * Fraction(3, 2):
            raise Unmatched(f"the video shows the motion at {float(time):.3g} s, which the motion does not have")
    return [max(0, bisect_right(times, time + slack) - 1) for time in requested]


def _rate_of(times: Sequence[Fraction | None]) -> Fraction | None:
    if len(times) < 2 or times[0] is None or times[-1] is None or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])


def _is_regular(times: Sequence[Fraction], rate: Fraction) -> bool:
    """Whether a video of that rate shows each of these frames once."""
    if len(times) < 2 or rate <= 0:
        return len(times) == 1
    own = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else Fraction(0)
    even = all(abs(time - times[0] - index / rate) * rate < Fraction(1, 2) for index, time in enumerate(times))
    return abs(own / rate - 1) <= _TOLERANCE and even


def _is_input(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether this very file drove the run."""
    inputs = record.get("inputs")
    motion = inputs.get("motion") if isinstance(inputs, Mapping) else None
    return isinstance(motion, Mapping) and motion.get("sha256") == sha256_of(path)
