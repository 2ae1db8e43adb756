"""Clip folders: what ``sa preprocess`` makes of a video and what training reads (``docs/formats.md``, "Clip folder").

``clip.json`` says what the clip is and how it was made, ``motion.npz`` holds the key points, ``faces.npz`` the faces,
and ``source`` (with the video's own suffix) is the video or a link to it. Numpy and the media room only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np

from stableanimator_cli.errors import BadInput
from stableanimator_cli.media import open_clip, resample, take
from stableanimator_cli.motion.motion_file import FARTHEST, LONGEST_SIDE, load_motion, read_arrays, write_arrays
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields, shown
from stableanimator_cli.records import ChannelOrder, Clip, Face, Motion

FORMAT = 1
RECORD, MOTION, FACES, SHEET, SOURCE = "clip.json", "motion.npz", "faces.npz", "sheet.jpg", "source"
WIDTH = 512
"""Numbers in an identity vector."""

_AGAIN = "run `sa preprocess` on the video again"
_NUMBERS = ("frame", "person")
_SHAPES = {"frame": (), "person": (), "boxes": (4,), "landmarks": (5, 2), "scores": (), "embeddings": (WIDTH,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceTable:
    """All faces of a clip, a row each, by frame and then by size.

    ``frame`` int64[n]; ``person`` int64[n], the place of the person in the motion, -1 where the face is nobody's who
    was kept; ``boxes`` float32[n,4] in pixels; ``landmarks`` float32[n,5,2]; ``scores`` float32[n]; ``embeddings``
    float32[n,512] raw as ArcFace gives them, a row of NaN where a face could not be recognised. ``channel_order`` is
    the order in which the recogniser saw the colours: vectors of two orders must not be compared.
    """

    frame: np.ndarray
    person: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray
    embeddings: np.ndarray
    channel_order: ChannelOrder = "bgr"

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            if getattr(self, name).shape != (len(self.frame), *shape):
                raise ValueError(f"{name} {getattr(self, name).shape} does not fit {len(self.frame)} faces")

    def __len__(self) -> int:
        return len(self.frame)

    @classmethod
    def of(cls, found: list[tuple[int, int, Face]], order: ChannelOrder) -> FaceTable:
        """Rows of (frame, person or -1, face)."""
        unknown = np.full(WIDTH, np.nan, np.float32)
        vectors = [unknown if face.embedding is None else face.embedding for _, _, face in found]
        return cls(
            frame=np.array([frame for frame, _, _ in found], np.int64),
            person=np.array([person for _, person, _ in found], np.int64),
            boxes=np.array([face.box for _, _, face in found], np.float32).reshape(-1, 4),
            landmarks=np.array([face.landmarks for _, _, face in found], np.float32).reshape(-1, 5, 2),
            scores=np.array([face.score for _, _, face in found], np.float32),
            embeddings=np.array(vectors, np.float32).reshape(-1, WIDTH),
            channel_order=order,
        )

    def at(self, frame: int) -> np.ndarray:
        """Row numbers of one frame's faces, int64[k]."""
        return np.flatnonzero(self.frame == frame)


def save_faces(path: Path, faces: FaceTable) -> None:
    """Write ``faces.npz``; equal faces give equal bytes. The file appears whole or not at all."""
    arrays: dict[str, Any] = {name: getattr(faces, name) for name in _SHAPES}
    arrays |= {"version": np.int64(FORMAT), "channel_order": np.array(faces.channel_order)}
    write_arrays(path, arrays)


def load_faces(path: Path) -> FaceTable:
    """Read ``faces.npz``. ``BadInput`` where it is missing, damaged, of another version or of other shapes."""
    arrays = read_arrays(path, "a file of faces (.npz)")
    version = arrays.get("version")
    if version is None or version.shape != () or version.dtype.kind not in "iu" or int(version) != FORMAT:
        found = "no version" if version is None else f"version {version.tolist()}"
        raise BadInput(path, found, f"version {FORMAT} of a file of faces", hint=_AGAIN)
    missing = [name for name in (*_SHAPES, "channel_order") if name not in arrays]
    if missing:
        raise BadInput(path, f"no array {missing[0]!r}", f"the arrays {', '.join(_SHAPES)}", hint=_AGAIN)
    for name in _SHAPES:
        if arrays[name].dtype.kind not in ("iu" if name in _NUMBERS else "f"):
            kind = "whole numbers" if name in _NUMBERS else "floats"
            raise BadInput(path, f"{name} of type {arrays[name].dtype}", kind, hint=_AGAIN)
    order = str(arrays["channel_order"])
    if order not in get_args(ChannelOrder):
        raise BadInput(path, f"channel_order {order!r}", "'bgr' or 'rgb'", hint=_AGAIN)
    _check_faces(path, arrays)
    table = {name: arrays[name].astype(np.int64 if name in _NUMBERS else np.float32) for name in _SHAPES}
    return FaceTable(channel_order=order, **table)  # type: ignore[arg-type]


