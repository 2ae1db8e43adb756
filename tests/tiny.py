"""What the tests of the engine and of animation share: tiny requests, counted runs, and motions of a drawn person."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.config.animate import DecodeConfig, DeviceConfig, SamplingConfig
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, render
from stableanimator_cli.motion import keypoints as kp
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.records import Motion

SIZE = (64, 64)  # (width, height) of what the tests render
CPU = DevicePlan(device=torch.device("cpu"), dtype=torch.float32)


def temporal_vae(deepest: int) -> AutoencoderKLTemporalDecoder:
    """A temporal VAE of 32 channels, ``deepest`` at its coarsest level, with frozen random weights."""
    torch.manual_seed(0)
    net = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32, 32, 32, deepest), layers_per_block=1
    )
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Pictures:
    """Pose pictures held as one array uint8[t,h,w,3]."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def frame(self, index: int) -> np.ndarray:
        return self.array[index]


def request(
    frames: int = 6,
    *,
    window: int = 4,
    overlap: int = 1,
    blend: Any = "smooth",
    face: bool = True,
    chunk: int = 4,
    decode_overlap: int = 0,
    size: tuple[int, int] = SIZE,
    **sampling: Any,
) -> RenderRequest:
    """A rendering of random pictures, 2 steps unless ``sampling`` says otherwise."""
    width, height = size
    rng = np.random.default_rng(7)
    picture = rng.integers(0, 256, (80, 72, 3), dtype=np.uint8)
    return RenderRequest(
        image=picture,
        resized=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        face=rng.standard_normal(512).astype(np.float32) if face else None,
        poses=Pictures(rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)),
        plan=plan_windows(frames, length=window, overlap=overlap, blend=blend),
        sampling=SamplingConfig(**{"steps": 2, "seed": 5, **sampling}),
        decode=DecodeConfig(chunk=chunk, overlap=decode_overlap),
        noise_period=window,
    )


@contextmanager
def engine_of(
    folder: Path, id_mode: Any = "distribution", dtype: torch.dtype = torch.float32, **device: Any
) -> Iterator[Engine]:
    """The model of ``folder`` on the CPU; ``device`` are fields of the ``DeviceConfig``."""
    plan = DevicePlan(device=torch.device("cpu"), dtype=dtype, config=DeviceConfig(**device))
    with Engine.open(open_model(folder), plan, id_mode=id_mode) as engine:
        yield engine


def rendered(engine: Engine, wanted: RenderRequest) -> np.ndarray:
    """All frames uint8[t,h,w,3]."""
    return np.stack(list(render(engine, wanted, Timings())))


def person(turn: float, size: tuple[int, int]) -> np.ndarray:
    """One person float32[134,3] that waves: arms turned by ``turn`` radians. Body only, all of it seen."""
    swing = 0.12 * np.sin(turn)
    shares = np.array(
        [
            (0.5, 0.18), (0.5, 0.3), (0.38, 0.3), (0.3, 0.42 + swing), (0.24, 0.5 + 2 * swing), (0.62, 0.3),
            (0.7, 0.42 - swing), (0.76, 0.5 - 2 * swing), (0.43, 0.56), (0.41, 0.72), (0.4, 0.9), (0.57, 0.56),
            (0.59, 0.72), (0.6, 0.9), (0.47, 0.15), (0.53, 0.15), (0.44, 0.17), (0.56, 0.17),
        ]
    )  # fmt: skip
    points = np.zeros((kp.COUNT, 3), np.float32)
    points[: len(shares), :2] = shares * size
    points[: len(shares), 2] = 1
    return points


def waving(
    frames: int, *, size: tuple[int, int] = (128, 128), fps: Fraction | int | None = 30, times: Any = None
) -> Motion:
    """A motion of one waving person, at ``fps`` or at ``times``; ``fps`` None: without a clock."""
    keypoints = np.stack([person(index * 0.5, size) for index in range(frames)])[:, None]
    if times is None and fps is not None:
        times = tuple(Fraction(index) / Fraction(fps) for index in range(frames))
    return Motion(
        keypoints=keypoints,
        present=np.ones((frames, 1), bool),
        track=np.zeros(1, np.int64),
        face_boxes=np.full((frames, 1, 4), np.nan, np.float32),
        size=size,
        times=times,
    )


def skeletons(frames: int, size: tuple[int, int] = (128, 128)) -> list[np.ndarray]:
    """The same person as pictures uint8[h,w,3]."""
    return [draw_skeleton(person(index * 0.5, size)[None], size) for index in range(frames)]
