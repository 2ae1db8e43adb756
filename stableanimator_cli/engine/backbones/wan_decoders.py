"""Wan's video VAE as the decoders of a backbone: for previews, for whole segments, and for face optimisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from stableanimator_cli.engine.decoder import to_uint8
from stableanimator_cli.nets.temporal_decoder import LatentBox
from stableanimator_cli.nets.wan_decoder import Cache, CausalDecoder, frames_of, unscaled


class WanDecoder:
    """Decode latents [t,c,h,w] in the transformer's scale. ``calls["vae_decode"]`` counts decoded chunks."""

    def __init__(self, vae: AutoencoderKLWan, calls: Counter[str]) -> None:
        self._vae = vae
        self._calls = calls

    def parts(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the pixels [t,3,8h,8w] in [-1,1] of each latent: one frame, then four each."""
        self._calls["vae_decode"] += 1
        decoder = CausalDecoder(self._vae)
        for part in decoder.frames(unscaled(self._vae, latents), decoder.start()):
            yield part.clamp(-1, 1)

    def pixels(self, latents: Tensor) -> Tensor:
        """The frames of all latents, as diffusers' ``vae.decode`` to the bit."""
        return torch.cat(list(self.parts(latents)))

    def frames(self, latents: Tensor, *, chunk: int, overlap: int = 0) -> Iterator[np.ndarray]:
        """Yield uint8[h,w,3] frames of chunks that are each decoded as the start of a video: for previews."""
        for start in range(0, len(latents), chunk):
            for part in self.parts(latents[start : start + chunk]):
                yield from to_uint8(part)


class WanFaceDecoder:
    """The same VAE for face optimisation (``diffusion.face_optimization.ChunkDecoder``).

    The latents before a chunk reach it through caches of the decoder that one full decode per step records, in host
    memory; gradients end at a chunk's first latent. ``pixels`` decodes from the first latent on: in mode ``full`` the
    chunk must be the full segment. ``margin`` latents around a box are decoded with it: 13 are exact to float noise.
    """

    def __init__(self, vae: AutoencoderKLWan, calls: Counter[str], *, checkpointed: bool, margin: int) -> None:
        self._vae: Any = vae
        self._calls = calls
        self._checkpointed = checkpointed
        self._margin = margin
        self._caches: dict[int, Cache] = {}
        self.scale: int = vae.config["scale_factor_spatial"]
        self.compression: int = vae.config["scale_factor_temporal"]

    def frames(self, latents: range) -> range:
        return frames_of(latents, self.compression)

    @contextmanager
    def working(self) -> Iterator[None]:
        """In float32 within it if the VAE is float16, whose gradients underflow."""
        half = next(self._vae.parameters()).dtype == torch.float16
        if half:
            self._vae.to(torch.float32)
        try:
            yield
        finally:
            if half:
                self._vae.to(torch.float16)

    def pixels(self, latents: Tensor) -> Tensor:
        self._calls["refine_decode"] += 1
        decoder = CausalDecoder(self._vae, checkpointed=self._checkpointed)
        return torch.cat(list(decoder.frames(unscaled(self._vae, latents), decoder.start())))

    @contextmanager
    def with_recorded_stats(self, latents: Tensor, chunks: Sequence[range]) -> Iterator[None]:
        """Record the decoder's caches at the start of each chunk, for ``crop`` within it."""
        decoder, done = CausalDecoder(self._vae), 0
        with torch.no_grad():
            z, cache = unscaled(self._vae, latents), decoder.start()
            if len(chunks) and chunks[-1].start:
                self._calls["refine_observe"] += 1
            for chunk in chunks:
                decoder.advance(z[:, :, done : chunk.start], cache)
                done = chunk.start
                self._caches[done] = [_on_host(entry) for entry in cache]
        try:
            yield
        finally:
            self._caches.clear()

    def crop(self, latents: Tensor, chunk: range, box: tuple[int, int, int, int]) -> tuple[Tensor, tuple[int, int]]:
        self._calls["refine_crop"] += 1
        height, width = latents.shape[-2:]
        x0, y0, x1, y1 = (side // self.scale for side in box)
        crop = LatentBox(max(0, y0), min(height, y1 + 1), max(0, x0), min(width, x1 + 1))
        crop = crop.dilated(self._margin, height, width)
        decoder, z = CausalDecoder(self._vae, checkpointed=self._checkpointed), unscaled(self._vae, latents)
        cache = decoder.cropped(self._caches[chunk.start], crop, z)
        pixels = torch.cat(list(decoder.frames(z, cache, crop=crop)))
        return pixels, (crop.left * self.scale, crop.top * self.scale)


def _on_host(entry: Any) -> Any:
    """An entry of a cache in host memory; ``meta`` tensors, which are counted, have no content to move."""
    return entry.cpu() if isinstance(entry, Tensor) and not entry.is_meta else entry
