"""UNet conditioning inputs: image and face tokens, reference latents, time ids, pose features."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stableanimator_cli.nets.context import Context
from stableanimator_cli.nets.placed import device_of
from stableanimator_cli.records import CLIP_PIXELS, STRIDE

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder
    from transformers import CLIPVisionModelWithProjection

    from stableanimator_cli.nets.pose_net import PoseNet

_SUM_ERROR = 1e-3  # of regions at one position
CLIP_SIZE = 224


class PoseFrames(Protocol):
    """Skeleton images uint8[h,w,3] RGB at the output's size, with random access."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> np.ndarray: ...


class StoredPoses:
    """``PoseFrames`` of images that are in memory: a sequence of uint8[h,w,3], or uint8[t,h,w,3]."""

    def __init__(self, images: Sequence[np.ndarray] | np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def frame(self, index: int) -> np.ndarray:
        return self._images[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleFaces:
    """Several people's faces, and where each conditions the network.

    ``vectors`` float32[p,512] are raw ArcFace embeddings; a row of NaN is a person without a known face, who is
    conditioned like the background. ``regions`` float32[t,p+1,h/8,w/8] are weights of the people in order and, last,
    of the background: >= 0, with sum 1 at each position. They have as many frames as the skeletons, an anchor included.

    Raises ``ValueError`` for other shapes or values.
    """

    vectors: np.ndarray
    regions: np.ndarray

    def __post_init__(self) -> None:
        vectors, regions = np.shape(self.vectors), np.shape(self.regions)
        if len(vectors) != 2 or 0 in vectors:
            raise ValueError(f"face vectors of shape {vectors}, expected (people, 512)")
        if len(regions) != 4 or 0 in regions or regions[1] != len(self.vectors) + 1:
            expected = f"(frames, {len(self.vectors) + 1}, height, width): the people in order, then the background"
            raise ValueError(f"regions of shape {regions}, expected {expected}")
        if not (np.isfinite(self.vectors).all(axis=1) | np.isnan(self.vectors).all(axis=1)).all():
            raise ValueError("a face vector is not finite; a person without a known face has NaN throughout")
        if not (self.regions >= 0).all() or np.abs(self.regions.sum(axis=1, dtype=np.float64) - 1).max() > _SUM_ERROR:
            raise ValueError("regions must be at least 0 and sum to 1 over people and background at each position")

    @property
    def known(self) -> np.ndarray:
        """bool[p]: people with a known face."""
        return np.asarray(np.isfinite(self.vectors).all(axis=1))

    def regions_on(self, device: torch.device) -> Tensor:
        """The regions as a float32 tensor."""
        return torch.tensor(self.regions, dtype=torch.float32).to(device)

    def check_fits(self, frames: int, size: tuple[int, int]) -> None:
        """Raise ``ValueError`` unless the regions have ``frames`` and fit images of ``size`` (width, height)."""
        expected = (frames, len(self.vectors) + 1, size[1] // STRIDE, size[0] // STRIDE)
        if self.regions.shape != expected:
            what = f"{frames} frames of {size[0]}x{size[1]} pixels"
            raise ValueError(f"regions of shape {self.regions.shape}, expected {expected} for {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """``image`` [1,1,d] CLIP token, ``face`` [1,n,d] or None, ``reference`` [1,c,h,w] unscaled latents of the image.

    ``time_ids`` [1,3] are frame rate - 1, motion bucket and noise level; ``pose`` has features by frame. With
    ``regions`` float32[t,s,h,w] ``face`` [1,s*n,d] has one set of tokens per person and, last, the background's.
    """

    image: Tensor
    face: Tensor | None
    reference: Tensor
    time_ids: Tensor
    pose: PoseFeatures
    regions: Tensor | None = None

    def contexts(self, *, guided: bool) -> dict[bool, Context]:
        """Tokens of the conditional branch and, if ``guided``, zeros of the unconditional one.

        Zero tokens are the same for all people: one set of them needs no regions.
        """
        contexts = {True: Context(self.image, self.face)}
        if guided:
            sets = 1 if self.regions is None else self.regions.shape[1]
            zeros = None if self.face is None else torch.zeros_like(self.face[:, : self.face.shape[1] // sets])
            contexts[False] = Context(torch.zeros_like(self.image), zeros)
        return contexts

    def with_regions(self, context: Context, frames: Sequence[int]) -> Context:
        """The context of the conditional branch, with the regions of these frames if there are any."""
        return context if self.regions is None else replace(context, regions=self.regions[list(frames)])


def face_tokens(encode: Callable[[np.ndarray], Tensor], face: np.ndarray | PeopleFaces) -> Tensor:
    """Tokens [1,n,d] of one face, or [1,s*n,d] of several people and the background.

    ``encode`` makes tokens of a vector float32[512]. The background's are those of a vector of zeros, which the
    released networks have seen in images without a face.
    """
    if not isinstance(face, PeopleFaces):
        return encode(face)
    vectors = [*np.where(face.known[:, None], face.vectors, 0), np.zeros_like(face.vectors[0])]
    return torch.cat([encode(vector.astype(np.float32)) for vector in vectors], dim=1)


class PoseFeatures:
    """PoseNet's features for any frames, cached up to ``budget`` bytes and recomputed beyond.

    The first frames that fit are cached (frame 0 is in every window), so memory does not grow with the length of a
    video. ``calls["pose_net_frames"]`` counts frames that the network computed.
    """

    def __init__(self, net: PoseNet, frames: PoseFrames, *, budget: int, calls: Counter[str]) -> None:
        self._net = net
        self.frames = frames
        self._budget = budget
        self._calls = calls
        self._cached: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def window(self, frames: Sequence[int]) -> Tensor:
        """Features [len(frames),c,h,w] in the order of ``frames``."""
        features = {index: self._cached[index] for index in frames if index in self._cached}
        for index in frames:
            if index not in features:
                features[index] = feature = self._compute(index)
                if (len(self._cached) + 1) * feature.numel() * feature.element_size() <= self._budget:
                    self._cached[index] = feature
        return torch.stack([features[index] for index in frames])

    def _compute(self, index: int) -> Tensor:
        """One frame per call: rounding depends on the batch, and that on earlier calls (``parallel``)."""
        self._calls["pose_net_frames"] += 1
        image = to_signed(self.frames.frame(index)[None])
        return self._net(image.to(device_of(self._net), next(self._net.parameters()).dtype))[0]


def to_signed(images: np.ndarray) -> Tensor:
    """uint8[t,h,w,3] -> float32[t,3,h,w] in [-1,1]."""
    return rearrange(torch.from_numpy(np.array(images)), "t h w c -> t c h w").float() / 127.5 - 1


def clip_token(encoder: CLIPVisionModelWithProjection, image: np.ndarray) -> Tensor:
    """CLIP's embedding of an image uint8[h,w,3] as one token [1,1,d]."""
    pixels = clip_pixels(image[None]).to(device_of(encoder), next(encoder.parameters()).dtype)
    return encoder(pixel_values=pixels).image_embeds[:, None]


def clip_pixels(images: np.ndarray) -> Tensor:
    """uint8[b,h,w,3] -> float32[b,3,224,224]: resized to a square regardless of aspect, as SVD does, and normalised."""
    small = antialiased_resize(to_signed(images), CLIP_SIZE, CLIP_SIZE)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in CLIP_PIXELS)
    return ((small + 1) / 2 - mean) / std


def antialiased_resize(images: Tensor, height: int, width: int) -> Tensor:
    """SVD's resizing for CLIP, [b,c,h,w]: Gaussian blur, then bicubic interpolation with aligned corners.

    Sigma is (factor - 1) / 2 per side, at least 0.001. The kernel spans four sigma, an odd number of taps, at least 3.
    Borders are reflected, or replicated if a side is too short to reflect.
    """
    blurred = images
    for dim, factor in ((-2, images.shape[-2] / height), (-1, images.shape[-1] / width)):
        sigma = max((factor - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3)) | 1
        offset = torch.arange(taps, dtype=torch.float32) - taps // 2
        kernel = torch.exp(-(offset**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).to(images).view(1, 1, *((-1, 1) if dim == -2 else (1, -1)))
        pad = (0, 0, taps // 2, taps // 2) if dim == -2 else (taps // 2, taps // 2, 0, 0)
        mode = "reflect" if blurred.shape[dim] > taps // 2 else "replicate"
        channels = blurred.shape[1]
        blurred = F.conv2d(F.pad(blurred, pad, mode=mode), kernel.expand(channels, 1, -1, -1), groups=channels)
    return F.interpolate(blurred, size=(height, width), mode="bicubic", align_corners=True)


def reference_latents(vae: AutoencoderKLTemporalDecoder, image: np.ndarray, noise: Tensor, strength: float) -> Tensor:
    """Posterior mode of the noised image uint8[h,w,3] -> [1,c,h/8,w/8], unscaled as SVD conditions on it.

    A float16 VAE with ``force_upcast`` encodes in float32, because its encoder overflows.
    """
    module = cast(nn.Module, vae)
    device, dtype = device_of(module), next(vae.parameters()).dtype
    upcast = dtype == torch.float16 and bool(vae.config["force_upcast"])
    pixels = to_signed(image[None]) + strength * noise
    try:
        if upcast:
            nn.Module.to(module, torch.float32)  # diffusers' own warns of layers to keep in float32, also without any
        (posterior,) = vae.encode(pixels.to(device, torch.float32 if upcast else dtype), return_dict=False)
        latents = posterior.mode()
    finally:
        if upcast:
            nn.Module.to(module, dtype)
    return latents.to(dtype)


def degrade_faces(reference: Tensor, boxes: Tensor, chosen: Tensor, noise: Tensor) -> Tensor:
    """Replace the faces in the reference latents [b,c,h,w] of the ``chosen`` samples [b] with noise.

    The noise inside a face's box has each channel's own mean and standard deviation: light and colour stay, identity
    must come from the face embedding. ``boxes`` [b,4], or [b,p,4] of several people; boxes of NaN change nothing.
    """
    reference = reference.clone()
    height, width = reference.shape[-2:]
    for k, box in ((k, box) for k, rows in enumerate(boxes) for box in rows.view(-1, 4)):
        if bool(chosen[k]) and bool(box.isfinite().all()):
            (x0, y0), (x1, y1) = box[:2].floor().int().tolist(), box[2:].ceil().int().tolist()
            rows, columns = slice(max(0, y0), min(height, y1)), slice(max(0, x0), min(width, x1))
            face = reference[k, :, rows, columns]
            if face.shape[1] and face.shape[2]:
                std, mean = torch.std_mean(face, dim=(1, 2), correction=0, keepdim=True)
                reference[k, :, rows, columns] = mean + std * noise[k, :, rows, columns].to(face)
    return reference


def texture_error(vae: AutoencoderKLTemporalDecoder, image: np.ndarray) -> float:
    """Error of the VAE in the texture of an image uint8[h,w,3] at the output's size.

    The median over pixels of the Laplacian's error after encoding and decoding, over the Laplacian's mean magnitude:
    images like those of the training lose little outside their contours, others everywhere. Luma in 0..255.
    """
    pixels = to_signed(image[None])
    parameter = next(vae.parameters())
    latents = reference_latents(vae, image, torch.zeros_like(pixels), 0.0)
    decoded = vae.decode(latents.to(parameter.dtype), num_frames=1, return_dict=False)[0].float().cpu().clamp(-1, 1)
    original, remaining = (_laplacian(images) for images in (pixels, decoded))
    return float((original - remaining).abs().median() / original.abs().mean().clamp(min=0.5))


def _laplacian(images: Tensor) -> Tensor:
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True) * 127.5
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="reflect"), kernel)


def time_ids(fps: int, motion_bucket: float, noise_aug: float, like: Tensor) -> Tensor:
    """SVD's micro-conditioning [1,3]: frame rate - 1, motion bucket, noise augmentation."""
    return torch.tensor([[fps - 1, motion_bucket, noise_aug]], device=like.device, dtype=torch.float32)


def bytes_of_pose_frame(channels: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Memory of one frame's pose features for an image of ``height`` x ``width``."""
    return channels * math.ceil(height / STRIDE) * math.ceil(width / STRIDE) * dtype.itemsize
