"""Identity of several people in one video: each drawn face against its own person's face in the reference.

People are those of the run record, perhaps only one, or, without a record, those whom motion and reference image both
show if they are several. Faces are matched with people by the points of the motion, so a face at another's place counts
as that other's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stableanimator_cli.catalogue import evaluation_cache
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import read_image
from stableanimator_cli.metrics import identity
from stableanimator_cli.metrics.identity import Csim
from stableanimator_cli.motion.left_to_right import people_left_to_right
from stableanimator_cli.motion.track import largest_people, match_faces
from stableanimator_cli.records import Clip, Motion

if TYPE_CHECKING:  # imports the libraries of the detectors
    from stableanimator_cli.evaluate.detections import VideoDetector

_FORMAT = 1  # of cached faces; increase it if the networks' inputs change


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceRows:
    """All faces of some frames: ``frame`` int64[n], ``boxes`` float32[n,4] in pixels, and embeddings float32[n,512] of
    the model's recogniser (``own``) and of the independent one (``judge``, NaN without it)."""

    frame: np.ndarray
    boxes: np.ndarray
    own: np.ndarray
    judge: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)

    @classmethod
    def of_frames(cls, detector: VideoDetector, frames: Sequence[np.ndarray] | Any) -> FaceRows:
        """Faces of images uint8[h,w,3]."""
        rows = [(t, *face) for t, frame in enumerate(frames) for face in detector.embed_faces(frame)]
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        return cls(
            frame=np.array(columns[0], np.int64),
            boxes=np.array(columns[1], np.float32).reshape(-1, 4),
            own=np.array(columns[2], np.float32).reshape(-1, 512),
            judge=np.array(columns[3], np.float32).reshape(-1, 512),
        )

    @classmethod
    def of_clip(cls, detector: VideoDetector, clip: Clip, sha256: str) -> FaceRows:
        """Faces of all frames of a clip, cached by its digest."""
        key = json.dumps([_FORMAT, "faces", sha256, detector.networks], sort_keys=True)
        cached = evaluation_cache.load_arrays("seen", key)
        if cached is not None and {"frame", "boxes", "own", "judge"} <= set(cached):
            return cls(**{name: cached[name] for name in ("frame", "boxes", "own", "judge")})
        found = cls.of_frames(detector, (frame for _, frame in clip.frames()))
        arrays = {"frame": found.frame, "boxes": found.boxes, "own": found.own, "judge": found.judge}
        evaluation_cache.store_arrays("seen", key, arrays)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonReference:
    """The face that a person should have: ``index`` in the motion, ``number`` of the track, embeddings float32[512] as
    in ``FaceRows``."""

    index: int
    number: int
    own: np.ndarray
    judge: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonScore:
    """Identity of one person of a video. ``values`` and ``counts`` as in ``VideoScore``, by metric."""

    number: int
    values: Mapping[str, float]
    counts: Mapping[str, int]


@dataclass(slots=True)
class PeopleCurves:
    """Similarities float[t] per person by metric, NaN without a face, and the frames bool[t] that count."""

    numbers: tuple[int, ...]
    curves: dict[str, list[np.ndarray]] = field(default_factory=dict)
    valid: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, metric: str, curve: np.ndarray, valid: np.ndarray) -> None:
        self.curves.setdefault(metric, []).append(curve)
        self.valid.setdefault(metric, []).append(valid)

    def summaries(self, metric: str) -> list[Csim]:
        return [identity.summary(*pair) for pair in zip(self.curves[metric], self.valid[metric], strict=True)]

    def mean_curve(self, metric: str) -> np.ndarray:
        """Mean over the people whose face counts in a frame, NaN if there is none."""
        curves = np.where(np.stack(self.valid[metric]), np.stack(self.curves[metric]), np.nan)
        known = np.isfinite(curves)
        return np.where(known, curves, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)

    def people(self) -> tuple[PersonScore, ...]:
        summaries = {metric: self.summaries(metric) for metric in self.curves}
        rows = []
        for k, number in enumerate(self.numbers):
            values, counts = {}, {}
            for metric, found in summaries.items():
                values[metric], counts[metric] = found[k].mean, found[k].detected
                values[f"{metric}_zero"], counts[f"{metric}_zero"] = found[k].zero, found[k].valid
            first = next(iter(summaries.values()))[k]
            values["face_rate"], counts["face_rate"] = first.detection_rate, first.valid
            rows.append(PersonScore(number=number, values=values, counts=counts))
        return tuple(rows)


