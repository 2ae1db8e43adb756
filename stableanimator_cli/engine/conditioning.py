"""What the UNet is told: picture and face tokens, reference latents, time ids, pose features. Each is made once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:  # names of types alone: processes that load training data start without these libraries
    from diffusers import AutoencoderKLTemporalDecoder
    from transformers import CLIPVisionModelWithProjection

    from stableanimator_cli.nets.pose_net import PoseNet

CLIP_SIZE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class PoseFrames(Protocol):
    """Skeleton pictures uint8[h,w,3] RGB at the output's size, any frame at any time."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """``image`` [1,1,d] CLIP token; ``face`` [1,n,d] or None where there is no face; ``reference`` [1,c,h,w] unscaled
    latents of the picture; ``time_ids`` [1,3] = frame rate - 1, motion bucket, noise level; ``pose`` by frame."""

    image: Tensor
    face: Tensor | None
    reference: Tensor
    time_ids: Tensor
    pose: PoseFeatures


class PoseFeatures:
    """PoseNet's answer for any frames, kept while it fits ``budget`` bytes and recomputed beyond that.

    The first frames that fit are kept (frame 0 is in every window), so memory does not grow with the length of a
    video. ``calls["pose_net_frames"]`` counts frames that went through the network.
    """

    def __init__(self, net: PoseNet, frames: PoseFrames, *, budget: int, calls: Counter[str]) -> None:
        self._net = net
        self.frames = frames
        self._budget = budget
        self._calls = calls
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def window(self, frames: Sequence[int]) -> Tensor:
        """Features [len(frames),c,h,w] in the order asked for."""
        missing = [index for index in dict.fromkeys(frames) if index not in self._kept]
        made = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        for index, feature in made.items():
            if (len(self._kept) + 1) * feature.numel() * feature.element_size() <= self._budget:
                self._kept[index] = feature
        return torch.stack([self._kept[index] if index in self._kept else made[index] for index in frames])

    def _compute(self, frames: Sequence[int]) -> Tensor:
        self._calls["pose_net_frames"] += len(frames)
        parameter = next(self._net.parameters())
        pictures = (to_signed(self.frames.frame(index)[None]) for index in frames)
        # one by one: roundings depend on how many go together, and that on who asked for what before (``parallel``)
        return torch.cat([self._net(picture.to(parameter.device, parameter.dtype)) for picture in pictures])


def to_signed(pictures: np.ndarray) -> Tensor:
    """uint8[t,h,w,3] -> float32[t,3,h,w] in [-1,1]."""
    return rearrange(torch.from_numpy(np.array(pictures)), "t h w c -> t c h w").float() / 127.5 - 1


def clip_token(encoder: CLIPVisionModelWithProjection, picture: np.ndarray) -> Tensor:
    """The picture uint8[h,w,3], squashed to 224x224 as SVD does, as one token [1,1,d]."""
    parameter = next(encoder.parameters())
    pixels = clip_pixels(picture[None])
    return encoder(pixel_values=pixels.to(parameter.device, parameter.dtype)).image_embeds[:, None]


def clip_pixels(pictures: np.ndarray) -> Tensor:
    """Pictures uint8[b,h,w,3] as CLIP wants them: squashed to 224x224 as SVD does, normalised; float32[b,3,224,224]."""
    small = antialiased_resize(to_signed(pictures), CLIP_SIZE, CLIP_SIZE)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((small + 1) / 2 - mean) / std


def antialiased_resize(pictures: Tensor, height: int, width: int) -> Tensor:
    """Gaussian blur to the new grid's bandwidth, then bicubic with aligned corners: SVD's resizing for CLIP. [b,c,h,w].

    Sigma is (factor - 1) / 2 a side, at least 0.001; the kernel spans four sigma, odd, at least 3 taps, reflected at
    the border (replicated where a side is too short to reflect).
    """
    blurred = pictures
    for dim, factor in ((-2, pictures.shape[-2] / height), (-1, pictures.shape[-1] / width)):
        sigma = max((factor - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3)) | 1
        offset = torch.arange(taps, dtype=torch.float32) - taps // 2
        kernel = torch.exp(-(offset**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).to(pictures).view(1, 1, *((-1, 1) if dim == -2 else (1, -1)))
        pad = (0, 0, taps // 2, taps // 2) if dim == -2 else (taps // 2, taps // 2, 0, 0)
        mode = "reflect" if blurred.shape[dim] > taps // 2 else "replicate"
        channels = blurred.shape[1]
        blurred = F.conv2d(F.pad(blurred, pad, mode=mode), kernel.expand(channels, 1, -1, -1), groups=channels)
    return F.interpolate(blurred, size=(height, width), mode="bicubic", align_corners=True)


def reference_latents(vae: AutoencoderKLTemporalDecoder, picture: np.ndarray, noise: Tensor, strength: float) -> Tensor:
    """Mode of the posterior of the noised picture uint8[h,w,3] -> [1,c,h/8,w/8], without the scaling factor.

    SVD conditions on unscaled latents. A float16 VAE with ``force_upcast`` encodes in float32: its encoder overflows.
    """
    module = cast(nn.Module, vae)  # diffusers types its own ``to`` without a self
    parameter = next(vae.parameters())
    device, dtype = parameter.device, parameter.dtype
    upcast = dtype == torch.float16 and bool(vae.config["force_upcast"])
    pixels = to_signed(picture[None]) + strength * noise
    try:
        if upcast:
            module.to(torch.float32)
        (posterior,) = vae.encode(pixels.to(device, torch.float32 if upcast else dtype), return_dict=False)
        latents = posterior.mode()
    finally:
        if upcast:
            module.to(dtype)
    return latents.to(dtype)


def time_ids(fps: int, motion_bucket: float, noise_aug: float, like: Tensor) -> Tensor:
    """What SVD was trained with: [frame rate - 1, motion bucket, noise augmentation], [1,3]."""
    return torch.tensor([[fps - 1, motion_bucket, noise_aug]], device=like.device, dtype=torch.float32)


def bytes_of_pose_frame(channels: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Memory of one frame's features at a picture size."""
    return channels * math.ceil(height / 8) * math.ceil(width / 8) * dtype.itemsize
