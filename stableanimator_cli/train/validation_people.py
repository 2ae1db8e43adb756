"""Faces in validation: of one person for the full frame, or of several people, each where that person is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stableanimator_cli.engine.conditioning import PeopleFaces
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.motion.geometry import Mode
from stableanimator_cli.motion.track import match_faces
from stableanimator_cli.train.annotations import MotionAnnotations
from stableanimator_cli.train.dataset import ClipAnnotations


def faces_of(
    annotations: ClipAnnotations, frames: Sequence[int], size: tuple[int, int], resize: Mode
) -> np.ndarray | PeopleFaces | None:
    """The face of frame 0 as ``sa animate`` gives it to the UNet: float32[512] of one person, vectors and regions in
    ``frames`` of several; None if no face is known."""
    if not isinstance(annotations, MotionAnnotations) or len(annotations.people) < 2:
        return annotations.faces.embedding(0)
    vectors = [annotations.embedding(0, person) for person in range(len(annotations.people))]
    if all(vector is None for vector in vectors):
        return None
    unknown = np.full(512, np.nan, np.float32)
    rows = np.stack([unknown if vector is None else vector for vector in vectors])
    return PeopleFaces(vectors=rows.astype(np.float32), regions=annotations.regions(frames, size, resize))


def csim_of_faces(
    engine: Engine, images: Sequence[np.ndarray], face: np.ndarray | PeopleFaces, points: np.ndarray | None
) -> dict[str, Any]:
    """``csim``: mean cosine similarity to ``face`` per frame, and per person with a known face (``csim_by_person``,
    only of several); ``faces``: the fraction of them that show one. A missing face counts as 0.

    One person's face is the largest of a frame. Of several people it is the one at the keypoints ``points``
    float32[t,p,134,3]; a person whose keypoints a frame lacks is not looked for there.
    """
    if "face" not in engine.model.files:
        return {"csim": None, "faces": None}
    reader = engine.faces()
    found = [[one for one in reader.faces(image) if one.embedding is not None] for image in images]
    if not isinstance(face, PeopleFaces):
        values = [_cosine(faces[0].embedding, face) if faces else None for faces in found]
        return {"csim": _mean_with_zeros(values), "faces": _fraction_known(values)}
    assert points is not None  # regions are drawn from them
    similarities: list[list[float | None]] = [[] for _ in face.vectors]
    for faces, people in zip(found, points, strict=True):
        matched = match_faces(people, np.array([one.box for one in faces], np.float32).reshape(-1, 4))
        for person in np.flatnonzero(face.known & (people[..., 2] > 0).any(axis=-1)):
            index = int(matched[person])
            value = None if index < 0 else _cosine(faces[index].embedding, face.vectors[person])
            similarities[person].append(value)
    means = [_mean_with_zeros(values) if values else None for values in similarities]
    known = [mean for mean in means if mean is not None]
    return {
        "csim": sum(known) / len(known) if known else None,
        "faces": _fraction_known([value for values in similarities for value in values]) if known else None,
        "csim_by_person": means,
    }


def _cosine(left: Any, right: np.ndarray) -> float:
    return float(np.dot(left, right) / max(1e-12, float(np.linalg.norm(left) * np.linalg.norm(right))))


def _mean_with_zeros(values: Sequence[float | None]) -> float:
    return sum(value or 0.0 for value in values) / len(values)


def _fraction_known(values: Sequence[float | None]) -> float:
    return sum(value is not None for value in values) / len(values)
