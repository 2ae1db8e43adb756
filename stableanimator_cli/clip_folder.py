"""Clip folders: what ``sa preprocess`` writes per video and training reads (``docs/formats.md``, "Clip folder").

``clip.json`` is the record of the clip, ``motion.npz`` holds its keypoints and ``faces.npz`` its faces. ``source`` with
the video's own suffix is the video, or a link to it.
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
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip, resample, take
from stableanimator_cli.motion.motion_file import FARTHEST, LONGEST_SIDE, load_motion, read_arrays, write_arrays
from stableanimator_cli.motion.repair import Gap, Repairs
from stableanimator_cli.readers import read_json
from stableanimator_cli.readers_fields import Fields, shown
from stableanimator_cli.records import ChannelOrder, Clip, Face, Motion

FORMAT = 1
RECORD, MOTION, FACES, SHEET, SOURCE = "clip.json", "motion.npz", "faces.npz", "sheet.jpg", "source"
WIDTH = 512
"""Values per face embedding."""

_CACHES = r"embeddings\.safetensors|latents-\d+x\d+\.safetensors"
_AGAIN = "run `sa preprocess` on the video again"
_INTEGERS = ("frame", "person")
_SHAPES = {"frame": (), "person": (), "boxes": (4,), "landmarks": (5, 2), "scores": (), "embeddings": (WIDTH,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceTable:
    """All faces of a clip, one row per face, ordered by frame, then by size.

    ``frame`` int64[n]; ``person`` int64[n]: index of the person in the motion, -1 for other people; ``boxes``
    float32[n,4] in pixels; ``landmarks`` float32[n,5,2]; ``scores`` float32[n]; ``embeddings`` float32[n,512]: raw
    ArcFace output, NaN if the face could not be recognised. ``channel_order`` is the colour order of ArcFace's input:
    embeddings of two orders must not be compared.
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
    def of(cls, rows: list[tuple[int, int, Face]], order: ChannelOrder) -> FaceTable:
        """The table of rows (frame, person or -1, face)."""
        unknown = np.full(WIDTH, np.nan, np.float32)
        embeddings = [unknown if face.embedding is None else face.embedding for _, _, face in rows]
        return cls(
            frame=np.array([frame for frame, _, _ in rows], np.int64),
            person=np.array([person for _, person, _ in rows], np.int64),
            boxes=np.array([face.box for _, _, face in rows], np.float32).reshape(-1, 4),
            landmarks=np.array([face.landmarks for _, _, face in rows], np.float32).reshape(-1, 5, 2),
            scores=np.array([face.score for _, _, face in rows], np.float32),
            embeddings=np.array(embeddings, np.float32).reshape(-1, WIDTH),
            channel_order=order,
        )

    def at(self, frame: int) -> np.ndarray:
        """Indices of the rows of one frame, int64[k]."""
        return np.flatnonzero(self.frame == frame)


def save_faces(path: Path, faces: FaceTable) -> None:
    """Write ``faces.npz`` atomically; equal faces give equal bytes."""
    arrays: dict[str, Any] = {name: getattr(faces, name) for name in _SHAPES}
    arrays |= {"version": np.int64(FORMAT), "channel_order": np.array(faces.channel_order)}
    write_arrays(path, arrays)


def load_faces(path: Path) -> FaceTable:
    """Read ``faces.npz``. Raises ``BadInput`` if it is missing, damaged, or of another version or shape."""
    arrays = read_arrays(path, "a file of faces (.npz)")
    version = arrays.get("version")
    if version is None or version.shape != () or version.dtype.kind not in "iu" or int(version) != FORMAT:
        found = "no version" if version is None else f"version {version.tolist()}"
        raise BadInput(path, found, f"version {FORMAT} of a file of faces", hint=_AGAIN)
    missing = [name for name in (*_SHAPES, "channel_order") if name not in arrays]
    if missing:
        raise BadInput(path, f"no array {missing[0]!r}", f"the arrays {', '.join(_SHAPES)}", hint=_AGAIN)
    for name in _SHAPES:
        if arrays[name].dtype.kind not in ("iu" if name in _INTEGERS else "f"):
            kind = "whole numbers" if name in _INTEGERS else "floats"
            raise BadInput(path, f"{name} of type {arrays[name].dtype}", kind, hint=_AGAIN)
    order = str(arrays["channel_order"])
    if order not in get_args(ChannelOrder):
        raise BadInput(path, f"channel_order {order!r}", "'bgr' or 'rgb'", hint=_AGAIN)
    _check_faces(path, arrays)
    table = {name: arrays[name].astype(np.int64 if name in _INTEGERS else np.float32) for name in _SHAPES}
    return FaceTable(channel_order=order, **table)  # type: ignore[arg-type]


