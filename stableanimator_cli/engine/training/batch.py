"""The batch of one training step, as the loader passes it to the engine."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``b`` samples of ``t`` frames of one size (``h w``), as CPU tensors.

    * ``index`` int64[b]: number of each sample in the training, ``step * global_batch + position``. It keys every
      random draw of the sample.
    * ``clips``: names of the clips, for messages. ``frames`` int64[b,t]: the selected frames.
    * ``pixels`` float32[b,t,3,h,w] in -1..1, or cached ``moments`` float32[b,t,2c,h/8,w/8]: mean and log-variance of
      the VAE's posterior, unscaled. The other one is None, as in the two pairs that follow.
    * ``reference_pixels`` float32[b,3,h,w] without noise, or ``reference_moments`` float32[b,2c,h/8,w/8].
    * ``clip_pixels`` float32[b,3,224,224] normalised for CLIP, or ``image_token`` float32[b,1,d].
    * ``face`` float32[b,512]: raw identity vectors, zeros where ``has_face`` bool[b] is false.
    * ``poses`` uint8[b,t,3,h,w]: RGB skeletons. ``mask`` float32[b,t,1,h/8,w/8] in 0..1: the loss's face mask M.
    * ``reference_box`` float32[b,4]: face in the reference as (x0, y0, x1, y1) in latent cells, NaN without a face.
    * ``regions``: None if every sample shows one person. If one shows several (p the most of the batch), it is
      float32[b,t,p+1,h/8,w/8], the weights of the people and of the background, which sum to 1. ``face`` is then
      [b,p,512], ``has_face`` [b,p] and ``reference_box`` [b,p,4]. People that a sample does not have weigh nothing and
      have no face. A sample of one person weighs 1 everywhere.
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
    regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def part(self, start: int, stop: int) -> Batch:
        """Return samples ``start:stop`` without copying."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[start:stop] for name, value in values.items() if value is not None})

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return int(self.poses.shape[-1]), int(self.poses.shape[-2])
