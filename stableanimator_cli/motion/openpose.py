"""Read and write OpenPose JSON: a folder with one file per frame, or one file with all frames.

The format is that of OpenPose's ``--write_json``: ``people`` with ``pose_keypoints_2d`` of x, y, score triples. DWPose
nodes and extensions add ``canvas_width`` and ``canvas_height``. ``docs/formats.md`` has the mapping of keypoints.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stableanimator_cli import __version__
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import (
    MARK,
    atomic_write,
    carries_mark,
    check_replaceable,
    natural_key,
    temporary_path,
    translate_os_errors,
)
from stableanimator_cli.motion.keypoints import BODY, COUNT, FACE, INDEX, LEFT_HAND, RIGHT_HAND, face_box
from stableanimator_cli.motion.motion_file import FARTHEST, LONGEST_SIDE
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import is_number, kind_of, shown
from stableanimator_cli.records import Motion

_FRAME_NAME = re.compile(r"frame_\d{12}_keypoints\.json")
_BYTES = 2**29  # largest file: hours of several people
# Our point for each point of BODY_25; its mid-hip (8) is computed from the hips when written and dropped when read.
_BODY_25 = (*range(8), None, *range(8, 24))
_MID_HIP = 8
_HIPS = (INDEX["right_hip"], INDEX["left_hip"])
_PARTS: dict[str, dict[int, list[int | None]]] = {  # key: {points in the file: our point for each, or None}
    "pose_keypoints_2d": {25: list(_BODY_25), 18: list(range(BODY.start, BODY.stop))},
    "face_keypoints_2d": {70: [*range(FACE.start, FACE.stop), None, None], 68: list(range(FACE.start, FACE.stop))},
    "hand_left_keypoints_2d": {21: list(range(LEFT_HAND.start, LEFT_HAND.stop))},
    "hand_right_keypoints_2d": {21: list(range(RIGHT_HAND.start, RIGHT_HAND.stop))},
}
_UNSIZED = (
    "add canvas_width and canvas_height to the frames, or convert them: sa preprocess FILE --size WxH -o motion.npz"
)
_FRACTIONS = 2.0  # with a canvas given, coordinates that are all below this are fractions of it, not pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPose:
    """The motion of a file or folder, and the source of its size."""

    motion: Motion
    size_from: Literal["file", "caller", "extent"]


@dataclass(frozen=True, slots=True)
class _Person:
    points: np.ndarray  # float64[134,3]
    id: int | None


@dataclass(frozen=True, slots=True)
class _Frame:
    path: Path
    people: list[_Person]
    canvas: tuple[int, int] | None


def load_openpose(path: Path | str, *, size: tuple[int, int] | None = None) -> OpenPose:
    """Read OpenPose JSON: a folder of ``*.json`` in natural order, or one file that holds a frame or a list of frames.

    The frame size is that of the files (``canvas_width``, ``canvas_height``), else ``size`` (width, height), else the
    extent of the points; ``size_from`` is its source. There are no times. People keep their order, or have that of
    ``person_id`` if every person has one. Face boxes are those of the face points.
    Raises ``BadInput`` with file and frame for data of another form.
    """
    path = Path(path)
    frames = _read_folder(path) if path.is_dir() else _read_file(path)
    tracks, slots = _slots(frames)
    keypoints = np.zeros((len(frames), len(tracks), COUNT, 3))
    present = np.zeros((len(frames), len(tracks)), bool)
    for index, (frame, slots_of_frame) in enumerate(zip(frames, slots, strict=True)):
        for person, slot in zip(frame.people, slots_of_frame, strict=True):
            keypoints[index, slot] = person.points
            present[index, slot] = (person.points[:, 2] > 0).any()  # tools pad absent people with zeros

    canvas = _canvas(frames)
    seen = keypoints[keypoints[..., 2] > 0]
    if canvas is not None:
        found, size_from = canvas, "file"
    elif size is not None:
        found, size_from = size, "caller"
    elif len(seen):
        found, size_from = (max(1, math.ceil(seen[:, 0].max())), max(1, math.ceil(seen[:, 1].max()))), "extent"
    else:
        raise BadInput(
            path, "neither a canvas size nor a visible point", "points in pixels of a known size", hint=_UNSIZED
        )
    if size_from == "extent" and max(found) > LONGEST_SIDE:
        raise BadInput(path, f"points as far as {found[0]}x{found[1]}", f"within {LONGEST_SIDE} pixels", hint=_UNSIZED)
    fractions = len(seen) > 0 and np.abs(seen[:, :2]).max() <= _FRACTIONS
    if fractions and size_from == "extent":
        raise BadInput(path, "coordinates that are fractions of an unknown size", "points in pixels", hint=_UNSIZED)
    if fractions and min(found) > _FRACTIONS:
        keypoints[..., :2] *= found
    keypoints = keypoints.astype(np.float32)
    motion = Motion(
        keypoints=keypoints,
        present=present,
        track=np.array(tracks, np.int64),
        face_boxes=np.where(present[..., None], face_box(keypoints), np.float32(np.nan)),
        size=(int(found[0]), int(found[1])),
        times=None,
    )
    return OpenPose(motion=motion, size_from=size_from)


def save_openpose(path: Path | str, motion: Motion, *, body: Literal[25, 18] = 25) -> Path:
    """Write a motion as OpenPose JSON. Returns the path, which appears complete or not at all.

    A name that ends in ``.json`` becomes one file with a list of frames, any other a folder of
    ``frame_000000000000_keypoints.json`` and so on. ``body`` chooses BODY_25 (nothing is lost) or COCO-18, which has no
    feet. Times are not part of the format. An existing folder of frames that this function wrote is replaced. Raises
    ``BadInput`` if the path cannot be written or is a link, or if the folder holds anything else.
    """
    path = Path(path)
    frames = [_frame_json(motion, index, body) for index in range(len(motion))]
    single = path.suffix.lower() == ".json"
    if path.is_symlink():  # the frames of the folder that it names would be removed
        check_replaceable(path)
    earlier = None if single or not path.is_dir() or not any(path.iterdir()) else _check_own_frames(path)
    aside = temporary_path(path.with_name(f"{path.name}.old"))
    try:
        with atomic_write(path, folder=not single, marked=single) as temp, translate_os_errors(path):
            if single:
                temp.write_text("[" + ",\n".join(frames) + "]\n", encoding="utf-8")
            else:
                temp.mkdir()
                for index, frame in enumerate(frames):
                    (temp / f"frame_{index:012d}_keypoints.json").write_text(frame + "\n", encoding="utf-8")
            if earlier is not None:
                os.replace(path, aside)
    except BaseException:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        raise
    if earlier is not None:
        for name in earlier:
            (aside / name).unlink()
        aside.rmdir()
    return path


def _check_own_frames(folder: Path) -> list[str]:
    """Names of a folder's entries, which may be replaced. Raises ``BadInput`` if ``save_openpose`` did not write one of
    them."""
    for entry in sorted(folder.iterdir()):
        if not (_FRAME_NAME.fullmatch(entry.name) and entry.is_file() and carries_mark(entry)):
            raise BadInput.because(
                entry, f"it is in the way of the frames that are written to {folder}, and was not written by sa",
                hint="choose another folder, or end the name in .json for a single file",
            )  # fmt: skip
    return [entry.name for entry in folder.iterdir()]


def _frame_json(motion: Motion, index: int, body: int) -> str:
    people = []
    for track, person in zip(
        motion.track[motion.present[index]], motion.keypoints[index][motion.present[index]], strict=True
    ):
        entry: dict[str, Any] = {"person_id": [int(track)]}
        for key, layouts in _PARTS.items():
            indices = layouts[body] if key == "pose_keypoints_2d" else layouts[max(layouts)]
            points = np.array([np.zeros(3) if index is None else person[index] for index in indices])
            hips = person[list(_HIPS)]
            if len(indices) == len(_BODY_25) and (hips[:, 2] > 0).all():
                points[_MID_HIP] = [*hips[:, :2].mean(axis=0), hips[:, 2].min()]
            points[~np.isfinite(points).all(axis=-1)] = 0
            # Nine digits reproduce every float32.
            entry[key] = [float(f"{value:.9g}") for value in points.ravel().tolist()]
        people.append(entry)
    width, height = motion.size
    canvas = {"canvas_width": width, "canvas_height": height}
    return json.dumps({"version": 1.3, "people": people, **canvas, MARK: __version__})


def _read_folder(folder: Path) -> list[_Frame]:
    files = [file for file in folder.iterdir() if file.suffix.lower() == ".json" and not file.name.startswith(".")]
    named = [file for file in files if file.stem.endswith("_keypoints")]
    files = sorted(named or files, key=lambda file: natural_key(file.name))
    if not files:
        raise BadInput(folder, "no .json files", "OpenPose JSON, one file per frame (*_keypoints.json)")
    frames = []
    for index, file in enumerate(files):
        found = _read_file(file, frame=index)
        if len(found) != 1:
            raise BadInput(file, f"{len(found)} frames in a file", "one frame per file in a folder", frame=index)
        frames += found
    return frames


def _read_file(path: Path, frame: int | None = None) -> list[_Frame]:
    def error(path: Path | str, problem: str, *, hint: str | None = None) -> BadInput:
        return BadInput.because(path, problem, frame=frame, hint=hint)

    # numbers that are not finite are reported with their position by ``_read_person``
    data = read_json(path, "OpenPose JSON", nan=True, limit=_BYTES, error=error, hint="was the file cut short?")
    if isinstance(data, dict):
        return [_read_frame(path, frame, data)]
    if not isinstance(data, list) or not data:
        raise BadInput(path, f"{kind_of(data)}", "a frame with people, or a list of such frames", frame=frame)
    return [_read_frame(path, index if frame is None else frame, item) for index, item in enumerate(data)]


def _read_frame(path: Path, frame: int | None, data: Any) -> _Frame:
    if not isinstance(data, dict) or not isinstance(data.get("people"), list):
        found = (
            f"an object without a list of people ({', '.join(data) or 'empty'})"
            if isinstance(data, dict)
            else kind_of(data)
        )
        raise BadInput(path, found, "an OpenPose frame: an object with a list 'people'", frame=frame)
    people = [_read_person(path, frame, index, person) for index, person in enumerate(data["people"])]
    sides: list[Any] = [data.get("canvas_width"), data.get("canvas_height")]
    if sides == [None, None]:
        return _Frame(path, people, None)
    if not all(is_number(side) and 1 <= side <= LONGEST_SIDE and side == int(side) for side in sides):
        found = f"canvas_width {shown(sides[0])} and canvas_height {shown(sides[1])}"
        raise BadInput(path, found, f"whole numbers of pixels, 1 to {LONGEST_SIDE}", frame=frame)
    return _Frame(path, people, (int(sides[0]), int(sides[1])))


def _read_person(path: Path, frame: int | None, index: int, data: Any) -> _Person:
    if not isinstance(data, dict):
        raise BadInput(path, f"{kind_of(data)} for person {index}", "an object with pose_keypoints_2d", frame=frame)
    person = np.zeros((COUNT, 3))
    for key, layouts in _PARTS.items():
        values = data.get(key) or []  # tools omit parts, or write null or an empty list
        if not isinstance(values, list) or (values and (len(values) % 3 or len(values) // 3 not in layouts)):
            found = f"{len(values)} numbers" if isinstance(values, list) else kind_of(values)
            counts = " or ".join(f"{3 * count} ({count} points of x, y, score)" for count in layouts)
            raise BadInput(path, f"{found} in {key} of person {index}", counts, frame=frame)
        for position, value in enumerate(values):
            if not is_number(value) or abs(value) > FARTHEST:
                found = f"{shown(value)} at {position} of {key} of person {index}"
                raise BadInput(path, found, f"finite numbers within {FARTHEST}", frame=frame)
        if values:
            layout = layouts[len(values) // 3]
            pairs = [(theirs, ours) for theirs, ours in enumerate(layout) if ours is not None]
            rows = np.array(values, np.float64).reshape(-1, 3)
            person[[ours for _, ours in pairs]] = rows[[theirs for theirs, _ in pairs]]
    ids = data.get("person_id")
    ids = ids[0] if isinstance(ids, list) and len(ids) == 1 else ids
    if not isinstance(ids, int) or isinstance(ids, bool) or not 0 <= ids < 2**31:
        ids = None
    return _Person(person, ids)


def _slots(frames: list[_Frame]) -> tuple[list[int], list[list[int]]]:
    """Track numbers, and for each frame the slot of each of its people.

    They follow ``person_id`` in rising order if all people have one and no frame repeats one, else the order in the
    file.
    """
    ids = [[person.id for person in frame.people] for frame in frames]
    known = [number for row in ids for number in row if number is not None]
    if known and all(None not in row and len(set(row)) == len(row) for row in ids):
        tracks = sorted(set(known))
        return tracks, [[tracks.index(number) for number in row if number is not None] for row in ids]
    maximum = max(len(row) for row in ids)
    return list(range(maximum)), [list(range(len(row))) for row in ids]


def _canvas(frames: list[_Frame]) -> tuple[int, int] | None:
    """The canvas size of all frames that have one. Raises ``BadInput`` if they disagree."""
    first = None
    for index, frame in enumerate(frames):
        if frame.canvas is None:
            continue
        if first is not None and frame.canvas != first:
            found = f"a canvas of {frame.canvas[0]}x{frame.canvas[1]}"
            expected = f"{first[0]}x{first[1]} as in the frames before"
            raise BadInput(frame.path, found, expected, frame=index, hint="read frames of different sizes apart")
        first = frame.canvas
    return first
