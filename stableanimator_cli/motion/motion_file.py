"""Motions as files: our ``poses.npz``, and the pose dictionaries of DWPose tools (``docs/formats.md``).

OpenPose JSON has a module of its own, ``openpose.py``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import MARK, atomic_write, translate_os_errors
from stableanimator_cli.motion.keypoints import BODY, COUNT, FACE, LEFT_HAND, RIGHT_HAND, THRESHOLD
from stableanimator_cli.readers import read_npz
from stableanimator_cli.records import Motion

VERSION = 1
UNTIMED_FPS = Fraction(30)
"""Frames per second of sources without a clock: folders of images, JSON, a single frame."""

FARTHEST = 2**20
"""Largest distance of a point from the origin along x or y, in pixels."""
LONGEST_SIDE = 2**14
"""Longest side of a frame, in pixels."""
_LONGEST = 10**7  # seconds of a motion
_LONGEST_FRAME = 60  # seconds from one frame to the next: resampling fills a pause with copies of a frame
_NEEDED = {  # name: (axes by their names in messages, kinds of numbers)
    "keypoints": (("t", "p", COUNT, 3), "f"),
    "present": (("t", "p"), "b"),
    "track": (("p",), "iu"),
    "face_boxes": (("t", "p", 4), "f"),
    "size": ((2,), "iu"),
}
_TIMES = {"times": (("t", 2), "iu")}


def save_motion(path: Path | str, motion: Motion) -> Path:
    """Write a motion as ``poses.npz``; the same motion always gives the same bytes. Returns the path.

    The file appears complete or not at all. Raises ``BadInput`` if it cannot be written.
    """
    with staged_motion(path, motion):
        pass
    return Path(path)


@contextmanager
def staged_motion(path: Path | str, motion: Motion) -> Iterator[None]:
    """``save_motion`` whose complete file takes its name at the end of the block, unless that raises."""
    arrays: dict[str, Any] = {
        "version": np.int64(VERSION),
        "keypoints": np.asarray(motion.keypoints, np.float32),
        "present": np.asarray(motion.present, bool),
        "track": np.asarray(motion.track, np.int64),
        "face_boxes": np.asarray(motion.face_boxes, np.float32),
        "size": np.array(motion.size, np.int64),
    }
    if motion.times is not None:
        pairs = [(time.numerator, time.denominator) for time in motion.times]
        arrays["times"] = np.array(pairs, np.int64).reshape(-1, 2)
    with _staged(Path(path), arrays):
        yield


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Write arrays as a compressed npz with the mark of our files as its comment; equal arrays give equal bytes.

    Returns ``path``, which appears complete or not at all. Raises ``BadInput`` if it cannot be written.
    """
    with _staged(path, arrays):
        pass
    return path


@contextmanager
def _staged(path: Path, arrays: Mapping[str, Any]) -> Iterator[None]:
    with atomic_write(path, marked=True) as temp:
        with translate_os_errors(path):
            with temp.open("wb") as file:
                np.savez_compressed(file, **arrays)
            with zipfile.ZipFile(temp, "a") as archive:
                archive.comment = MARK.encode()
        yield


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file with the mark of our files as a comment in its header, which is a literal of Python."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    text = f"{header!r} # {MARK}".encode("latin1")
    start = np.lib.format.magic(1, 0)
    space = -(len(start) + 2 + len(text) + 1) % 64  # the data are aligned
    text += b" " * space + b"\n"
    with atomic_write(path, marked=True) as temp, translate_os_errors(path), temp.open("wb") as file:
        file.write(start + len(text).to_bytes(2, "little") + text)
        file.write(np.ascontiguousarray(array).tobytes())


