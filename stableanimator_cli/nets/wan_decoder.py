"""The decoder of Wan's video VAE for face optimisation: from any latent on, on a crop, and checkpointed.

The module and its weights are diffusers' (``AutoencoderKLWan``). It decodes one latent after the other, the first into
one frame and each later one into four, and its convolutions along time keep the last two inputs: the ``Cache``. With
the cache of the latents before it a chunk decodes as within the full video. Norms are per position (RMS over channels),
so a crop only needs the middle block, with its attention, on full frames; the receptive field of what follows is 13
latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stableanimator_cli.nets.temporal_decoder import LatentBox

Cache = list[Any]
"""Inputs of each convolution along time: a tensor, None before the first latent, or diffusers' mark ``"Rep"``."""


def frames_of(latents: range, factor: int) -> range:
    """Video frames of latents along time: one of the first, ``factor`` of each later one."""
    return range(max(0, factor * (latents.start - 1) + 1), max(0, factor * (latents.stop - 1) + 1))


def unscaled(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Latents [t,c,h,w] of the transformer in the VAE's scale [1,c,t,h,w], on its device and in its dtype.

    The order of operations is the pipeline's, so that the result is equal to the bit.
    """
    parameter = next(vae.decoder.parameters())
    z = rearrange(latents, "t c h w -> 1 c t h w").to(parameter.device, parameter.dtype)
    mean, std = (torch.tensor(side).view(1, -1, 1, 1, 1) for side in (vae.config.latents_mean, vae.config.latents_std))
    return z / (1.0 / std.to(z)) + mean.to(z)


@dataclass(frozen=True, slots=True)
class CausalDecoder:
    """Decode latents [1,c,t,h,w] in the VAE's scale, one after the other."""

    vae: AutoencoderKLWan
    checkpointed: bool = False

    def start(self) -> Cache:
        """The cache before the first latent."""
        self.vae.clear_cache()  # counts the convolutions
        return list(self.vae._feat_map)

    def frames(self, z: Tensor, cache: Cache, *, crop: LatentBox | None = None) -> Iterator[Tensor]:
        """Yield the frames [t,3,h,w] of each latent, unclamped; ``cache`` advances. With ``crop`` the cache of the part
        after the middle block is of that crop (``cropped``)."""
        if not z.shape[2]:
            return
        features = self.vae.post_quant_conv(z)
        for index in range(z.shape[2]):
            pixels = self._decode(features[:, :, index : index + 1], cache, crop)
            yield rearrange(pixels, "1 c t h w -> t c h w")

    def cropped(self, cache: Cache, crop: LatentBox, like: Tensor) -> Cache:
        """The ``cache`` of full frames for a crop, on the device of ``like``, latents [...,h,w]."""
        first, width = self._num_middle, like.shape[-1]
        return [
            entry if not isinstance(entry, Tensor) else _cut(entry, crop, width).to(like.device) if index >= first
            else entry.to(like.device)
            for index, entry in enumerate(cache)
        ]  # fmt: skip

    def advance(self, z: Tensor, cache: Cache) -> None:
        """Advance ``cache`` over latents without using their frames."""
        for _ in self.frames(z, cache):
            pass

    @property
    def _num_middle(self) -> int:
        """Number of caches of the part before the crop: of ``conv_in`` and the middle block."""
        return 1 + 2 * len(self.vae.decoder.mid_block.resnets)

    def _decode(self, x: Tensor, cache: Cache, crop: LatentBox | None) -> Tensor:
        first = cache[0] is None

        def run(x: Tensor, *entries: Any) -> tuple[Any, ...]:
            given = list(entries)
            return self._forward(x, given, crop, first), *given

        if not (self.checkpointed and torch.is_grad_enabled()):
            return self._forward(x, cache, crop, first)
        pixels, *after = checkpoint(run, x, *cache, use_reentrant=False)
        cache[:] = after
        return pixels

    def _forward(self, x: Tensor, cache: Cache, crop: LatentBox | None, first: bool) -> Tensor:
        """The decoder's own forward for one latent, with the crop after the middle block."""
        decoder, index = self.vae.decoder, [0]
        x = _cached(decoder.conv_in, x, cache, index)
        x = decoder.mid_block(x, feat_cache=cache, feat_idx=index)
        if crop is not None:
            x = x[..., crop.top : crop.bottom, crop.left : crop.right]
        for block in decoder.up_blocks:
            x = block(x, feat_cache=cache, feat_idx=index, first_chunk=first)
        x = decoder.nonlinearity(decoder.norm_out(x))
        return _cached(decoder.conv_out, x, cache, index)


def _cached(conv: Callable[..., Tensor], x: Tensor, cache: Cache, index: list[int]) -> Tensor:
    """A causal convolution with its last two inputs (``WanDecoder3d.forward``)."""
    at = index[0]
    last = x[:, :, -2:].clone()
    if last.shape[2] < 2 and cache[at] is not None:
        last = torch.cat([cache[at][:, :, -1:].to(last.device), last], dim=2)
    result = conv(x, cache[at])
    cache[at] = last
    index[0] += 1
    return result


def _cut(entry: Tensor, crop: LatentBox, width: int) -> Tensor:
    """The part of full-frame features [...,h,w] of a latent grid ``width`` wide that a crop covers."""
    scale = entry.shape[-1] // width
    top, bottom, left, right = (scale * side for side in (crop.top, crop.bottom, crop.left, crop.right))
    return entry[..., top:bottom, left:right]
