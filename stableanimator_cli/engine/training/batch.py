"""What one training step reads: the record that passes from the loader to the engine."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``b`` samples of one size (``h w``) and length ``t``, CPU tensors throughout.

    ``index`` int64[b] numbers each sample of the whole training, ``step * global_batch + place``: every random draw of
    a sample is keyed by it. ``clips`` names the clips, for messages; ``frames`` int64[b,t] are the frames chosen of
    each. The frame rate that a network is told is a setting of training and no part of this.

    The video comes either as ``pixels`` float32[b,t,3,h,w] in -1..1 or, where latents are cached, as ``moments``
    float32[b,t,2c,h/8,w/8]: mean and log-variance of the VAE's posterior, unscaled. So does the reference
    (``reference_pixels`` float32[b,3,h,w], noise not added yet; ``reference_moments`` float32[b,2c,h/8,w/8]) and what
    the image encoder sees of it (``clip_pixels`` float32[b,3,224,224] normalised for CLIP; ``image_token``
    float32[b,1,d], its answer). Of each pair one is None.

    ``face`` float32[b,512] raw identity vectors, zeros where ``has_face`` bool[b] is false. ``poses``
    uint8[b,t,3,h,w] RGB skeletons. ``mask`` float32[b,t,1,h/8,w/8] in 0..1, the face mask M of the loss.
    ``reference_box`` float32[b,4] (x0, y0, x1, y1) the face in the reference in latent cells, NaN where there is none.
    """

    index: Tensor
    clips: tuple[str, ...]
    frames: Tensor
    pixels: Tensor | None
    moments: Tensor | None
    reference_pixels: Tensor | None
    reference_moments: Tensor | None
    clip_pixels: Tensor | None
    image_token: Tensor | None
    face: Tensor
    has_face: Tensor
    poses: Tensor
    mask: Tensor
    reference_box: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, stop: int) -> Batch:
        """Samples ``start:stop``, without a copy."""
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: value[start:stop] for name, value in held.items() if value is not None})

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return int(self.poses.shape[-1]), int(self.poses.shape[-2])