def people_of(
    record: Mapping[str, Any] | None, motion: Motion, image: np.ndarray, detector: VideoDetector
) -> tuple[PersonReference, ...]:
    """The people whose faces are compared, in the order of the record or from left to right; empty if one
    face is for everybody.

    ``motion`` drove the video, ``image`` uint8[h,w,3] is the reference image. Raises ``BadInput`` if the record names
    an image of a face that cannot be read.
    """
    faces = FaceRows.of_frames(detector, [image])
    order = np.argsort(faces.boxes[:, 0] + faces.boxes[:, 2], kind="stable")
    if record is not None:
        return _recorded(record, motion, faces, order, detector)
    people = largest_people(motion, len(motion.track)) if motion.present.any() else []
    count = min(len(people), len(faces))
    if count < 2:
        return ()
    people = people_left_to_right(motion, people[:count])
    largest = np.argsort(-_areas(faces.boxes), kind="stable")[:count]
    rows = [row for row in order if row in largest]
    return tuple(_reference(motion, index, faces, row) for index, row in zip(people, rows, strict=True))


def _recorded(
    record: Mapping[str, Any], motion: Motion, faces: FaceRows, order: np.ndarray, detector: VideoDetector
) -> tuple[PersonReference, ...]:
    rows = record.get("people")
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, Mapping) or row.get("person") not in motion.track:
            continue
        index, face = motion.track.tolist().index(row["person"]), row.get("face")
        if type(face) is int and 0 <= face < len(order):
            found.append(_reference(motion, index, faces, int(order[face])))
        elif face is None and isinstance(row.get("image"), str):
            other = FaceRows.of_frames(detector, [_image_of_face(record, row)])
            if not len(other):
                raise BadInput(Path(row["image"]), "no face", f"the face of person {row['person']}, as in the record")
            found.append(_reference(motion, index, other, int(np.argmax(_areas(other.boxes)))))
    return tuple(found)


def _image_of_face(record: Mapping[str, Any], row: Mapping[str, Any]) -> np.ndarray:
    """The image that ``row`` of a record's people names, uint8[h,w,3]. Raises ``BadInput`` unless it is the run's."""
    path, inputs = Path(row["image"]), record.get("inputs")
    expected = f"the image of the face of person {row['person']}, as in the run record"
    hint = "run sa evaluate in the folder where the run was, with the image as it was"
    if not path.is_file():
        raise BadInput(path, "no such file", expected, hint=hint)
    read = [one for one in inputs.values() if isinstance(one, Mapping)] if isinstance(inputs, Mapping) else []
    digests = {one.get("sha256") for one in read if one.get("path") == row["image"]}
    if digests and sha256_of(path) not in digests:
        raise BadInput(path, "another file", expected, hint=hint)
    return read_image(path)


def _reference(motion: Motion, index: int, faces: FaceRows, row: int) -> PersonReference:
    return PersonReference(
        index=index, number=int(motion.track[index]), own=faces.own[row], judge=faces.judge[row]
    )  # fmt: skip


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)


def at_frames(motion: Motion, frames: Sequence[int]) -> Motion:
    """The motion in these frames, some perhaps repeated, without times."""
    rows = list(frames)
    return replace(
        motion,
        keypoints=motion.keypoints[rows],
        present=motion.present[rows],
        face_boxes=motion.face_boxes[rows],
        times=None,
    )


def embeddings_of(
    people: Sequence[PersonReference], faces: FaceRows, frames: Sequence[int], motion: Motion, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """``own`` and ``judge`` float32[t,k,512] of the people in the video's ``frames``, NaN where no face is found.

    ``motion`` has one frame per entry of ``frames``; its points are resized to ``size``, that of the video.
    """
    scale = np.array(size, np.float32) / np.array(motion.size, np.float32)
    own, judge = np.full((2, len(frames), len(people), 512), np.nan, np.float32)
    for t, frame in enumerate(frames):
        points = np.where(motion.present[t, :, None, None], motion.keypoints[t], 0)
        points[..., :2] *= scale
        rows = np.flatnonzero(faces.frame == frame)
        owned = match_faces(points, faces.boxes[rows])
        for k, person in enumerate(people):
            if owned[person.index] >= 0:
                row = rows[owned[person.index]]
                own[t, k], judge[t, k] = faces.own[row], faces.judge[row]
    return own, judge


def measure(
    people: Sequence[PersonReference],
    predicted: tuple[np.ndarray, np.ndarray],
    target: tuple[np.ndarray, np.ndarray] | None,
    *,
    judged: bool,
) -> PeopleCurves:
    """Similarities of all people to their references and, if there is a ``target``, to its faces.

    ``predicted`` and ``target`` are pairs of ``embeddings_of``. ``judged``: whether there is an independent recogniser.
    """
    curves = PeopleCurves(tuple(person.number for person in people))
    for side, suffix in enumerate(("", "_judge") if judged else ("",)):
        for k, person in enumerate(people):
            rows, reference = predicted[side][:, k], (person.own, person.judge)[side]
            valid = np.ones(len(rows), bool)
            if target is not None:
                valid = np.asarray(np.isfinite(target[side][:, k]).all(axis=1))
            curves.add(f"csim_ref{suffix}", identity.cosines(rows, reference), valid & np.isfinite(reference).all())
            if target is not None:
                curves.add(f"csim_gt{suffix}", identity.cosines(rows, target[side][:, k]), valid)
    return curves
