"""Latents to pixels through the temporal VAE decoder, chunk by chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from einops import rearrange
from torch import Tensor


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
        scaled = latents.to(parameter.device, parameter.dtype) / self._vae.config.scaling_factor
        return self._vae.decode(scaled, num_frames=len(latents)).sample

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


def to_uint8(pixels: Tensor) -> np.ndarray:
    """[t,3,h,w] in [-1,1] -> uint8[t,h,w,3], clamped and rounded to the nearest level."""
    levels = (pixels.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return rearrange(levels, "t c h w -> t h w c").cpu().numpy()
