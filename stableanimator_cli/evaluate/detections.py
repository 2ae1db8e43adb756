"""Who is in each frame and where: faces by two recognisers, points of the body. Remembered by the video's digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.download import digest
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.capture import Detectors
from stableanimator_cli.detect.face import WIDTH, FaceReader, align
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing
from stableanimator_cli.files import atomic_write, sha256_of
from stableanimator_cli.motion.motion_file import read_arrays
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import Clip, Face, ModelFolder

BATCH = 8  # frames that are looked at together
FORMAT = 1  # of what is remembered; a change of what is seen makes everything anew
_POINTS = 134


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDetections:
    """What a video shows, by frame: face vectors of the model's recogniser ``own`` and of the ``judge``, both
    float32[t,512] with rows of NaN where there is no face (or no such network); ``points`` float32[t,134,3] of the
    largest person, score 0 where nobody is; ``size`` (width, height) of the frames."""

    own: np.ndarray
    judge: np.ndarray
    points: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.own)

    def at(self, positions: Sequence[int]) -> VideoDetections:
        """These frames."""
        kept = list(positions)
        return VideoDetections(own=self.own[kept], judge=self.judge[kept], points=self.points[kept], size=self.size)


class VideoDetector:
    """The networks that look at videos. Each may be absent: ``lacks`` says why, by ``faces``, ``judge``, ``points``,
    as (reason, command).

    ``model`` brings detectors and the recogniser, and the judge under the role ``judge``; ``judge`` is an ONNX file, a
    catalogue name or a folder of face models and wins over that. Colours are given in their right order whatever the
    model was trained with, so that numbers of several models compare. Raises ``ModelDamaged`` where a file is not what
    the catalogue says.
    """

    def __init__(self, model: ModelFolder | None, judge: str | None = None, device: str = "auto") -> None:
        self.lacks: dict[str, tuple[str, str]] = {}
        self.reader: FaceReader | None = None
        self.judge: Any = None
        self.detectors: Detectors | None = None
        self.networks: dict[str, dict[str, str]] = {}
        self._device = device
        if model is not None:
            _verify(model)
        if model is None or "face" not in model.files:
            name = "no model" if model is None else f"model {model.name}"
            self.lacks["faces"] = (f"{name} with a face recogniser here", "sa models pull antelopev2")
        else:
            self.reader = FaceReader(model.files["face"], "bgr", device)
            self._used("faces", self.reader.recogniser_file)
        self._open_judge(model, judge)
        self._open_points(model)

    def _open_judge(self, model: ModelFolder | None, judge: str | None) -> None:
        file = _judge_file(model, judge)
        if self.reader is None:
            self.lacks["judge"] = self.lacks["faces"]
        elif file is None:
            self.lacks["judge"] = ("no independent face recogniser here", "sa models pull buffalo_l")
        elif digest(file) == digest(self.reader.recogniser_file):
            self.lacks["judge"] = (
                f"{file.name} is the model's own recogniser, no independent one",
                "--judge FILE.onnx",
            )
        else:
            self.judge = onnx.session(file, self._device)
            outputs = self.judge.get_outputs()
            if len(outputs) != 1 or outputs[0].shape[-1] != WIDTH:
                raise ModelDamaged(
                    f"{file}: found an output of shape {outputs[0].shape}, expected {WIDTH} numbers a face"
                )
            self._used("judge", file)

    def _open_points(self, model: ModelFolder | None) -> None:
        try:
            if model is None:
                raise ModelMissing("no model with detectors here")
            self.detectors = Detectors.open(model, self._device, faces=False)
        except ModelMissing as error:
            self.lacks["points"] = (error.message, "sa models pull dwpose")
        else:
            assert model is not None
            self._used("points", model.files["pose_detector"])
            self._used("people", model.files["person_detector"])

    def _used(self, part: str, file: Path) -> None:
        self.networks[part] = {"file": file.name, "sha256": digest(file)}

    def observe(self, clip: Clip, reporter: Reporter, *, sha256: str | None = None) -> VideoDetections:
        """Look at every frame of a clip; what was seen of the same bytes by the same networks is remembered."""
        key = json.dumps([FORMAT, sha256 or sha256_of(clip.path), self.networks], sort_keys=True)
        place = catalogue.cache_dir() / "seen" / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
        known = _remembered(place)
        if known is not None:
            return known
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        with reporter.progress(clip.count, f"look at {clip.path.name}", "frame") as bar:
            for frames in _batches(frame for _, frame in clip.frames()):
                parts.append(self._look(frames))
                bar.update(len(frames))
        own, judge, points = (np.concatenate(part) for part in zip(*parts, strict=True))
        seen = VideoDetections(own=own, judge=judge, points=points, size=clip.size)
        # a cache that cannot be written costs time at the next run, nothing else
        with contextlib.suppress(BadInput, OSError), atomic_write(place) as part, part.open("wb") as file:
            np.savez_compressed(file, own=own, judge=judge, points=points, size=np.array(clip.size))
        return seen

    def vectors(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest face of a picture uint8[h,w,3] by both recognisers: two float32[512], NaN where there is none."""
        return self._faces(picture)

    def _look(self, frames: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        faces = [self._faces(frame) for frame in frames]
        points = np.zeros((len(frames), _POINTS, 3), np.float32)
        if self.detectors is not None:
            boxes = [_largest(rows) for rows in self.detectors.people.detect(frames)]
            for frame, people in enumerate(self.detectors.points.estimate(frames, boxes)):
                if len(people):
                    points[frame] = people[0]
        return np.stack([own for own, _ in faces]), np.stack([judge for _, judge in faces]), points

    def _faces(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nobody = np.full(WIDTH, np.nan, np.float32)
        if self.reader is None:
            return nobody, nobody
        found = [face for face in self.reader.faces(frame) if face.embedding is not None]
        if not found or found[0].embedding is None:
            return nobody, nobody
        return found[0].embedding, nobody if self.judge is None else self._judged(frame, found[0])

    def _judged(self, frame: np.ndarray, face: Face) -> np.ndarray:
        """ArcFace's contract: the aligned face RGB, (x - 127.5) / 127.5, [1,3,112,112] -> [1,512]."""
        aligned = align(frame, face.landmarks)
        if aligned is None:
            return np.full(WIDTH, np.nan, np.float32)
        pixels = (aligned.astype(np.float32) - 127.5) / 127.5
        return onnx.run(self.judge, np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0].reshape(-1)


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
    """The measuring networks must be those of the catalogue: a damaged one gives plausible wrong numbers."""
    if not (model.path / "model.toml").is_file():
        return
    for owner in catalogue.with_needs(catalogue.load(model.path)):
        for row in owner.files:
            place = catalogue.locate(owner, row.path) if row.path.endswith(".onnx") and row.sha256 else None
            if place is not None and digest(place) != row.sha256:
                found = digest(place)[:12]
                raise ModelDamaged(
                    f"{place}: found sha256 {found}..., expected {str(row.sha256)[:12]}... of {owner.name}",
                    hint=f"delete it, and `sa models pull {owner.name}` fetches it again",
                )


def _remembered(place: Path) -> VideoDetections | None:
    if not place.is_file():
        return None
    try:
        arrays = read_arrays(place, "what was seen of a video (.npz)")
    except BadInput:  # damaged: the video is looked at again
        return None
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


def _batches(frames: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
