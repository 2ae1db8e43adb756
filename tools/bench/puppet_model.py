"""Held-out clips of the small model: opened, animated, and measured by detectors, recogniser and judge.

The reference of a clip is drawn at twice the model's size, since users' images are larger than the frames. The face
recogniser receives that size, the denoiser the model's. The shipped detectors find the limbs of the output. The judge
compares faces; no training and no optimisation uses it. ``tools.puppet_training.score`` scores a model with this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stableanimator_cli.animate.pose_frames import PoseFrames
from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig
from stableanimator_cli.config.parse import parse_guidance, parse_interval
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest
from stableanimator_cli.errors import NoFace
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene
from stableanimator_cli.records import NETWORKS
from tools.bench.puppet_decoder import psnr
from tools.bench.puppet_figures import embed

ROLES = (*NETWORKS, "face", "judge", "person_detector", "pose_detector")
LIMBS = (3, 4, 6, 7, 9, 10, 12, 13)  # elbows, wrists, knees, ankles


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutClip:
    """A clip to animate, of ``scene`` at its size (w, h).

    ``large`` is the reference uint8[2h,2w,3], ``fitted`` the same at the scene's size, ``embedding`` its face
    embedding, and ``judged`` the judge's unit vector.
    """

    scene: Scene
    large: np.ndarray
    fitted: np.ndarray
    embedding: np.ndarray
    judged: np.ndarray


class OutputDetectors:
    """The shipped networks that measure outputs."""

    def __init__(self, engine: Engine) -> None:
        files = engine.model.files
        self.faces = engine.faces()
        self._people = PersonDetector(files["person_detector"], "cpu")
        self._points = PoseEstimator(files["pose_detector"], "cpu")
        self._judge = onnx.session(files["judge"], "cpu")

    def judge(self, image: np.ndarray) -> np.ndarray | None:
        """The judge's unit vector of the largest face; None if no face is found."""
        faces = self.faces.boxes(image)
        return self.judge_at(image, faces[0].landmarks) if faces else None

    def judge_at(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        """The judge's unit vector of the face at ``landmarks`` float[5,2]; None if it cannot be aligned."""
        vector = embed(self._judge, image, landmarks)
        return None if vector is None else vector / np.linalg.norm(vector)

    def limbs(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Limb points float[t,8,2] of the largest person of each image; infinite if no person is found."""
        points = np.full((len(images), len(LIMBS), 2), np.inf)
        for t, (image, boxes) in enumerate(zip(images, self._people.detect(list(images)), strict=True)):
            if len(boxes):
                largest = boxes[(boxes[:, 2:4] - boxes[:, :2]).prod(axis=1).argmax()][None]
                points[t] = self._points.estimate([image], [largest])[0][0][LIMBS, :2]
        return points

    def limb_errors(self, output: Sequence[np.ndarray], target: Sequence[PuppetFrame]) -> list[float]:
        """Distances of the driving limb points inside the image from the detected ones, relative to its width."""
        driving = np.stack([frame.keypoints[0, LIMBS] for frame in target])
        height, width = output[0].shape[:2]
        xy = driving[..., :2]
        inside = (driving[..., 2] > 0) & (xy >= 0).all(axis=-1) & (xy < (width, height)).all(axis=-1)
        error = np.linalg.norm(self.limbs(output) - xy, axis=-1) / width
        return [round(float(value), 4) for value in error[inside]]


def open_clip(scene: Scene, detectors: OutputDetectors) -> HeldOutClip:
    """Draw a clip's reference and compute its embeddings. Raises ``NoFace`` if no face is found in it."""
    size = scene.size
    large_size = 2 * size[0], 2 * size[1]
    large = scene.reference(large_size).image
    faces, judged = detectors.faces.faces(large), detectors.judge(large)
    if not faces or faces[0].embedding is None or judged is None:
        raise NoFace(
            f"held-out scene {scene.seed}: no face in its reference",
            hint="make the list again, or train the face detector on such figures",
        )
    fitted = resize_transform(large_size, size, "crop").apply_image(large, resample="lanczos")
    return HeldOutClip(scene=scene, large=large, fitted=fitted, embedding=faces[0].embedding, judged=judged)


def request_of(clip: HeldOutClip, embedding: np.ndarray, defaults: dict[str, Any], seed: int) -> RenderRequest:
    """A rendering with a face ``embedding`` and the settings of a model's card, or 8 steps if it has none."""
    width, height = clip.scene.size
    keypoints = clip.scene.motion().keypoints
    skeletons = PoseFrames((width, height), (draw_skeleton(people, (width, height)) for people in keypoints))
    guidance, window = defaults.get("guidance", 1.0), int(defaults.get("window", 8))
    interval = defaults.get("guidance_interval", "off")
    sampling = SamplingConfig(
        steps=int(defaults.get("steps", 8)),
        guidance=parse_guidance(str(guidance)) if not isinstance(guidance, int | float) else (guidance, guidance),
        guidance_interval=parse_interval(interval),
        noise_aug=float(defaults.get("noise_aug", 0.02)),
        motion_bucket=float(defaults.get("motion_bucket", 127)),
        conditioning_fps=int(defaults.get("conditioning_fps", 7)),
        seed=seed,
    )
    return RenderRequest(
        image=clip.large,
        resized=clip.fitted,
        face=embedding,
        poses=skeletons,
        plan=plan_windows(len(skeletons), length=window, overlap=0),
        sampling=sampling,
        decode=DecodeConfig(chunk=8),
        noise_period=window,
    )


def judge_all(frames: Iterable[np.ndarray], detectors: OutputDetectors) -> list[np.ndarray]:
    """The judge's vectors of the frames that show a face."""
    return [vector for frame in frames if (vector := detectors.judge(frame)) is not None]


def score_output(
    output: list[np.ndarray], clip: HeldOutClip, detectors: OutputDetectors
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of an output against the drawn truth, and the mean of the judge's vectors (zeros without a face)."""
    target = list(clip.scene.clip())
    vectors = judge_all(output, detectors)
    mean = np.mean(vectors, axis=0) if vectors else np.zeros_like(clip.judged)
    row: dict[str, Any] = {
        "limbs": detectors.limb_errors(output, target),
        "own": float(mean @ clip.judged) if vectors else None,
        "faces": len(vectors),
        "psnr": psnr(np.stack(output) - np.stack([frame.image for frame in target]).astype(float)),
    }
    return row, mean
