"""Faces (by two recognisers) and body points in each frame of a video, cached by the video's digest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import evaluation_cache
from stableanimator_cli.catalogue.damage import fetch_again
from stableanimator_cli.catalogue.download import digest
from stableanimator_cli.catalogue.remedy import PROVIDERS, download_for, remedy
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.detect.face import WIDTH, FaceReader, align
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from stableanimator_cli.records import Clip, Face, ModelFolder

BATCH = 8  # frames per call of the detectors
FORMAT = 1  # of cached detections; increase it if the networks' inputs change
_POINTS = 134


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDetections:
    """Detections per frame. ``own`` and ``judge`` are face embeddings float32[t,512] of the model's recogniser and of
    the independent one, rows of NaN without a face or network. ``points`` float32[t,134,3] belong to the largest
    person and have score 0 without one. ``size`` is (width, height) of the frames."""

    own: np.ndarray
    judge: np.ndarray
    points: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.own)

    def at(self, positions: Sequence[int]) -> VideoDetections:
        rows = list(positions)
        return VideoDetections(own=self.own[rows], judge=self.judge[rows], points=self.points[rows], size=self.size)


class VideoDetector:
    """Detectors and face recognisers. ``unavailable`` names those that are not installed, ``faces``, ``judge`` or
    ``points``, with (reason, command).

    ``model`` provides detectors, the recogniser and the judge. ``judge``, an ONNX file, a catalogue name or a folder of
    face models, takes precedence. All networks see RGB frames whatever the model was trained with, so that scores of
    several models compare. Raises ``ModelDamaged`` if a file differs from the catalogue.
    """

    def __init__(self, model: ModelFolder | None, judge: str | None = None, device: str = "auto") -> None:
        self.unavailable: dict[str, tuple[str, str]] = {}
        self.reader: FaceReader | None = None
        self.judge: Any = None
        self.detectors: Detectors | None = None
        self.networks: dict[str, dict[str, str]] = {}
        self._device = device
        if model is not None:
            _verify(model)
        if model is None or "face" not in model.files:
            name = "no model" if model is None else f"model {model.name}"
            self.unavailable["faces"] = (f"{name} with a face recogniser here", _command(model, "face"))
        else:
            self.reader = FaceReader(model.files["face"], "bgr", device)
            self._used("faces", self.reader.recogniser_file)
        self._open_judge(model, judge)
        self._open_points(model)

    def _open_judge(self, model: ModelFolder | None, judge: str | None) -> None:
        file = _judge_file(model, judge)
        if self.reader is None:
            self.unavailable["judge"] = self.unavailable["faces"]
        elif file is None:
            self.unavailable["judge"] = ("no independent face recogniser here", "sa models pull buffalo_l")
        elif digest(file) == digest(self.reader.recogniser_file):
            self.unavailable["judge"] = (
                f"{file.name} is the model's own recogniser, no independent one",
                "--judge FILE.onnx",
            )
        else:
            self.judge = onnx.session(file, self._device)
            outputs = self.judge.get_outputs()
            if len(outputs) != 1 or outputs[0].shape[-1] != WIDTH:
                raise ModelDamaged(
                    f"{file}: found an output of shape {outputs[0].shape}, expected {WIDTH} numbers per face"
                )
            self._used("judge", file)

    def _open_points(self, model: ModelFolder | None) -> None:
        try:
            if model is None:
                raise ModelMissing("no model with detectors here")
            self.detectors = Detectors.open(model, self._device, faces=False)
        except ModelMissing as error:
            self.unavailable["points"] = (error.message, _command(model, "pose_detector"))
        else:
            assert model is not None
            self._used("points", model.files["pose_detector"])
            self._used("people", model.files["person_detector"])

    def _used(self, part: str, file: Path) -> None:
        self.networks[part] = {"file": file.name, "sha256": digest(file)}

    def start(self, clip: Clip, *, sha256: str) -> DetectionPass:
        """Detect in the frames of a clip while they are read for something else. ``sha256`` is the clip's."""
        return DetectionPass(self, clip, json.dumps([FORMAT, sha256, self.networks], sort_keys=True))

    def detect(self, frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``own``, ``judge`` and ``points`` of some frames, see ``VideoDetections``."""
        faces = [self.embed_largest_face(frame) for frame in frames]
        own, judge = (np.stack(part) for part in zip(*faces, strict=True))
        return own, judge, self.find_points(frames)

    def find_points(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Points float32[t,134,3] of the largest person of each frame, score 0 without one."""
        points = np.zeros((len(frames), _POINTS, 3), np.float32)
        if self.detectors is not None:
            boxes = [_largest(rows) for rows in self.detectors.people.detect(frames)]
            for frame, people in enumerate(self.detectors.points.estimate(frames, boxes)):
                if len(people):
                    points[frame] = people[0]
        return points

    def embed_largest_face(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of an image uint8[h,w,3] by both recognisers: two float32[512], NaN without a face."""
        absent = np.full(WIDTH, np.nan, np.float32)
        faces = [] if self.reader is None else [f for f in self.reader.faces(image) if f.embedding is not None]
        if not faces or faces[0].embedding is None:
            return absent, absent
        return faces[0].embedding, absent if self.judge is None else self._judged(image, faces[0])

    def embed_faces(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Box float32[4] and embeddings, as ``embed_largest_face``, of each face of an image, largest first."""
        absent = np.full(WIDTH, np.nan, np.float32)
        faces = [] if self.reader is None else self.reader.faces(image)
        return [
            (face.box, face.embedding, absent if self.judge is None else self._judged(image, face))
            for face in faces
            if face.embedding is not None
        ]

    def _judged(self, frame: np.ndarray, face: Face) -> np.ndarray:
        """ArcFace's contract: the aligned face RGB, (x - 127.5) / 127.5, [1,3,112,112] -> [1,512]."""
        aligned = align(frame, face.landmarks)
        if aligned is None:
            return np.full(WIDTH, np.nan, np.float32)
        pixels = (aligned.astype(np.float32) - 127.5) / 127.5
        return onnx.run(self.judge, np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0].reshape(-1)


class DetectionPass:
    """One pass over a clip that serves detection and another reader: ``clip`` gives the other reader its frames.

    ``finish`` detects in the frames that the reader left, so that each video is decoded once. Detections of the same
    bytes by the same networks come from the cache. At most ``BATCH`` frames are held.
    """

    def __init__(self, detector: VideoDetector, clip: Clip, key: str) -> None:
        self._clip, self._detector, self._key = clip, detector, key
        self._frames = clip.frames()
        self._cached = _cached(key)
        self._batch: list[np.ndarray] = []
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    @property
    def clip(self) -> Clip:
        """The clip for the other reader. It is not stored: the cycle would keep the video of a failed pass open."""
        return replace(self._clip, frames=self._read)

    def _read(self) -> Iterator[tuple[Fraction | None, np.ndarray]]:
        for time, frame in self._frames:
            if self._cached is None:
                self._batch.append(frame)
                if len(self._batch) == BATCH:
                    self._detect_batch()
            yield time, frame

    def finish(self) -> VideoDetections:
        """Detections of all frames."""
        if self._cached is not None:
            return self._cached
        for _ in self._read():
            pass
        if self._batch:
            self._detect_batch()
        own, judge, points = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        size = self._clip.size
        arrays = {"own": own, "judge": judge, "points": points, "size": np.array(size)}
        evaluation_cache.store_arrays("seen", self._key, arrays)
        self._cached = VideoDetections(own=own, judge=judge, points=points, size=size)
        return self._cached

    def _detect_batch(self) -> None:
        self._parts.append(self._detector.detect(self._batch))
        self._batch = []


def _command(model: ModelFolder | None, role: str) -> str:
    """The command that gives ``model``, else the default model, a detector; if none does, what does."""
    name = PROVIDERS[role] if model is None else download_for(model, role)
    return remedy(model, role) if model is not None and name is None else f"sa models pull {name}"


def _judge_file(model: ModelFolder | None, judge: str | None) -> Path | None:
    if judge is not None:
        if judge.endswith(".onnx"):
            return onnx.check_file(judge)
        return FaceReader(catalogue.open_model(judge, ["face"]).files["face"]).recogniser_file
    if model is not None and "judge" in model.files:
        return model.files["judge"]
    try:
        return FaceReader(catalogue.open_model("buffalo_l", ["face"]).files["face"]).recogniser_file
    except ModelMissing:
        return None


def _verify(model: ModelFolder) -> None:
    """Compare the networks with the catalogue: a damaged one returns plausible wrong embeddings."""
    if not (model.path / "model.toml").is_file():
        return
    for entry in catalogue.with_needs(catalogue.load_entry(model.path)):
        for row in entry.files:
            path = catalogue.locate(entry, row.path) if row.path.endswith(".onnx") and row.sha256 else None
            if path is not None and (actual := digest(path)) != row.sha256:
                raise ModelDamaged(
                    f"{path}: found sha256 {actual[:12]}..., expected {str(row.sha256)[:12]}... of {entry.name}",
                    hint=fetch_again(path),
                )


def _cached(key: str) -> VideoDetections | None:
    arrays = evaluation_cache.load_arrays("seen", key) or {}
    count = len(np.atleast_1d(arrays.get("own", 0)))
    shapes = {"own": (count, WIDTH), "judge": (count, WIDTH), "points": (count, _POINTS, 3), "size": (2,)}
    if any(name not in arrays or arrays[name].shape != shape for name, shape in shapes.items()):
        return None
    width, height = (int(side) for side in arrays["size"])
    return VideoDetections(own=arrays["own"], judge=arrays["judge"], points=arrays["points"], size=(width, height))


def _largest(boxes: np.ndarray) -> np.ndarray:
    """float[p,5] -> the largest row, [1,5] or [0,5]."""
    if not len(boxes):
        return boxes
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return boxes[[int(areas.argmax())]]
