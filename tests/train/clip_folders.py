"""Clip folders as ``sa preprocess`` would write them, without a network: a grey video whose level tells the frame, and
somebody who waves before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stableanimator_cli import clip_folder
from stableanimator_cli.clip_folder import FaceTable
from stableanimator_cli.media import VideoWriter, write_image
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.motion.motion_file import load_motion, save_motion
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.records import Face, Motion
from stableanimator_cli.train.latent_cache import Encoders
from tests.waving import waving

SIZE = (64, 64)


def level(frame: int) -> int:
    """The grey of a frame: far enough from its neighbours' to survive a codec."""
    return 20 + 5 * frame


def write_clip(
    path: Path,
    frames: int,
    *,
    size: tuple[int, int] = SIZE,
    faces: Sequence[int] | None = None,
    order: Any = "bgr",
) -> Path:
    """A clip folder with its video; ``faces``: the frames in which the face was recognised (default: all). The
    vector of frame n is n + 1 in all places."""
    path.mkdir(parents=True)
    motion = waving(frames, size, Fraction(8))
    with VideoWriter(path / f"{clip_folder.SOURCE}.mp4", size, 8, crf=1, preset="ultrafast") as video:
        for frame in range(frames):
            video.write(np.full((size[1], size[0], 3), level(frame), np.uint8))
    save_motion(path / clip_folder.MOTION, motion)
    clip_folder.save_faces(path / clip_folder.FACES, FaceTable.of(_faces(motion, faces), order))
    record = {
        "format": clip_folder.FORMAT,
        "name": path.name,
        "frames": frames,
        "size": list(size),
        "source": {"path": str(path / "away.mp4")},
        "options": {"frames": None, "fps": None},
        "key": f"key of {path.name}",
    }
    (path / clip_folder.RECORD).write_text(json.dumps(record), encoding="utf-8")
    return path


def side_by_side(motion: Motion) -> Motion:
    """The person at 0.45 of the size on the left, and a larger one on the right."""
    scaled = [np.array([0.45, 0.45, 1], np.float32), np.array([0.5, 0.5, 1], np.float32)]
    shifts = [np.array([0, 10, 0], np.float32), np.array([32, 10, 0], np.float32)]
    points = np.concatenate([motion.keypoints * s + d for s, d in zip(scaled, shifts, strict=True)], axis=1)
    boxes = [motion.face_boxes * s[0] + np.tile(d[:2], 2) for s, d in zip(scaled, shifts, strict=True)]
    return replace(
        motion,
        keypoints=points.astype(np.float32),
        face_boxes=np.concatenate(boxes, axis=1).astype(np.float32),
        present=np.ones((len(motion), 2), bool),
        track=np.array([0, 1], np.int64),
    )


def write_pair(path: Path, frames: int, known: Sequence[int] = (0, 1)) -> Path:
    """A clip folder of two people; the vector of person p in frame n is 100 p + n + 1 in all places."""
    write_clip(path, frames)
    motion = side_by_side(load_motion(path / clip_folder.MOTION))
    save_motion(path / clip_folder.MOTION, motion)
    count = frames * len(known)
    frame, person = np.repeat(np.arange(frames), len(known)), np.tile(np.array(list(known)), frames)
    table = clip_folder.FaceTable(
        frame=frame,
        person=person,
        boxes=motion.face_boxes[frame, person],
        landmarks=np.zeros((count, 5, 2), np.float32),
        scores=np.ones(count, np.float32),
        embeddings=np.repeat((100 * person + frame + 1)[:, None], clip_folder.WIDTH, axis=1).astype(np.float32),
    )
    clip_folder.save_faces(path / clip_folder.FACES, table)
    return path


def _faces(motion: Any, faces: Sequence[int] | None) -> list[tuple[int, int, Face]]:
    return [
        (
            frame,
            0,
            Face(
                box=motion.face_boxes[frame, 0],
                landmarks=np.zeros((5, 2), np.float32),
                score=0.5 + 0.01 * frame,
                embedding=np.full(512, frame + 1, np.float32),
            ),
        )
        for frame in (range(len(motion)) if faces is None else faces)
    ]


def write_upstream(path: Path, frames: int, *, size: tuple[int, int] = SIZE, faceless: Sequence[int] = ()) -> Path:
    """A folder of the reference implementation with the same pictures and the same person."""
    motion = waving(frames, size, Fraction(8))
    for frame in range(frames):
        name = f"frame_{frame}.png"
        write_image(path / "images" / name, np.full((size[1], size[0], 3), level(frame), np.uint8))
        write_image(path / "poses" / name, draw_frame(motion, frame))
        (path / "faces").mkdir(exist_ok=True)
        boxes = motion.face_boxes[frame] if frame not in faceless else np.zeros((0, 4))
        Image.fromarray(face_mask(boxes, size, missing="full")).save(path / "faces" / name)
    return path


class Networks:
    """Functions in the place of VAE and image encoder; ``frames`` counts what went through them."""

    def __init__(self) -> None:
        self.frames = 0

    def latents(self, pixels: Tensor) -> Tensor:
        self.frames += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([mean, mean - 3], dim=1)

    def tokens(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))

    def encoders(self, vae: str = "vae", image_encoder: str = "clip") -> Encoders:
        return Encoders(latents=self.latents, vae=vae, tokens=self.tokens, image_encoder=image_encoder)