def load_motion(path: Path | str) -> Motion:
    """Read a ``poses.npz``. Raises ``BadInput`` if it is missing, damaged, of another version, or of wrong shapes."""
    path = Path(path)
    arrays = read_arrays(path)
    again = "write the motion again with this version's `sa preprocess`"
    if "version" not in arrays:
        names = ", ".join(sorted(arrays)) or "nothing"
        hint = "was it written by another tool?"
        raise BadInput(path, f"an npz with {names}", "a motion file with a version", hint=hint)
    version = arrays["version"]
    if version.shape != () or version.dtype.kind not in "iu" or int(version) != VERSION:
        raise BadInput(path, f"version {version.tolist()}", f"version {VERSION}", hint=again)
    needed = _NEEDED | (_TIMES if "times" in arrays else {})
    axes: dict[str, int] = {}
    for name, (shape, kinds) in needed.items():
        if name not in arrays:
            raise BadInput(path, f"no array {name!r}", f"the arrays {', '.join(_NEEDED)}", hint=again)
        _check_shape(path, name, arrays[name], shape, kinds, axes)
    size = int(arrays["size"][0]), int(arrays["size"][1])
    if not 1 <= min(size) <= max(size) <= LONGEST_SIDE:
        expected = f"a width and a height of 1 to {LONGEST_SIDE} pixels"
        raise BadInput(path, f"size {size[0]}x{size[1]}", expected, hint=again)
    boxes = arrays["face_boxes"]
    check_points(path, arrays["keypoints"], arrays["present"])
    if np.isinf(boxes).any() or (np.abs(boxes) > FARTHEST).any():
        raise BadInput(path, "a face box far outside the frame", f"boxes within {FARTHEST} pixels, or NaN", hint=again)
    return Motion(
        keypoints=arrays["keypoints"].astype(np.float32, copy=False),
        present=arrays["present"],
        track=arrays["track"].astype(np.int64, copy=False),
        face_boxes=boxes.astype(np.float32, copy=False),
        size=size,
        times=_times(path, arrays["times"]) if "times" in arrays else None,
    )


def read_arrays(path: Path, expected: str = "a motion file (.npz)") -> dict[str, np.ndarray]:
    """The arrays of an npz file, without pickles. Raises ``BadInput`` if it is missing, damaged or holds objects."""
    return read_npz(path, expected, hint="make the file again")


def _check_shape(
    path: Path, name: str, array: np.ndarray, shape: tuple[str | int, ...], kinds: str, axes: dict[str, int]
) -> None:
    """Compare the shape of an array with its axes; the first array with a named axis sets its length in ``axes``."""
    expected = f"{name}[{','.join(str(axis) for axis in shape)}]"
    fits = array.ndim == len(shape) and array.dtype.kind in kinds
    if fits:
        for axis, length in zip(shape, array.shape, strict=True):
            fits = fits and length == (axes.setdefault(axis, length) if isinstance(axis, str) else axis)
    if not fits:
        known = ", ".join(f"{axis} = {length}" for axis, length in axes.items())
        found = f"{name}{list(array.shape)} of {array.dtype}"
        raise BadInput(path, found, f"{expected} with {known}" if known else expected)


def check_points(path: Path, keypoints: np.ndarray, present: np.ndarray) -> None:
    """Raise ``BadInput`` for points [t,p,k,3] of people ``present`` [t,p] that are not finite or far outside any
    frame."""
    near = np.isfinite(keypoints).all(axis=(2, 3)) & (np.abs(np.nan_to_num(keypoints)) <= FARTHEST).all(axis=(2, 3))
    if (bad := ~near & present).any():
        frame, person = (int(i) for i in np.argwhere(bad)[0])
        found = f"keypoints of person {person} that are not finite or beyond {FARTHEST} pixels"
        raise BadInput(path, found, "numbers, and score 0 for points that are not visible", frame=frame)