def _check_faces(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Check shapes and ranges. Only an embedding may be unknown, as a row of NaN."""
    count = arrays["frame"].size
    for name, shape in _SHAPES.items():
        array = arrays[name]
        if array.shape != (count, *shape):
            found = f"{name}{list(array.shape)} of {array.dtype}"
            numbers = "whole numbers" if name in _INTEGERS else "numbers"
            raise BadInput.because(path, f"{found} does not hold the {numbers} of {count} faces", hint=_AGAIN)
        if name not in (*_INTEGERS, "embeddings") and not (np.abs(array) <= FARTHEST).all():  # False for NaN
            problem = f"{name} holds numbers that are not finite, or far outside of the frame"
            raise BadInput.because(path, problem, hint=_AGAIN)
    if (arrays["frame"] < 0).any() or (arrays["person"] < -1).any():
        raise BadInput.because(path, "a frame or a person has a negative number", hint=_AGAIN)
    embeddings = arrays["embeddings"]
    finite = np.isfinite(embeddings.astype(np.float32))
    if not (finite.all(axis=1) | np.isnan(embeddings).all(axis=1)).all():
        raise BadInput.because(path, "an embedding is neither finite nor unknown", hint=_AGAIN)


def check_frames(path: Path, faces: FaceTable, frames: int) -> FaceTable:
    """Return ``faces``. Raises ``BadInput`` if one is in a frame that a clip of ``frames`` does not have."""
    if (faces.frame >= frames).any():
        problem = f"it has a face in frame {int(faces.frame.max())} of a clip of {frames} frames"
        raise BadInput.because(path, problem, hint=_AGAIN)
    return faces


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFolder:
    """A finished clip on disk. Only ``clip.json`` is read at first, other files when they are needed."""

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
        """The video in the folder, else at its original path. Raises ``BadInput`` if both are missing."""
        for path in (source_inside(self.path), Path(self.record["source"]["path"])):
            if path is not None and path.exists():
                return path
        raise BadInput(
            self.path, "neither a source in the folder nor " + str(self.record["source"]["path"]), "the clip's video",
            hint="bring the video back to where it was, or run `sa preprocess --source copy` where it is",
        )  # fmt: skip

    @property
    def repairs(self) -> Repairs:
        """Changes of the motion after detection."""
        return _repairs(Fields.of(self.record, self.path / RECORD, "the record of a clip", hint=_AGAIN))

    def motion(self) -> Motion:
        motion = load_motion(self.path / MOTION)
        if len(motion) != self.frames:
            raise BadInput(self.path / MOTION, f"{len(motion)} frames", f"{self.frames} as in {RECORD}", hint=_AGAIN)
        return motion

    def faces(self) -> FaceTable:
        return check_frames(self.path / FACES, load_faces(self.path / FACES), self.frames)

    def pictures(self) -> Clip:
        """The frames of the source, cut and resampled like for the motion."""
        options = self.record["options"]
        first, last = options["frames"] or (None, None)
        return select_frames(open_clip(self.source), (first, last), options["fps"])


def source_inside(folder: Path) -> Path | None:
    """The video in a clip folder, None if it is missing or a broken link."""
    named = (entry for entry in sorted(folder.glob(f"{SOURCE}*")) if entry.stem == SOURCE)
    return next((entry for entry in named if entry.exists()), None)


def select_frames(clip: Clip, frames: tuple[int | None, int | None], fps: str | Fraction | None) -> Clip:
    """A half-open range of frames, then resampled to ``fps``."""
    selected = take(clip, *frames)
    return selected if fps is None else resample(selected, Fraction(fps))


def open_folder(path: Path) -> ClipFolder:
    """Open the clip in a folder. Raises ``BadInput`` if there is none or its record is not valid."""
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
    """Raise ``BadInput`` if a value is missing, of another type or out of range."""
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
            options.fail("frames", "[first, last], each a frame number or null")
    fields.flag("audio", default=False)
    fields.fields("people", default={}).values("kept", int, default=[])
    for finding in fields.rows("findings", default=[]):
        finding.text("code")
    quality = fields.fields("quality", default={})
    for key, value in quality.table.items():
        inner = quality.fields(key) if isinstance(value, dict) else quality
        for name in inner.table if inner is not quality else (key,):
            inner.number(name, default=None)
    _repairs(fields)


def _repairs(fields: Fields) -> Repairs:
    """What a record says of repairs. Raises ``BadInput`` for values of another type or out of range."""
    repairs = fields.fields("repairs", default={})
    gaps = (
        Gap(track=gap.whole("track"), first=gap.whole("first"), stop=gap.whole("stop"), filled=gap.flag("filled"))
        for gap in repairs.rows("gaps", default=[])
    )
    return Repairs(
        frames=repairs.whole("frames", default=0),
        points=repairs.whole("points", default=0),
        emptied=repairs.whole("emptied", default=0),
        gaps=tuple(gaps),
        smooth=repairs.number("smooth", 0, default=0),
        moved=repairs.number("moved", 0, default=0),
    )


def _check_rate(fields: Fields, key: str) -> None:
    """Check a frame rate: null or a fraction as text."""
    text = fields.text(key, default=None)
    if text is not None and not re.fullmatch(r"[1-9][0-9]{0,9}(/[1-9][0-9]{0,9})?", text):
        fields.fail(key, "frames per second, as '30' or '30000/1001'")


def is_clip(folder: Path) -> bool:
    """Whether a folder is a clip that is complete: record and motion are there."""
    return (folder / RECORD).is_file() and (folder / MOTION).is_file()


def digest(path: Path) -> str:
    """sha256 of an input: a file, a folder, or a clip folder without the caches that trainings add to it, which change
    nothing of the clip. Raises ``BadInput``."""
    return sha256_of(path, without=_CACHES if (path / RECORD).is_file() else "")


def find_folders(root: Path) -> list[Path]:
    """All clip folders at or below ``root``, sorted by path. Names that start with a dot are unfinished and skipped."""
    if (root / RECORD).is_file():
        return [root]
    inside = (file.parent for file in root.rglob(RECORD))
    return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(root).parts))
