"""Pastes the face of the reference image onto every frame: a baseline in place of FaceFusion in the paper's Table 3.

FaceFusion, a face-swapping program, post-processes videos without knowing the model; its networks are not available
here. This is the plain form of the idea: a similarity transform between five landmarks of both faces, and an oval of
the reference's pixels with a soft edge. Colours and expressions stay as they are. The row shows what a copied face does
to CSIM and to fidelity.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from stableanimator_cli.config.animate import record_beside
from stableanimator_cli.detect.face import FaceReader, onto_template
from stableanimator_cli.evaluate.pairs import Pair
from stableanimator_cli.evaluate.report import write_text
from stableanimator_cli.evaluate.run_record import read_record
from stableanimator_cli.evaluate.stamp import Stamp
from stableanimator_cli.files import check_replaceable, sha256_of
from stableanimator_cli.media import VideoWriter, open_clip, read_image
from stableanimator_cli.motion.motion_file import UNTIMED_FPS
from stableanimator_cli.progress import Reporter

CENTRE, HALF = (56.0, 68.0), (36.0, 42.0)  # of the oval on ArcFace's template: from the brows to the chin
INNER = 0.7  # fraction of the oval's radius with full opacity
_FORMAT = 1  # of pasted videos; increase it if their pixels change


def paste(
    frame: np.ndarray, landmarks: np.ndarray, image: np.ndarray, image_landmarks: np.ndarray
) -> np.ndarray | None:
    """``frame`` uint8[h,w,3] with the face of ``image`` uint8[h',w',3] on its own. Landmarks are float[5,2] in pixels.
    None if the landmarks of either face are degenerate."""
    target, source = onto_template(landmarks), onto_template(image_landmarks)
    if target is None or source is None:
        return None
    height, width = frame.shape[:2]
    transform = np.linalg.inv(target) @ source
    shrinkage = 1 / float(np.sqrt(abs(np.linalg.det(transform[:2, :2]))))
    if shrinkage > 1.5:  # sampling alone would drop rows
        image = cv2.GaussianBlur(image, (0, 0), 0.4 * shrinkage)
    face = cv2.warpAffine(image, transform[:2], (width, height), flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(
        np.ones(image.shape[:2], np.float32), transform[:2], (width, height), flags=cv2.INTER_LINEAR
    )
    weight = (_oval(target, height, width) * inside)[..., None]
    return np.rint(frame * (1 - weight) + face * weight).astype(np.uint8)


def paste_faces(pairs: Sequence[Pair], folder: Path, reader: FaceReader, reporter: Reporter) -> list[Pair]:
    """Write lossless videos with pasted faces into ``folder`` and return the pairs with these videos.

    Frames without a face, and videos whose reference has none, are copied; the record beside each video counts the
    others. A video that was pasted from the same source is reused.
    """
    pasted = []
    with reporter.progress(len(pairs), "paste faces", "video") as bar:
        for pair in pairs:
            pasted.append(replace(pair, predicted=_paste_video(pair, folder / f"{pair.name}.mp4", reader, reporter)))
            bar.update()
    return pasted


def _paste_video(pair: Pair, video: Path, reader: FaceReader, reporter: Reporter) -> Path:
    beside = record_beside(pair.predicted)  # its windows, chunks and resizing hold for the pasted video too
    source = {
        "format": _FORMAT,
        "video": sha256_of(pair.predicted),
        "record": sha256_of(beside) if beside.is_file() else None,
        "reference": None if pair.reference is None else sha256_of(pair.reference),
        "recogniser": sha256_of(reader.recogniser_file),
    }
    stamp = Stamp(video, "pasted", source, key="pasted")
    if stamp.is_current():
        return video
    check_replaceable(video, video.with_suffix(".json"))
    video.parent.mkdir(parents=True, exist_ok=True)
    image = None if pair.reference is None else read_image(pair.reference)
    face = None if image is None else next(iter(reader.boxes(image)), None)
    if face is None:
        reporter.warning(f"{pair.name}: no face in its reference image, so that none is pasted")
    clip, changed, count = open_clip(pair.predicted), 0, 0
    with VideoWriter(video, clip.size, clip.fps or UNTIMED_FPS, lossless=True) as writer:
        for _, frame in clip.frames():
            out = None
            if image is not None and face is not None and (detected := reader.boxes(frame)):
                out = paste(frame, detected[0].landmarks, image, face.landmarks)
            writer.write(frame if out is None else out)
            changed += out is not None
            count += 1
    record = read_record(pair.predicted, reporter.warning)
    if record is None:
        video.with_suffix(".json").unlink(missing_ok=True)  # of an earlier video of this name
    else:
        record["face_paste"] = {"of": pair.predicted.name, "frames": count, "pasted": changed}
        write_text(video.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    stamp.write()
    return video


def _oval(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """float64[h,w]: 1 well inside the oval, 0 outside, smooth between."""
    rows, columns = np.mgrid[:height, :width]
    x = matrix[0, 0] * columns + matrix[0, 1] * rows + matrix[0, 2]
    y = matrix[1, 0] * columns + matrix[1, 1] * rows + matrix[1, 2]
    radius = np.hypot((x - CENTRE[0]) / HALF[0], (y - CENTRE[1]) / HALF[1])
    opacity = np.clip((1 - radius) / (1 - INNER), 0, 1)
    return opacity * opacity * (3 - 2 * opacity)