def _check_faces(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Shapes and ranges of a file of faces. Only an embedding may be unknown: a row of NaN."""
    count = arrays["frame"].size
    for name, shape in _SHAPES.items():
        array = arrays[name]
        if array.shape != (count, *shape):
            found = f"{name}{list(array.shape)} of {array.dtype}"
            numbers = "whole numbers" if name in _NUMBERS else "numbers"
            raise BadInput.because(path, f"{found} does not hold the {numbers} of {count} faces", hint=_AGAIN)
        measured = name not in _NUMBERS and name != "embeddings"
        if measured and not (np.abs(array) <= FARTHEST).all():  # NaN is not either
            found = f"{name} holds numbers that are not finite, or far outside of the frame"
            raise BadInput.because(path, found, hint=_AGAIN)
    if (arrays["frame"] < 0).any() or (arrays["person"] < -1).any():
        raise BadInput.because(path, "a frame or a person has a negative number", hint=_AGAIN)
    embeddings = arrays["embeddings"]
    finite = np.isfinite(embeddings.astype(np.float32))
    if not (finite.all(axis=1) | np.isnan(embeddings).all(axis=1)).all():
        raise BadInput.because(path, "an embedding is neither finite nor unknown", hint=_AGAIN)


def check_frames(path: Path, faces: FaceTable, frames: int) -> FaceTable:
    """``faces`` again. ``BadInput`` if one is of a frame that a clip of ``frames`` does not have."""
    if (faces.frame >= frames).any():
        problem = f"it has a face in frame {int(faces.frame.max())} of a clip of {frames} frames"
        raise BadInput.because(path, problem, hint=_AGAIN)
    return faces


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFolder:
    """A finished clip on disk. Nothing but ``clip.json`` is read before it is asked for."""

    path: Path
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def frames(self) -> int:
        return int(self.record["frames"])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        width, height = self.record["size"]
        return int(width), int(height)

    @property
    def source(self) -> Path:
        """The video: what lies in the folder, whichever suffix it has, else where it was when the clip was made.

        ``BadInput`` where it is nowhere.
        """
        for place in (source_inside(self.path), Path(self.record["source"]["path"])):
            if place is not None and place.exists():
                return place
        raise BadInput(
            self.path, "neither a source in the folder nor " + str(self.record["source"]["path"]), "the clip's video",
            hint="bring the video back to where it was, or run `sa preprocess --source copy` where it is",
        )  # fmt: skip

    def motion(self) -> Motion:
        motion = load_motion(self.path / MOTION)
        if len(motion) != self.frames:
            raise BadInput(self.path / MOTION, f"{len(motion)} frames", f"{self.frames} as in {RECORD}", hint=_AGAIN)
        return motion

    def faces(self) -> FaceTable:
        return check_frames(self.path / FACES, load_faces(self.path / FACES), self.frames)

    def pictures(self) -> Clip:
        """The clip's frames: those of the source, cut and resampled as they were when the motion was made."""
        options = self.record["options"]
        first, last = options["frames"] or (None, None)
        return cut(open_clip(self.source), (first, last), options["fps"])


def source_inside(folder: Path) -> Path | None:
    """The video in a clip folder, None where there is none or a link leads nowhere."""
    named = (entry for entry in sorted(folder.glob(f"{SOURCE}*")) if entry.stem == SOURCE)
    return next((entry for entry in named if entry.exists()), None)


def cut(clip: Clip, frames: tuple[int | None, int | None], fps: str | Fraction | None) -> Clip:
    """Frames of a half-open range, then at another rate: what a clip is of its source."""
    part = take(clip, *frames)
    return part if fps is None else resample(part, Fraction(fps))


def open_folder(path: Path) -> ClipFolder:
    """The clip in a folder. ``BadInput`` where there is none or its record is not ours."""
    file = path / RECORD
    if not file.exists():
        raise BadInput(path, f"no {RECORD}", "a clip folder", hint="name a folder that `sa preprocess` wrote")
    what = "the record of a clip"
    fields = Fields.of(read_json(file, what, hint=_AGAIN), file, what, hint=_AGAIN)
    if fields.table.get("format") != FORMAT:
        raise BadInput(file, f"format {shown(fields.table.get('format'))}", f"format {FORMAT}", hint=_AGAIN)
    _check_record(fields)
    return ClipFolder(path=path, record=fields.table)


def _check_record(fields: Fields) -> None:
    """``BadInput`` where something that a clip's record holds is missing, of another type or beyond its range."""
    fields.text("name", empty=False)
    fields.text("key", empty=False)
    fields.whole("frames", 1, 10**8)
    fields.size("size", longest=LONGEST_SIDE)
    _check_rate(fields, "fps")
    source = fields.fields("source")
    source.text("path", empty=False)
    source.sha256("sha256", default=None)
    options = fields.fields("options")
    _check_rate(options, "fps")
    if "frames" in options:
        bounds = options.values("frames", (int, type(None)), 2)
        if not all(bound is None or abs(bound) <= 10**9 for bound in bounds):
            options.fail("frames", "[first, last], each a number of a frame or null")
    fields.flag("audio", default=False)
    fields.fields("people", default={}).values("kept", int, default=[])
    for finding in fields.rows("findings", default=[]):
        finding.text("code")
    quality = fields.fields("quality", default={})
    for key, value in quality.table.items():
        inner = quality.fields(key) if isinstance(value, dict) else quality
        for name in inner.table if inner is not quality else (key,):
            inner.number(name, default=None)
    repairs = fields.fields("repairs", default={})
    for key in ("frames", "points"):
        repairs.whole(key, default=0)


def _check_rate(fields: Fields, key: str) -> None:
    """A rate is null or a fraction as text."""
    text = fields.text(key, default=None)
    if text is not None and not re.fullmatch(r"[1-9][0-9]{0,9}(/[1-9][0-9]{0,9})?", text):
        fields.fail(key, "frames a second, as '30' or '30000/1001'")


def find_folders(root: Path) -> list[Path]:
    """All clip folders at or below ``root``, sorted by path; what begins with a dot is unfinished and not looked at."""
    if (root / RECORD).is_file():
        return [root]
    inside = (file.parent for file in root.rglob(RECORD))
    return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(root).parts))
