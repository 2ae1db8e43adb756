"""The face of the reference picture pasted onto every frame: the baseline that stands in the row of FaceFusion.

The paper's Table 3 has a row for FaceFusion, a face-swapping program: post-processing that knows nothing of the model.
That program and its networks are not here. In its place is the plain form of the same idea, under its own name: five
landmarks of the largest face in the frame and in the reference picture, the similarity between them, and an oval of the
reference's pixels with a soft edge. No colours are matched and no expression is moved: the row shows what a copied face
does to CSIM and what it does to fidelity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stableanimator_cli.detect.face import FaceReader, onto_template
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.report import write_text
from stableanimator_cli.evaluate.run_record import read_record
from stableanimator_cli.files import MARK, check_replaceable, sha256_of
from stableanimator_cli.media import VideoWriter, open_clip, read_picture
from stableanimator_cli.motion.motion_file import UNTIMED_FPS
from stableanimator_cli.progress import Reporter
from stableanimator_cli.readers import read_json

CENTRE, HALF = (56.0, 68.0), (36.0, 42.0)  # of the oval on ArcFace's template: from the brows to the chin
INNER = 0.7  # share of the oval's radius within which the reference stands alone
_FORMAT = 1  # of what is pasted; a change of the pixels makes everything anew


def paste(frame: np.ndarray, landmarks: np.ndarray, picture: np.ndarray, known: np.ndarray) -> np.ndarray | None:
    """``frame`` uint8[h,w,3] with the face of ``picture`` uint8[h',w',3] on its own; ``landmarks`` and ``known`` are
    float[5,2] of the two faces, in pixels. None where the landmarks of one span nothing."""
    here, there = onto_template(landmarks), onto_template(known)
    if here is None or there is None:
        return None
    height, width = frame.shape[:2]
    moved = np.linalg.inv(here) @ there
    shrinks = 1 / float(np.sqrt(abs(np.linalg.det(moved[:2, :2]))))
    if shrinks > 1.5:  # sampling alone would drop rows
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 * shrinks)
    face = cv2.warpAffine(picture, moved[:2], (width, height), flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.ones(picture.shape[:2], np.float32), moved[:2], (width, height), flags=cv2.INTER_LINEAR)
    weight = (_oval(here, height, width) * inside)[..., None]
    return np.rint(frame * (1 - weight) + face * weight).astype(np.uint8)


def pasted(pairs: Sequence[Pair], folder: Path, reader: FaceReader, reporter: Reporter) -> list[Pair]:
    """The pairs with pasted videos in ``folder`` instead of theirs, lossless, so that nothing but the face differs.

    Frames without a face, and videos whose reference shows none, stay as they are; the record beside each video counts
    them. What is pasted already from the same videos is kept.
    """
    done = []
    with reporter.progress(len(pairs), "paste faces", "video") as bar:
        for pair in pairs:
            done.append(replace(pair, predicted=_one(pair, folder / f"{pair.name}.mp4", reader, reporter)))
            bar.update()
    return done


def _one(pair: Pair, video: Path, reader: FaceReader, reporter: Reporter) -> Path:
    note = video.with_name(f".{video.stem}.pasted.json")
    asked: dict[str, Any] = {
        "format": _FORMAT,
        "video": sha256_of(pair.predicted),
        "reference": None if pair.reference is None else sha256_of(pair.reference),
        "recogniser": sha256_of(reader.recogniser_file),
    }
    if _is_done(video, note, asked):
        return video
    check_replaceable(video, video.with_suffix(".json"), note)
    video.parent.mkdir(parents=True, exist_ok=True)
    picture = None if pair.reference is None else read_picture(pair.reference)
    face = None if picture is None else next(iter(reader.boxes(picture)), None)
    if face is None:
        reporter.warning(f"{pair.name}: no face in its reference picture, so that none is pasted")
    clip, changed, count = open_clip(pair.predicted), 0, 0
    with VideoWriter(video, clip.size, clip.fps or UNTIMED_FPS, lossless=True) as writer:
        for _, frame in clip.frames():
            out = None
            if picture is not None and face is not None and (found := reader.boxes(frame)):
                out = paste(frame, found[0].landmarks, picture, face.landmarks)
            writer.write(frame if out is None else out)
            changed += out is not None
            count += 1
    record = read_record(pair.predicted, reporter.warning)
    if record is not None:  # its windows, chunks and fitting hold for the pasted video too
        told = {**record, "face_paste": {"of": pair.predicted.name, "frames": count, "pasted": changed}}
        write_text(video.with_suffix(".json"), json.dumps(told, indent=1) + "\n")
    write_text(note, json.dumps({"tool": MARK, **asked, "pasted": sha256_of(video)}, indent=1) + "\n")
    return video


def _is_done(video: Path, note: Path, asked: Mapping[str, Any]) -> bool:
    try:
        told = read_json(note, "a note of what was pasted")
    except BadInput:
        return False
    return video.is_file() and told == {"tool": MARK, **asked, "pasted": sha256_of(video)}


def _oval(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """float64[h,w]: 1 well inside the oval, 0 outside, smooth between."""
    rows, columns = np.mgrid[:height, :width]
    x = matrix[0, 0] * columns + matrix[0, 1] * rows + matrix[0, 2]
    y = matrix[1, 0] * columns + matrix[1, 1] * rows + matrix[1, 2]
    radius = np.hypot((x - CENTRE[0]) / HALF[0], (y - CENTRE[1]) / HALF[1])
    share = np.clip((1 - radius) / (1 - INNER), 0, 1)
    return share * share * (3 - 2 * share)
