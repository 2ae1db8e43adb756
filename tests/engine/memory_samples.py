"""Settings, and a prediction of them, that the tests of memory share."""

from __future__ import annotations

from pathlib import Path

import torch

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.config.animate import AnimateConfig, DecodeConfig, WindowConfig
from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.engine.memory.render import MemoryEstimator

SIZE, FRAMES = (128, 128), 8


def config(**parts) -> AnimateConfig:
    given = {
        "windows": WindowConfig(length=FRAMES, overlap=2),
        "decode": DecodeConfig(chunk=4),
        "refine": RefineConfig(face="off"),
    } | parts
    return AnimateConfig(reference=Path("a.png"), motion=Path("b.mp4"), output=Path("c.mp4"), size=SIZE, **given)


def prediction(folder: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> MemoryEstimator:
    return MemoryEstimator(model=open_model(folder), device=torch.device(device), dtype=dtype, size=SIZE, frames=FRAMES)
