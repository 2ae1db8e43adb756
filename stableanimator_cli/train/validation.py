"""Validate a checkpoint: animate held-out clips, write videos side by side, measure face and keypoints.

The checkpoint is opened like in ``sa animate``, in its own networks. ``ranking`` computes the score.
"""

from __future__ import annotations

import itertools
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
from stableanimator_cli.engine.conditioning import StoredPoses
from stableanimator_cli.engine.device import DTYPES, DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, render
from stableanimator_cli.media import VideoWriter
from stableanimator_cli.motion.geometry import ResizeTransform, resize_transform
from stableanimator_cli.motion.track import largest
from stableanimator_cli.progress import Reporter
from stableanimator_cli.train import checkpoint, ranking
from stableanimator_cli.train.annotations import MotionAnnotations
from stableanimator_cli.train.buckets import nearest_size
from stableanimator_cli.train.clips import TrainingClip
from stableanimator_cli.train.dataset import Dataset, load_annotations
from stableanimator_cli.train.validation_people import csim_of_faces, faces_of

FOLDER = "validation"
_RATE = Fraction(8)  # frames per second of the videos
_MIN_SCORE = 0.3  # minimum score of a keypoint
_BODY = 18  # the first keypoints are the body's


def validate(
    config: TrainConfig,
    stage: StageConfig,
    folder: Path,
    step: int,
    dataset: Dataset,
    device: torch.device,
    reporter: Reporter,
) -> dict[str, Any]:
    """Animate the first clips of ``dataset`` with the checkpoint ``folder``; return the row of ``scores.jsonl``.

    Writes ``RUN/validation/step-N-CLIP.mp4``: reference, driving skeleton, result and target. Values are None if the
    model has no detector for them. Random states are restored.
    """
    model = catalogue.open_animator(folder)
    plan = DevicePlan(device=device, dtype=DTYPES[config.memory.dtype])
    clips = dataset.clips[: config.validation.clips]
    rows: list[dict[str, Any]] = []
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        Engine.open(model, plan, id_mode=config.ablation.id_adapter) as engine,
        reporter.progress(len(clips), "validate", "clip") as bar,
    ):
        for clip, name in zip(clips, video_names(clips), strict=True):
            rows.append(_validate_clip(config, stage, engine, clip, step, name))
            bar.update()
    onnx.warn_of_fallbacks(reporter)
    row = {"step": step, **ranking.summarize(rows)}
    earlier = [other for other in checkpoint.read_scores(config.output) if other["step"] < step]
    checkpoint.write_scores(config.output, [*earlier, row])
    return row


def video_names(clips: Sequence[TrainingClip]) -> list[str]:
    """The names of the clips' folders, numbered if several have one name, as ``rec/00001`` and ``vec/00001``."""
    names: list[str] = []
    for clip in clips:
        numbered = (f"{clip.path.name}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([clip.path.name], numbered) if name not in names))
    return names


def _validate_clip(
    config: TrainConfig, stage: StageConfig, engine: Engine, clip: TrainingClip, step: int, name: str | None = None
) -> dict[str, Any]:
    settings, annotations = config.validation, load_annotations(clip, config.data.people)
    size = nearest_size(clip.size, stage.sizes or ())
    stride = max(1, min(config.data.stride, (clip.frames - 1) // settings.frames))
    frames = [index * stride for index in range(1, settings.frames + 1) if index * stride < clip.frames]
    images = clip.images([0, *frames])  # the first frame is the reference
    transform = resize_transform(clip.size, size, config.data.resize)
    resized = {number: transform.apply_image(image, "lanczos") for number, image in images.items()}
    skeletons = [annotations.skeleton(frame, size, config.data.resize) for frame in frames]
    face = faces_of(annotations, frames, size, config.data.resize)
    sampling = SamplingConfig(
        steps=settings.steps,
        guidance=(settings.guidance, settings.guidance),
        schedule=engine.model.facts.schedules[0],
        noise_aug=config.loss.noise_aug,
        motion_bucket=config.loss.motion_bucket,
        conditioning_fps=config.loss.fps,
        seed=config.seed,
    )
    request = RenderRequest(
        image=images[0],
        resized=resized[0],
        face=face if config.ablation.face == "on" else None,
        poses=StoredPoses(skeletons),
        plan=plan_windows(len(frames), length=len(frames), overlap=0, blend="smooth"),
        sampling=sampling,
        decode=DecodeConfig(),
        noise_period=len(frames),
    )
    result = list(render(engine, request, Timings()))
    path = config.output / FOLDER / f"step-{step}-{name or clip.path.name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, (4 * size[0], size[1]), _RATE) as video:
        for frame, skeleton, image in zip(frames, skeletons, result, strict=True):
            video.write(np.hstack([resized[0], skeleton, image, resized[frame]]))
    points = None
    if isinstance(annotations, MotionAnnotations):
        points = annotations.points(frames, size, config.data.resize)
    scores = {"csim": None, "faces": None} if face is None else csim_of_faces(engine, result, face, points)
    error, people = _keypoint_error(engine, clip, frames, result, transform)
    return {
        "clip": clip.name,
        "video": path.name,
        "csim": scores.pop("csim"),
        "keypoint_error": error,
        "faces": scores.pop("faces"),
        "people": people,
        **scores,
    }


def _keypoint_error(
    engine: Engine, clip: TrainingClip, frames: Sequence[int], images: Sequence[np.ndarray], transform: ResizeTransform
) -> tuple[float | None, float | None]:
    """Median distance of body keypoints to the driving ones, in longer sides of the image, and the share of frames.

    The share counts frames with a driving person that show a person. Both are None without a pose detector, and for
    skeletons that are images; the distance is None if no frame shows a person.
    """
    files = engine.model.files
    if clip.folder is None or "person_detector" not in files or "pose_detector" not in files:
        return None, None
    motion = clip.folder.motion()
    main = largest(motion)
    device = str(engine.plan.device)
    detector, poses = PersonDetector(files["person_detector"], device), PoseEstimator(files["pose_detector"], device)
    distances: list[np.ndarray] = []
    for frame, image in zip(frames, images, strict=True):
        expected = motion.keypoints[frame, main, :_BODY]
        if not motion.present[frame, main] or not (expected[:, 2] > _MIN_SCORE).any():
            continue
        (boxes,) = detector.detect([image])
        if not len(boxes):
            distances.append(np.zeros(0))
            continue
        box = boxes[(boxes[:, 2:4] - boxes[:, :2]).prod(axis=1).argmax()][None]
        actual = poses.estimate([image], [box])[0][0][:_BODY]
        both = (actual[:, 2] > _MIN_SCORE) & (expected[:, 2] > _MIN_SCORE)
        distances.append(np.linalg.norm(actual[both, :2] - transform.apply_points(expected[both, :2]), axis=1))
    if not distances:
        return None, None
    flat = np.concatenate(distances)
    error = float(np.median(flat) / max(transform.target)) if len(flat) else None
    return error, _fraction(len(points) > 0 for points in distances)


def _fraction(values: Iterable[bool]) -> float:
    flags = list(values)
    return sum(flags) / len(flags)
