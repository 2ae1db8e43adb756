"""Batches of drawn figures. A batch follows from its step number, so a resumed run repeats an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.sample import derive_rng
from stableanimator_cli.puppets.scene import sample_scene
from tools.puppet_training.heldout import SIZE

FRAMINGS, _SHARE = ("portrait", "half", "whole"), (0.88, 0.08, 0.04)
PEOPLE = 20_000


def draw_figure(rng: np.random.Generator, split: str = "train") -> PuppetFrame:
    """Draw one figure at 256x256 at any moment of any clip; one in eight is a reference at rest."""
    framing = FRAMINGS[int(rng.choice(len(FRAMINGS), p=_SHARE))]
    scene = sample_scene(split, int(rng.integers(PEOPLE)), framing=framing, size=SIZE, clip=int(rng.integers(1000)))
    return scene.reference() if rng.random() < 0.125 else scene.frame(float(rng.uniform(0, 400)))


def crop_of(frame: PuppetFrame, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A crop uint8[side,side,3], mostly over the face, and the weight of each of its pixels float32[side,side]."""
    width, height = SIZE
    box = frame.face_boxes[0]
    weight = np.ones((height, width), np.float32)
    x, y = (int(v) for v in rng.integers(0, (width - side + 1, height - side + 1)))
    if np.isfinite(box).all():
        x0, y0, x1, y1 = box
        weight[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = 2.0
        if rng.random() < 0.75:
            centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + rng.normal(0, 12, 2)
            x, y = (int(v) for v in np.clip(centre - side / 2, 0, (width - side, height - side)))
    crop = slice(y, y + side), slice(x, x + side)
    return frame.image[crop], weight[crop]


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Batches of crops, each of another person; every eighth batch has full images, for the group norms."""

    def __init__(self, steps: int, batch: int, side: int = 128) -> None:
        self.steps, self.batch, self.side = steps, batch, side

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        cv2.setNumThreads(1)
        rng = derive_rng("portrait crops", step)
        full = step % 8 == 7
        side = SIZE[0] if full else self.side
        count = max(1, self.batch * self.side**2 // side**2) if full else self.batch
        pairs = [crop_of(draw_figure(rng), side, rng) for _ in range(count)]
        pixels = torch.from_numpy(np.stack([image for image, _ in pairs]).astype(np.float32))
        pixels = pixels.permute(0, 3, 1, 2).div(127.5).sub(1)
        weights = torch.from_numpy(np.stack([weight for _, weight in pairs]))[:, None]
        if rng.random() < 0.5:
            pixels, weights = pixels.flip(3), weights.flip(3)
        return pixels, weights


def batches(
    data: Dataset[tuple[Tensor, Tensor]], first: int, steps: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches from step ``first`` on, drawn by ``workers`` processes (0: by this one)."""
    loader = DataLoader(
        data, batch_size=None, sampler=range(first, steps), num_workers=workers,
        multiprocessing_context="spawn" if workers else None, prefetch_factor=4 if workers else None,
    )  # fmt: skip
    return iter(loader)


def sample_frames(count: int, split: str = "val") -> list[PuppetFrame]:
    """Portraits with a visible face, of people that no training sees, for measurements."""
    frames: list[PuppetFrame] = []
    index = 0
    while len(frames) < count:
        scene = sample_scene(split, 40_000 + index, framing="portrait", size=SIZE, clip=9)
        frame = scene.frame(11.0 * index)
        if np.isfinite(frame.face_boxes).all():
            frames.append(frame)
        index += 1
    return frames