def _times(path: Path, pairs: np.ndarray) -> tuple[Fraction, ...]:
    times: list[Fraction] = []
    for frame, (numerator, denominator) in enumerate(pairs.tolist()):
        if denominator < 1:
            raise BadInput(path, f"the time {numerator}/{denominator}", "a fraction of seconds", frame=frame)
        times.append(Fraction(numerator, denominator))
    hint = f"write it again with other times, or without them for {UNTIMED_FPS} frames per second"
    check_times(path, times, hint=hint)
    return tuple(times)


def check_times(path: Path, times: Sequence[Fraction], *, hint: str | None = None) -> None:
    """Raise ``BadInput`` with ``path`` and the frame for times in seconds that no motion file can hold.

    Containers repeat single times, so equal ones are refused only if all are. Without a ``hint``, it is about a video.
    """
    constant = len(times) > 1 and len(set(times)) == 1
    for frame, time in enumerate(times):
        step = time - times[max(0, frame - 1)]
        if abs(time) > _LONGEST or not 0 <= step <= _LONGEST_FRAME or (constant and frame > 0):
            remedy = "cut the pause out of the video" if step > 0 else "encode the video again at a constant rate"
            raise BadInput(
                path,
                f"the time {float(time):g} s, {float(step):g} s after the frame before",
                f"times that rise, by at most {_LONGEST_FRAME} s from frame to frame",
                frame=frame,
                hint=hint or f"{remedy}, or use the frames 0:{frame}",
            )


def from_pose_dict(pose: Mapping[str, Any]) -> np.ndarray:
    """The pose dictionary of DWPose tools as float64[p,134,3], x and y as fractions of the frame (``draw_normalised``).

    ``pose`` holds ``bodies`` (``candidate`` [18p,2], ``subset`` [p,18]: rows of ``candidate`` or -1, ``score`` [p,18]),
    ``hands`` [2p,21,2] (all left hands, then all right) with ``hands_score``, ``faces`` [p,68,2] with ``faces_score``.
    Feet are not part of it: score 0. Raises ``ValueError`` if shapes disagree.
    """
    bodies = pose["bodies"]
    subset = np.asarray(bodies["subset"], np.float64).reshape(-1, 18)
    count = len(subset)
    people = np.zeros((count, COUNT, 3))
    people[:, BODY, :2] = np.asarray(bodies["candidate"], np.float64).reshape(count, 18, 2)
    score = np.asarray(bodies["score"], np.float64).reshape(count, 18)
    # A joint that the dictionary marks as invisible stays invisible, whatever its score is.
    people[:, BODY, 2] = np.where((subset < 0) & (score > THRESHOLD), 0.0, score)
    people[:, FACE, :2] = np.asarray(pose["faces"], np.float64).reshape(count, 68, 2)
    people[:, FACE, 2] = np.asarray(pose["faces_score"], np.float64).reshape(count, 68)
    hands = np.asarray(pose["hands"], np.float64).reshape(2, count, 21, 2)
    hand_scores = np.asarray(pose["hands_score"], np.float64).reshape(2, count, 21)
    for side, part in enumerate((LEFT_HAND, RIGHT_HAND)):
        people[:, part, :2] = hands[side]
        people[:, part, 2] = hand_scores[side]
    return people


def to_pose_dict(people: np.ndarray) -> dict[str, Any]:
    """Float[p,134,3] (fractions of the frame) as the dictionary that ``from_pose_dict`` reads. Feet are lost."""
    people = np.asarray(people, np.float64).reshape(-1, COUNT, 3)
    score = people[:, BODY, 2]
    rows = np.arange(score.size).reshape(score.shape)
    hands = np.concatenate([people[:, LEFT_HAND], people[:, RIGHT_HAND]])
    return {
        "bodies": {
            "candidate": people[:, BODY, :2].reshape(-1, 2),
            "subset": np.where(score > THRESHOLD, rows, -1).astype(np.float64),
            "score": score,
        },
        "hands": hands[..., :2],
        "hands_score": hands[..., 2],
        "faces": people[:, FACE, :2],
        "faces_score": people[:, FACE, 2],
    }
