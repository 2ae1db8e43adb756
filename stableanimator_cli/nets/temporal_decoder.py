"""SVD's temporal VAE decoder for face optimisation: checkpointed, and on a crop of the frame.

The module and its weights are diffusers' (``TemporalDecoder``, or the ``Decoder`` of Stable Diffusion's VAE, which has
the same blocks without temporal layers). The up blocks have a receptive field of 12 latents;
GroupNorm and the middle block's attention depend on the full frame. A crop is exact to float noise if the middle block
gets the full frame and the norms use its statistics, recorded once (``recorded_statistics``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.autoencoders.vae import Decoder
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PIXELS_PER_LATENT = 8  # per side


@dataclass(frozen=True, slots=True)
class LatentBox:
    """A box of the latent grid: rows ``top:bottom``, columns ``left:right`` (half-open)."""

    top: int
    bottom: int
    left: int
    right: int

    def dilated(self, margin: int, height: int, width: int) -> LatentBox:
        """``margin`` latents larger on each side, within the grid."""
        return LatentBox(
            max(0, self.top - margin),
            min(height, self.bottom + margin),
            max(0, self.left - margin),
            min(width, self.right + margin),
        )


Statistics = dict[nn.GroupNorm, tuple[Tensor, Tensor]]  # mean and 1/std, [b, groups]


def decode(
    decoder: TemporalDecoder | Decoder, latents: Tensor, *, checkpointed: bool = False, crop: LatentBox | None = None
) -> Tensor:
    """Unscaled latents [t,c,h,w] of one chunk -> pixels [t,3,8h,8w] in [-1,1], or of ``crop`` only.

    Equal to the module's own forward. ``checkpointed`` recomputes each residual block in the backward pass, so that
    one block's activations are alive at a time. With ``crop`` the up blocks get only that part of the features: call it
    within ``frozen_statistics``.
    """

    def run(block: Callable[..., Tensor], x: Tensor, *more: object) -> Tensor:
        if checkpointed and torch.is_grad_enabled():
            return checkpoint(block, x, *more, use_reentrant=False)
        return block(x, *more)

    frames, temporal = len(latents), isinstance(decoder, TemporalDecoder)
    # no time embedding; temporal blocks also get an indicator of images
    more = (None, torch.zeros(1, frames, dtype=latents.dtype, device=latents.device)) if temporal else (None,)
    middle: Any = decoder.mid_block
    x = run(middle.resnets[0], decoder.conv_in(latents), *more)
    # zip stops at the shorter list, as the module's own forward does
    for resnet, attention in zip(middle.resnets[1:], middle.attentions, strict=False):
        x = run(resnet, run(attention, x), *more)
    if crop is not None:
        x = x[..., crop.top : crop.bottom, crop.left : crop.right]
    blocks: Any = decoder.up_blocks
    for block in blocks:
        for resnet in block.resnets:
            x = run(resnet, x, *more)
        for upsampler in block.upsamplers or ():
            x = run(upsampler, x)
    x = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
    if not temporal:
        return x
    x = decoder.time_conv_out(rearrange(x, "t c h w -> 1 c t h w"))
    return rearrange(x, "1 c t h w -> t c h w")


@contextmanager
def recorded_statistics(decoder: TemporalDecoder | Decoder) -> Iterator[Statistics]:
    """Record mean and 1/std of the input of every GroupNorm of the up path, without gradients."""
    statistics: Statistics = {}

    def recording(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            grouped = x.detach().float().reshape(len(x), norm.num_groups, -1)
            variance, mean = torch.var_mean(grouped, dim=2, correction=0)
            statistics[norm] = (mean, (variance + norm.eps).rsqrt())
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)

        return forward

    with _replaced_norms(decoder, recording):
        yield statistics


@contextmanager
def frozen_statistics(decoder: TemporalDecoder | Decoder, statistics: Statistics) -> Iterator[None]:
    """Make every GroupNorm of the up path normalise with recorded statistics of the full frame."""

    def frozen(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            mean, scale = statistics[norm]
            per_group = norm.num_channels // norm.num_groups
            shape = (len(x), norm.num_channels, *[1] * (x.ndim - 2))
            weight = norm.weight.float() * scale.repeat_interleave(per_group, dim=1)
            bias = norm.bias.float() - mean.repeat_interleave(per_group, dim=1) * weight
            return (x.float() * weight.view(shape) + bias.view(shape)).to(x.dtype)

        return forward

    with _replaced_norms(decoder, frozen):
        yield


@contextmanager
def _replaced_norms(
    decoder: TemporalDecoder | Decoder, make: Callable[[nn.GroupNorm], Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Replace the forward of the norms after the middle block within the block."""
    parts: list[Any] = [*decoder.up_blocks, decoder.conv_norm_out]
    norms = [module for part in parts for module in part.modules() if isinstance(module, nn.GroupNorm)]
    for norm in norms:
        norm.forward = make(norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # restores the class's own
