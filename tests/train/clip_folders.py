"""Clip folders as ``sa preprocess`` would write them, without a network: a grey video whose level tells the frame, and
somebody who waves before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stableanimator_cli import clip_folder
from stableanimator_cli.clip_folder import FaceTable
from stableanimator_cli.media import VideoWriter, write_picture
from stableanimator_cli.motion.masks import face_mask
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.motion.skeleton import draw_frame
from stableanimator_cli.records import Face
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
        write_picture(path / "images" / name, np.full((size[1], size[0], 3), level(frame), np.uint8))
        write_picture(path / "poses" / name, draw_frame(motion, frame))
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
