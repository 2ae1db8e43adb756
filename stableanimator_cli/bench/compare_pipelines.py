"""Our side of ``sa bench compare`` beyond single networks: whole renderings, decoding and face optimisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stableanimator_cli.bench import compare_reference as theirs
from stableanimator_cli.bench.context import ClipShape
from stableanimator_cli.bench.cost import face_box
from stableanimator_cli.config.animate import DecodeConfig, SamplingConfig
from stableanimator_cli.diffusion.face_optimization import Box, FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.diffusion.sampler import Step
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.conditioning import StoredPoses
from stableanimator_cli.engine.decoder import FaceDecoder
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, render
from stableanimator_cli.nets.arcface import crop_resize

Workload = tuple[Callable[[], Tensor], str]


def face_of(size: tuple[int, int]) -> Box:
    """A face of a quarter of the shorter side."""
    return face_box(size, min(size) // 4)


def our_pipelines(
    engine: Engine, recogniser: nn.Module, given: Mapping[str, Tensor], shape: ClipShape, steps: int, iterations: int
) -> dict[str, Workload]:
    """Each workload of ours, with the name of theirs beside it."""
    latents = given["latents"].to(engine.plan.device)
    request = _request(given, shape, steps)

    def rendering() -> Tensor:
        frames = list(render(engine, request, Timings()))
        return torch.stack([torch.from_numpy(frame) for frame in frames]).permute(0, 3, 1, 2).float() / 255

    def decoding() -> Tensor:
        with engine.resident("vae"):
            return torch.cat([engine.decoder.pixels(part).float().cpu() for part in latents.split(theirs.CHUNK)])

    def face(mode: Any, *, checkpointed: bool = True) -> Workload:
        def embed(pixels: Tensor, boxes: Any) -> Tensor:
            return recogniser(crop_resize(pixels, boxes).float())

        settings = FaceOptimizationSettings(
            mode=mode, steps=(0, 1), iterations=iterations, lr=theirs.LR, chunk=theirs.CHUNK
        )
        target = Target(boxes=(face_of(shape.size),) * shape.frames, vector=given["identity"][0])
        step = Step(index=0, total=theirs.FACE_STEPS, sigma=700.0, sigma_next=600.0)

        def refine() -> Tensor:
            with engine.resident("vae"):
                decoder = FaceDecoder(engine.networks["vae"], Counter(), checkpointed=checkpointed)
                hook = FaceOptimization(decoder=decoder, embed=embed, targets=[target], settings=settings)
                return hook(latents.float(), step)

        return refine, "face optimisation"

    return {
        "a rendering": (rendering, "rendering"),
        "decoding": (decoding, "decoding"),
        "face optimisation, full": face("full"),
        "face optimisation, full, no recomputation (theirs: recomputes)": face("full", checkpointed=False),
        "face optimisation, crop (theirs: full)": face("crop"),
    }


def _request(given: Mapping[str, Tensor], shape: ClipShape, steps: int) -> RenderRequest:
    """The rendering of the reference implementation: its windows, its noise and its blending."""
    image, window = given["picture"].numpy(), min(theirs.WINDOW, shape.frames)
    overlap = min(theirs.OVERLAP, shape.frames - 1)
    return RenderRequest(
        image=image,
        resized=image,
        face=given["vector"][0].numpy(),
        poses=StoredPoses(given["poses"].numpy()),
        plan=plan_windows(shape.frames, length=window, overlap=overlap, blend="upstream"),
        sampling=SamplingConfig(
            steps=steps, guidance=(theirs.GUIDANCE, theirs.GUIDANCE), noise="repeat", noise_aug=theirs.NOISE_AUG,
            seed=theirs.SEED, conditioning_fps=7,
        ),
        decode=DecodeConfig(chunk=theirs.CHUNK),
        noise_period=window,
    )  # fmt: skip
