"""Face optimisation with an engine's networks: face boxes in the output, the reference's embedding, the hook."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli.diffusion.face_optimization import Box, FaceOptimization, FaceOptimizationSettings, Target
from stableanimator_cli.engine.conditioning import to_signed
from stableanimator_cli.engine.decoder import to_uint8
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.errors import BadInput
from stableanimator_cli.nets.arcface import ArcFace, crop_resize

SMALLEST = 8  # pixels per side below which a box shows no face: one latent


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceBox:
    """A face in an image uint8[h,w,3], and its box float[4] there."""

    image: np.ndarray
    box: np.ndarray


def pixel_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[Box | None, ...]:
    """Boxes float[t,4] (x0, y0, x1, y1; NaN rows: no face) as inclusive integer pixels within ``size`` (width, height).

    Sides are truncated, as by the masks from which the reference implementation reads its boxes. None without a face,
    or if fewer than 8 pixels per side are in the frame.
    """
    width, height = size
    found: list[Box | None] = []
    for row in np.asarray(boxes, np.float64):
        if not np.isfinite(row).all():
            found.append(None)
            continue
        x0, x1 = np.clip(np.trunc(row[[0, 2]]), 0, width - 1).astype(int)
        y0, y1 = np.clip(np.trunc(row[[1, 3]]), 0, height - 1).astype(int)
        found.append((int(x0), int(y0), int(x1), int(y1)) if min(x1 - x0, y1 - y0) + 1 >= SMALLEST else None)
    return tuple(found)


def face_optimization(
    engine: Engine,
    settings: FaceOptimizationSettings,
    *,
    references: Sequence[FaceBox | None],
    boxes: np.ndarray | None,
    size: tuple[int, int],
    full_frame: bool = False,
    margin: int = 8,
    has_anchor: bool = False,
    checkpointed: bool = True,
) -> FaceOptimization:
    """The hook that keeps ``references[k]`` in ``boxes[:, k]`` (float[t,p,4], output pixels of ``size``).

    A reference of None is a person without a known face, who is not optimised. ``boxes`` None, for one reference: the
    largest face of each frame is detected in the denoised estimates. With ``has_anchor`` frame 0 is
    skipped, which is not part of the output. ``full_frame`` compares the full decoded frame instead of the box: the
    paper's Algorithm 1 names no crop. ``checkpointed``: see ``FaceDecoder``. Raises ``BadInput`` if a reference's
    embedding cannot be computed.
    """
    if boxes is None and (len(references) != 1 or references[0] is None):
        raise ValueError(f"{len(references)} people's faces cannot be optimised without their boxes")
    with engine.resident("recogniser"), torch.no_grad():
        recogniser, device = engine.networks["recogniser"], engine.plan.device
        vectors = [None if each is None else _vector(recogniser, each, device) for each in references]
    vae = engine.networks["vae"]
    decoder = engine.backbone.face_decoder(vae, engine.calls, checkpointed=checkpointed, margin=margin)

    def embed(pixels: Tensor, boxes: Sequence[Box]) -> Tensor:
        recogniser: ArcFace = engine.networks["recogniser"]
        return recogniser.embed(crop_resize(pixels, boxes, recogniser.size[0]))

    def targets_of(rows: np.ndarray) -> list[Target]:
        if full_frame:
            visible = np.isfinite(rows).all(axis=2, keepdims=True)
            rows = np.where(visible, np.array([0, 0, size[0] - 1, size[1] - 1], np.float64), np.nan)
        pairs = zip(rows.transpose(1, 0, 2), vectors, strict=False)  # as many people as there are references
        return [Target(boxes=pixel_boxes(row, size), vector=vector) for row, vector in pairs if vector is not None]

    def detect(denoised: Tensor, frames: Sequence[int]) -> list[Target]:
        video = decoder.frames(range(len(denoised)))
        rows = np.full((len(video), 1, 4), np.nan)
        # a decoder that compresses time is causal: its frames depend on all latents before them
        size_of_chunk = settings.chunk if len(video) == len(denoised) else len(denoised)
        for start in range(0, len(denoised), size_of_chunk):
            chunk = range(start, min(start + size_of_chunk, len(denoised)))
            shown = decoder.frames(chunk)
            selected = [frame for frame in frames if frame in shown and frame >= has_anchor]
            if selected:  # frames are decoded with their full chunk: temporal layers see the same neighbours
                with torch.no_grad():
                    images = to_uint8(decoder.pixels(denoised[chunk.start : chunk.stop]))
                for frame in selected:
                    rows[frame, 0] = _largest(engine, images[frame - shown.start])
        return targets_of(rows)

    @contextmanager
    def resident() -> Iterator[None]:
        exact = repeatable() if engine.plan.device.type == "cuda" else nullcontext()
        with engine.resident("vae", "recogniser"), decoder.working(), exact:
            yield

    return FaceOptimization(
        decoder=decoder,
        embed=embed,
        targets=[] if boxes is None else targets_of(boxes),
        settings=settings,
        detect=detect if boxes is None else None,
        resident=resident,
    )


@contextmanager
def repeatable() -> Iterator[None]:
    """Use kernels that sum in one order within it: those of a CUDA GPU for gradients of resizing, attention and
    convolutions add up in any order, and a run that is resumed or replayed would write other bytes.

    A kernel that has no such form runs as it is, without torch's warning.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False  # every new tensor would be written twice
        try:
            yield
        finally:
            memory.fill_uninitialized_memory = fill
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _vector(recogniser: ArcFace, reference: FaceBox, device: torch.device) -> Tensor:
    """The reference's embedding, cropped like faces in decoded frames (without landmarks)."""
    height, width = reference.image.shape[:2]
    (box,) = pixel_boxes(reference.box[None], (width, height))
    if box is None:
        raise BadInput(
            "reference", f"a face box {np.round(reference.box).tolist()}", f"{SMALLEST} pixels per side or more"
        )
    pixels = to_signed(reference.image[None]).to(device)
    vector = recogniser.embed(crop_resize(pixels, [box], recogniser.size[0]))[0]
    if not torch.isfinite(vector).all():
        raise BadInput(
            "reference", "an identity vector that is not finite", "numbers", hint="the recogniser is damaged"
        )
    return vector


def _largest(engine: Engine, frame: np.ndarray) -> np.ndarray:
    """Box float[4] of the largest face of a frame; NaN without one."""
    faces = engine.faces().boxes(frame)
    return faces[0].box if faces else np.full(4, np.nan, np.float32)
