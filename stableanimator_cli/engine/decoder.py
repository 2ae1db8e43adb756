"""Latents to pixels through the VAE's decoder, chunk by chunk: SVD's temporal one, or one of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from stableanimator_cli.errors import CheckFailed
from stableanimator_cli.nets.placed import device_of
from stableanimator_cli.nets.temporal_decoder import (
    PIXELS_PER_LATENT,
    LatentBox,
    Statistics,
    decode,
    frozen_statistics,
    recorded_statistics,
)


class Decoder:
    """Decode with a VAE that is on its device. ``calls["vae_decode"]`` counts decoder calls."""

    def __init__(self, vae: Any, calls: Counter[str]) -> None:
        self._vae = vae
        self._calls = calls

    def pixels(self, latents: Tensor) -> Tensor:
        """Decode latents [t,c,h,w] in the sampler's scale together -> RGB [t,3,8h,8w] in [-1,1].

        The result is unclamped and differentiable.
        """
        self._calls["vae_decode"] += 1
        return self._vae.decode(_scaled(self._vae, latents), num_frames=len(latents), return_dict=False)[0]

    def frames(self, latents: Tensor, *, chunk: int, overlap: int = 0) -> Iterator[np.ndarray]:
        """Decode [t,c,h,w] in chunks and yield uint8[h,w,3] frames in order, with at most two chunks in memory.

        ``overlap`` 0, as in the reference implementation, decodes disjoint chunks, whose borders can show. Otherwise
        each chunk includes the last ``overlap`` frames of the previous one, and the two outputs are cross-faded.
        Raises ``CheckFailed`` for pixels that are no numbers.
        """
        total, start = len(latents), 0
        tail: Tensor | None = None
        while True:
            stop = min(start + chunk, total)
            pixels = require_finite(self.pixels(latents[start:stop]), "decoding").float()
            if tail is not None:
                fade = torch.arange(1, len(tail) + 1, device=pixels.device).view(-1, 1, 1, 1) / (len(tail) + 1)
                pixels = torch.cat([torch.lerp(tail, pixels[: len(tail)], fade), pixels[len(tail) :]])
            if stop == total:
                yield from to_uint8(pixels)
                return
            finished = len(pixels) - overlap
            yield from to_uint8(pixels[:finished])
            tail = pixels[finished:] if overlap else None
            start = stop - overlap


class ImageDecoder(Decoder):
    """``Decoder`` of a VAE of images (Stable Diffusion's ``AutoencoderKL``): frames are independent."""

    def pixels(self, latents: Tensor) -> Tensor:
        self._calls["vae_decode"] += 1
        return self._vae.decode(_scaled(self._vae, latents), return_dict=False)[0]


class FaceDecoder:
    """The same VAE for face optimisation: differentiable, checkpointed, on full frames or a crop.

    ``margin`` latents around a box are decoded with it: 8 are exact to float noise, fewer are not. Within ``working`` a
    float16 decoder is float32, because gradients underflow in float16.
    """

    scale = PIXELS_PER_LATENT

    def __init__(self, vae: Any, calls: Counter[str], *, checkpointed: bool = True, margin: int = 8) -> None:
        self._vae = vae
        self._calls = calls
        self._checkpointed = checkpointed
        self._margin = margin
        self._statistics: dict[int, Statistics] = {}

    def frames(self, latents: range) -> range:
        """These VAEs do not compress time."""
        return latents

    @contextmanager
    def working(self) -> Iterator[None]:
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
        return decode(self._vae.decoder, _features(self._vae, latents), checkpointed=self._checkpointed)

    @contextmanager
    def with_recorded_stats(self, latents: Tensor, chunks: Sequence[range]) -> Iterator[None]:
        """Record each chunk's norm statistics from one full decode, for ``crop`` within it."""
        for chunk in chunks:
            self._calls["refine_observe"] += 1
            with torch.no_grad(), recorded_statistics(self._vae.decoder) as statistics:
                decode(self._vae.decoder, _features(self._vae, latents[chunk.start : chunk.stop]))
            self._statistics[chunk.start] = statistics
        try:
            yield
        finally:
            self._statistics.clear()

    def crop(self, latents: Tensor, chunk: range, box: tuple[int, int, int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Pixels of the box's latents with the margin around them, and their corner (x, y) in the frame."""
        self._calls["refine_crop"] += 1
        height, width = latents.shape[-2:]
        x0, y0, x1, y1 = (side // PIXELS_PER_LATENT for side in box)
        crop = LatentBox(max(0, y0), min(height, y1 + 1), max(0, x0), min(width, x1 + 1))
        crop = crop.dilated(self._margin, height, width)
        with frozen_statistics(self._vae.decoder, self._statistics[chunk.start]):
            pixels = decode(self._vae.decoder, _features(self._vae, latents), crop=crop)
        return pixels, (crop.left * PIXELS_PER_LATENT, crop.top * PIXELS_PER_LATENT)


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents in the VAE's scale, on its device and in its dtype."""
    return latents.to(device_of(vae), next(vae.decoder.parameters()).dtype) / vae.config["scaling_factor"]


def _features(vae: Any, latents: Tensor) -> Tensor:
    """The input of the VAE's decoder network: a VAE of images has a convolution before it."""
    scaled, convolution = _scaled(vae, latents), getattr(vae, "post_quant_conv", None)
    return scaled if convolution is None else convolution(scaled)


def require_finite(values: Tensor, doing: str, *, hint: str = "", dtype: torch.dtype | None = None) -> Tensor:
    """``values``, which a network computed in ``dtype``, by default theirs. Raises ``CheckFailed`` unless all are
    numbers: as pixels the others would be black."""
    if torch.isfinite(values).all():
        return values
    if (dtype or values.dtype) == torch.float16:
        hint = "float16 overflows with some weights: try --dtype bfloat16 or float32"
    else:
        hint = "check the weights with `sa models verify`" + hint
    raise CheckFailed(f"{doing} produced values that are not finite", hint=hint)


def to_uint8(pixels: Tensor) -> np.ndarray:
    """[t,3,h,w] in [-1,1] -> uint8[t,h,w,3], clamped and rounded to the nearest level."""
    levels = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return rearrange(levels, "t c h w -> t h w c").cpu().numpy()
