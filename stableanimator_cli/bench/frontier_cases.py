"""Cases of ``sa bench frontier``: videos with a ground truth, and what a rendering loses of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stableanimator_cli.config.evaluate import EvaluateConfig
from stableanimator_cli.config.parse import dump_size
from stableanimator_cli.errors import BadInput
from stableanimator_cli.evaluate.cases import Case, find_cases
from stableanimator_cli.evaluate.detections import VideoDetector
from stableanimator_cli.evaluate.driving_points import driven_points, read_poses
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip, read_image
from stableanimator_cli.metrics.gradient_similarity import gmsd
from stableanimator_cli.metrics.identity import cosines
from stableanimator_cli.metrics.motion import keypoint_error
from stableanimator_cli.metrics.pixel import psnr
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.records import ModelFolder

_LUMA = np.array([0.299, 0.587, 0.114])
FIGURES = {
    "face": "PSNR in the face, dB",
    "sharpness": "sharpness of the face",
    "identity": "similarity to the reference",
    "keypoints": "key-point error",
    "frame": "PSNR of the frame, dB",
    "gradients": "GMSD of the frame",
}
LOWER_IS_BETTER = ("keypoints", "gradients")


@dataclass(frozen=True)
class FrontierCase:
    """``case`` as a rendering of ``size`` (width, height) shows it, read when it is first scored."""

    case: Case
    size: tuple[int, int]
    detector: VideoDetector

    @cached_property
    def key(self) -> str:
        """The name, the size and the start of its files' digests: rows of other files or sizes are other rows."""
        files = (self.case.reference, self.case.motion, self.case.target)
        return "-".join(
            [self.case.name, dump_size(self.size), *(sha256_of(path)[:8] for path in files if path is not None)]
        )

    @cached_property
    def target(self) -> np.ndarray:
        """The video uint8[t,h,w,3] at ``size``."""
        assert self.case.target is not None
        clip = open_clip(self.case.target)
        transform = resize_transform(clip.size, self.size, "crop")
        return np.stack([transform.apply_image(frame) for _, frame in clip.frames()])

    @cached_property
    def faces(self) -> list[tuple[slice, slice] | None]:
        """Rows and columns of the largest face of each frame of ``target``; None without one."""
        found: list[tuple[slice, slice] | None] = []
        for frame in self.target:
            faces = () if self.detector.reader is None else self.detector.reader.boxes(frame)
            region = face_slice(faces[0].box, self.size) if faces else None
            found.append(region if region is not None and frame[region].size else None)
        return found

    @cached_property
    def reference(self) -> np.ndarray:
        """The reference's face embedding float32[512]: the independent recogniser's, or the model's without one."""
        own, judge = self.detector.embed_largest_face(read_image(self.case.reference))
        return own if self.detector.judge is None else judge

    @cached_property
    def points(self) -> np.ndarray:
        """Driving points float32[t,134,3], or those found in ``target`` if the motion holds none."""
        if self.case.poses is None:
            return self.detector.find_points(list(self.target))
        return driven_points(read_poses(self.case.poses), self.size, range(len(self.target)), resize="crop")

    def score(self, output: Sequence[np.ndarray]) -> dict[str, float]:
        """``FIGURES`` of frames uint8[h,w,3]; NaN where neither side shows what is measured.

        Raises ``BadInput`` if there are not as many frames as in the ground truth.
        """
        if len(output) != len(self.target):
            assert self.case.target is not None
            hint = "motion and video of a case need equally many frames"
            raise BadInput(self.case.target, f"{len(self.target)} frames", f"{len(output)}, as the motion", hint=hint)
        pairs = [(a, b, face) for a, b, face in zip(output, self.target, self.faces, strict=True) if face is not None]
        embedded = [self.detector.embed_largest_face(image) for image in output]
        vectors = np.stack([own if self.detector.judge is None else judge for own, judge in embedded])
        similar = cosines(vectors, self.reference)
        return {
            "face": _mean([psnr(a[face], b[face]) for a, b, face in pairs]),
            "sharpness": _mean([min(1.0, sharpness(a, b, face)) for a, b, face in pairs]),
            "identity": _mean(similar[np.isfinite(similar)]),
            "keypoints": keypoint_error(self.detector.find_points(list(output)), self.points).error,
            "frame": psnr(np.concatenate(output), np.concatenate(self.target)),
            "gradients": _mean([gmsd(a, b) for a, b in zip(output, self.target, strict=True)]),
        }


def open_cases(model: ModelFolder, *, bench: str, data: Path | None, count: int, work: Path, size: tuple[int, int],
               device: str) -> list[FrontierCase]:  # fmt: skip
    """The first ``count`` cases of a bench that have a ground truth, by name. Drawn figures go to ``work``.

    Raises ``BadInput`` for fewer.
    """
    drawn: dict[str, Any] = {"figures": count, "length": 8} if bench == "puppet" else {}
    config = EvaluateConfig(bench=bench, data=data, output=work, **drawn)
    cases = [case for case in find_cases(config, model, work, NullReporter()) if case.target is not None]
    if len(cases) < count:
        raise BadInput(bench, f"{len(cases)} videos with a ground truth", f"{count}, of --search and --clips")
    detector = VideoDetector(model, None, device)
    return [FrontierCase(case, size, detector) for case in cases[:count]]


def face_slice(box: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a face box (x0, y0, x1, y1) within an image of ``size`` (width, height)."""
    x0, y0 = (max(0, int(v)) for v in np.floor(box[:2]))
    x1, y1 = (min(side, int(v) + 1) for v, side in zip(np.ceil(box[2:]), size, strict=True))
    return slice(y0, y1), slice(x0, x1)


def sharpness(image: np.ndarray, target: np.ndarray, region: tuple[slice, slice]) -> float:
    """RMS of the luma's Laplacian inside ``region``, relative to the target's: 1 is as sharp."""
    return laplacian_rms(image, region) / max(laplacian_rms(target, region), 1e-9)


def laplacian_rms(image: np.ndarray, region: tuple[slice, slice]) -> float:
    """Root mean square of the Laplacian of the luma inside ``region``."""
    luma = np.ascontiguousarray(image.astype(np.float64) @ _LUMA)
    return float(np.sqrt(np.square(cv2.Laplacian(luma, cv2.CV_64F)[region]).mean()))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
