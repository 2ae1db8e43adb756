"""Drawn figures for the tests of evaluation: a truth of two videos, predictions of it, and what was shown of them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from stableanimator_cli.media import VideoWriter, open_clip
from stableanimator_cli.puppets.scene import sample_scene

SIZE = (64, 64)
FRAMES = 12
Change = Callable[[int, np.ndarray], np.ndarray]


def drawn(figure: int, frames: int = FRAMES, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Frames of a held-out figure, uint8[h,w,3]."""
    scene = sample_scene("test", 60_000 + figure, size=size, frames=frames)
    return [frame.image for frame in scene.clip()]


def write(path: Path, frames: list[np.ndarray], fps: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with VideoWriter(path, (width, height), Fraction(fps), lossless=True) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def changed(source: Path, target: Path, change: Change) -> Path:
    """A copy of a video whose frames went through ``change(index, frame)``."""
    return write(target, [change(index, frame) for index, (_, frame) in enumerate(open_clip(source).frames())])


def noisy(amount: int, seed: int = 0) -> Change:
    rng = np.random.default_rng(seed)

    def change(index: int, frame: np.ndarray) -> np.ndarray:
        return (frame.astype(int) + rng.integers(-amount, amount + 1, frame.shape)).clip(0, 255).astype(np.uint8)

    return change
