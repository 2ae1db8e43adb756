"""Latents to pixels through the temporal VAE decoder, chunk by chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from einops import rearrange
from torch import Tensor

from stableanimator_cli.nets.temporal_decoder import (
    PIXELS_PER_LATENT,
    LatentBox,
    Statistics,
    decode,
    frozen_statistics,
    recorded_statistics,
)


class Decoder:
    """Wraps a VAE that is on its device. ``calls`` counts decoder runs under ``"vae_decode"``."""

    def __init__(self, vae: AutoencoderKLTemporalDecoder, calls: Counter[str]) -> None:
        self._vae = vae
        self._calls = calls

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents [t,c,h,w] in the sampler's scale -> RGB [t,3,8h,8w] in [-1,1], unclamped, differentiable.

        The frames given are decoded together: temporal convolutions see exactly these.
        """
        self._calls["vae_decode"] += 1
        parameter = next(self._vae.decoder.parameters())
        scaled = latents.to(parameter.device, parameter.dtype) / self._vae.config["scaling_factor"]
        return self._vae.decode(scaled, num_frames=len(latents), return_dict=False)[0]

    def frames(self, latents: Tensor, *, chunk: int, overlap: int = 0) -> Iterator[np.ndarray]:
        """Decode [t,c,h,w] in chunks and yield uint8[h,w,3] frames, in order, holding two chunks at most.

        ``overlap`` 0 is the reference implementation's: disjoint chunks, whose borders can show. With an overlap each
        chunk is decoded with the last ``overlap`` frames of the one before, and the two answers are cross-faded.
        """
        total, start = len(latents), 0
        tail: Tensor | None = None
        while True:
            stop = min(start + chunk, total)
            part = self.pixels(latents[start:stop]).float()
            if tail is not None:
                fade = torch.arange(1, len(tail) + 1, device=part.device).view(-1, 1, 1, 1) / (len(tail) + 1)
                part = torch.cat([torch.lerp(tail, part[: len(tail)], fade), part[len(tail) :]])
            last = stop == total
            keep = len(part) if last else len(part) - overlap
            yield from to_uint8(part[:keep])
            if last:
                return
            tail = part[keep:] if overlap else None
            start = stop - overlap


class FaceDecoder:
    """The same VAE as face optimisation needs it: differentiable, checkpointed, whole or on a crop.

    ``margin`` latents round a box are decoded with it: 8 are exact to float noise, fewer are not. float16 is left for
    float32 while it works: gradients underflow there.
    """

    scale = PIXELS_PER_LATENT

    def __init__(
        self, vae: AutoencoderKLTemporalDecoder, calls: Counter[str], *, checkpointed: bool = True, margin: int = 8
    ) -> None:
        self._vae = vae
        self._calls = calls
        self._checkpointed = checkpointed
        self._margin = margin
        self._statistics: dict[int, Statistics] = {}

    def frames(self, latents: range) -> range:
        """SVD's VAE does not compress time."""
        return latents

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within it a float16 decoder is float32."""
        half = next(self._vae.decoder.parameters()).dtype == torch.float16
        if half:
            self._vae.decoder.to(torch.float32)
        try:
            yield
        finally:
            if half:
                self._vae.decoder.to(torch.float16)

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents [t,c,h,w] of one chunk in the sampler's scale -> [t,3,8h,8w] in [-1,1], unclamped."""
        self._calls["refine_decode"] += 1
        return decode(self._vae.decoder, self._scaled(latents), checkpointed=self._checkpointed)

    @contextmanager
    def with_recorded_stats(self, latents: Tensor, chunks: Sequence[range]) -> Iterator[None]:
        """Record each chunk's norm statistics from one whole decode; ``crop`` uses them within."""
        for chunk in chunks:
            self._calls["refine_observe"] += 1
            with torch.no_grad(), recorded_statistics(self._vae.decoder) as statistics:
                decode(self._vae.decoder, self._scaled(latents[chunk.start : chunk.stop]))
            self._statistics[chunk.start] = statistics
        try:
            yield
        finally:
            self._statistics.clear()

    def crop(self, latents: Tensor, chunk: range, box: tuple[int, int, int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Pixels of the box's latents and ``margin`` round them, and where their corner (x, y) lies in the frame."""
        self._calls["refine_crop"] += 1
        height, width = latents.shape[-2:]
        x0, y0, x1, y1 = (side // PIXELS_PER_LATENT for side in box)
        part = LatentBox(max(0, y0), min(height, y1 + 1), max(0, x0), min(width, x1 + 1))
        part = part.dilated(self._margin, height, width)
        with frozen_statistics(self._vae.decoder, self._statistics[chunk.start]):
            pixels = decode(self._vae.decoder, self._scaled(latents), crop=part)
        return pixels, (part.left * PIXELS_PER_LATENT, part.top * PIXELS_PER_LATENT)

    def _scaled(self, latents: Tensor) -> Tensor:
        parameter = next(self._vae.decoder.parameters())
        return latents.to(parameter.device, parameter.dtype) / self._vae.config["scaling_factor"]


def to_uint8(pixels: Tensor) -> np.ndarray:
    """[t,3,h,w] in [-1,1] -> uint8[t,h,w,3], clamped and rounded to the nearest level."""
    levels = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return rearrange(levels, "t c h w -> t h w c").cpu().numpy()
