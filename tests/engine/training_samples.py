"""Batches and settings that the tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.engine.training import TrainingParts, TrainingSettings, open_training
from stableanimator_cli.engine.training.batch import Batch

CPU = torch.device("cpu")
SEED = 11


def sample(
    indices: list[int], frames: int = 3, *, side: int = 32, cached: bool = True, faces: Any = True, width: int = 64
) -> Batch:
    """Samples by their index: the same index is the same sample whatever it comes with."""

    def drawn(index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 + index)
        grid = side // 8

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "pixels": normal(frames, 3, side, side).clamp(-1, 1),
            "moments": torch.cat([normal(frames, 4, grid, grid) * 5, normal(frames, 4, grid, grid) - 8], dim=1),
            "reference_pixels": normal(3, side, side).clamp(-1, 1),
            "reference_moments": normal(8, grid, grid),
            "clip_pixels": normal(3, 224, 224),
            "image_token": normal(1, width),
            "face": normal(512),
            "poses": torch.randint(0, 256, (frames, 3, side, side), generator=generator, dtype=torch.uint8),
            "mask": torch.rand(frames, 1, grid, grid, generator=generator).round(),
            "reference_box": torch.tensor([0.4, 1.0, 2.5, 3.0]),
        }

    drawn_all = [drawn(index) for index in indices]
    tensors = {name: torch.stack([one[name] for one in drawn_all]) for name in drawn_all[0]}
    has_face = torch.as_tensor(faces).expand(len(indices)).clone()
    tensors["face"] = tensors["face"] * has_face[:, None]
    off = ("pixels", "reference_pixels", "clip_pixels") if cached else ("moments", "reference_moments", "image_token")
    tensors |= {"index": torch.tensor(indices), "frames": torch.arange(frames).expand(len(indices), -1)}
    return Batch(clips=("clip",) * len(indices), has_face=has_face, **(tensors | dict.fromkeys(off)))


def opened(folder: Path, **settings: Any) -> TrainingParts:
    return open_training(open_model(folder), TrainingSettings(**settings), CPU, seed=SEED)
