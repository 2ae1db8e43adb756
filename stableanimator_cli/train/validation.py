"""Held-out clips animated by a checkpoint: videos side by side, and whether face and limbs are where they should be.

A checkpoint is opened as ``sa animate`` opens it, in networks of its own, so training knows nothing of it. See
``ranking`` for the score that tells which checkpoint is best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig
from stableanimator_cli.config.train import StageConfig, TrainConfig
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.device import DTYPES, DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, render
from stableanimator_cli.media import VideoWriter
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.track import largest
from stableanimator_cli.progress import Reporter
from stableanimator_cli.records import NETWORKS
from stableanimator_cli.train import checkpoint, ranking
from stableanimator_cli.train.buckets import nearest_size
from stableanimator_cli.train.clips import TrainingClip
from stableanimator_cli.train.dataset import Dataset, observe

FOLDER = "validation"
_RATE = Fraction(8)  # frames a second of the videos
_SEEN = 0.3  # score from which a key point counts
_BODY = 18  # the first points are the body's


class _Pictures:
    """Skeleton pictures held in memory, as the engine takes them."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self._pictures = list(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def frame(self, index: int) -> np.ndarray:
        return self._pictures[index]


def validate(
    config: TrainConfig,
    stage: StageConfig,
    folder: Path,
    step: int,
    dataset: Dataset,
    device: torch.device,
    reporter: Reporter,
) -> dict[str, Any]:
    """Animate the first clips of ``dataset`` with the checkpoint ``folder``; one row for ``scores.jsonl``.

    Writes ``RUN/validation/step-N-CLIP.mp4``: reference, driving skeleton, result and truth. Numbers are None where
    the model has no detector for them. Random states are those of before when it returns.
    """
    model = catalogue.open_model(folder, NETWORKS)
    plan = DevicePlan(device=device, dtype=DTYPES[config.memory.dtype])
    clips = dataset.clips[: config.validation.clips]
    rows: list[dict[str, Any]] = []
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        Engine.open(model, plan, id_mode=config.ablation.id_adapter) as engine,
        reporter.progress(len(clips), "validate", "clip") as bar,
    ):
        for clip in clips:
            rows.append(_one(config, stage, engine, clip, step))
            bar.update()
    onnx.warn_of_fallbacks(reporter)
    row = {"step": step, **ranking.summarize(rows)}
    known = [old for old in checkpoint.read_scores(config.output) if old["step"] < step]
    checkpoint.write_scores(config.output, [*known, row])
    return row


def _one(config: TrainConfig, stage: StageConfig, engine: Engine, clip: TrainingClip, step: int) -> dict[str, Any]:
    settings, seen = config.validation, observe(clip)
    size = nearest_size(clip.size, stage.sizes or ())
    stride = max(1, min(config.data.stride, (clip.frames - 1) // settings.frames))
    frames = [index * stride for index in range(1, settings.frames + 1) if index * stride < clip.frames]
    pictures = clip.pictures([0, *frames])  # the first frame is the reference
    there = resize_transform(clip.size, size, config.data.resize)
    fitted = {number: there.apply_image(picture, "lanczos") for number, picture in pictures.items()}
    skeletons = [seen.skeleton(frame, size, config.data.resize) for frame in frames]
    vector = seen.faces.vector(0)
    sampling = SamplingConfig(
        steps=settings.steps,
        guidance=(settings.guidance, settings.guidance),
        noise_aug=config.loss.noise_aug,
        motion_bucket=config.loss.motion_bucket,
        conditioning_fps=config.loss.fps,
        seed=config.seed,
    )
    request = RenderRequest(
        picture=pictures[0],
        fitted=fitted[0],
        face=vector if config.ablation.face == "on" else None,
        poses=_Pictures(skeletons),
        plan=plan_windows(len(frames), length=len(frames), overlap=0, blend="smooth"),
        sampling=sampling,
        decode=DecodeConfig(),
        noise_period=len(frames),
    )
    made = list(render(engine, request, Timings()))
    path = config.output / FOLDER / f"step-{step}-{clip.path.name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, (4 * size[0], size[1]), _RATE) as video:
        for frame, skeleton, picture in zip(frames, skeletons, made, strict=True):
            video.write(np.hstack([fitted[0], skeleton, picture, fitted[frame]]))
    csim, faces = (None, None) if vector is None else _csim(engine, made, vector)
    error, people = _keypoint_error(engine, clip, frames, made, there)
    return {
        "clip": clip.name,
        "video": path.name,
        "csim": csim,
        "keypoint_error": error,
        "faces": faces,
        "people": people,
    }


def _csim(engine: Engine, frames: Sequence[np.ndarray], vector: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Mean cosine of the largest face of each frame to ``vector``, and the share of frames that show a face.

    Frames without a face count as 0.
    """
    if "face" not in engine.model.files:
        return None, None
    reader, found = engine.faces(), []
    for frame in frames:
        faces = [face for face in reader.faces(frame) if face.embedding is not None]
        found.append(_cosine(faces[0].embedding, vector) if faces else None)
    return sum(value or 0.0 for value in found) / len(found), _share(value is not None for value in found)


def _cosine(left: Any, right: np.ndarray) -> float:
    return float(np.dot(left, right) / max(1e-12, float(np.linalg.norm(left) * np.linalg.norm(right))))


def _keypoint_error(
    engine: Engine, clip: TrainingClip, frames: Sequence[int], made: Sequence[np.ndarray], there: Any
) -> tuple[float | None, float | None]:
    """Median distance of body points to the driving ones as a share of the image's longer side, and the share of
    frames with a driving person that show one. Both are None without a pose detector, or for clips whose skeletons are
    images; the distance is None if no frame shows a person."""
    files = engine.model.files
    if clip.folder is None or "person_detector" not in files or "pose_detector" not in files:
        return None, None
    motion = clip.folder.motion()
    who = largest(motion)
    device = str(engine.plan.device)
    detector, poses = PersonDetector(files["person_detector"], device), PoseEstimator(files["pose_detector"], device)
    distances: list[np.ndarray] = []
    for frame, picture in zip(frames, made, strict=True):
        driven = motion.keypoints[frame, who, :_BODY]
        if not motion.present[frame, who] or not (driven[:, 2] > _SEEN).any():
            continue
        (boxes,) = detector.detect([picture])
        if not len(boxes):
            distances.append(np.zeros(0))
            continue
        box = boxes[(boxes[:, 2:4] - boxes[:, :2]).prod(axis=1).argmax()][None]
        found = poses.estimate([picture], [box])[0][0][:_BODY]
        both = (found[:, 2] > _SEEN) & (driven[:, 2] > _SEEN)
        distances.append(np.linalg.norm(found[both, :2] - there.apply_points(driven[both, :2]), axis=1))
    if not distances:
        return None, None
    flat = np.concatenate(distances)
    error = float(np.median(flat) / max(there.target)) if len(flat) else None
    return error, _share(len(points) > 0 for points in distances)


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
