"""Inputs of the UNet's cross-attention: image tokens, face tokens, and the regions of several people.

Letters: ``b`` video, ``bt`` folded video and frame, ``c h w`` latents, ``k`` tokens, ``s`` sets of face tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.nets.id_adapter import PreparedCrossAttention


@dataclass(frozen=True, slots=True)
class Context:
    """Inputs of cross-attention: ``image`` tokens [b,k,c], ``face`` tokens [b,k,c] or None without a face.

    ``regions`` None: every position attends to the face tokens. Otherwise ``face`` [b,s*k,c] holds one set per person
    and, last, one for the background. ``regions`` [bt,s,h,w] at the latents' size weigh the sets; their sum is 1.

    ``has_face`` [b] of ones and zeros is for mixed batches: a zero has the effect of ``face`` None on its sample, and
    every weight stays in the graph. ``layers`` holds what each cross-attention layer computed from the tokens alone
    (``AnimationUNet.prepare``, which requires a face in all samples or in none). If it is empty, every call computes
    the full attention.
    """

    image: Tensor
    face: Tensor | None
    layers: Mapping[nn.Module, PreparedCrossAttention] = field(default_factory=dict)
    has_face: Tensor | None = None
    regions: Tensor | None = None

    def check(self, id_tokens: int, frames: int, size: tuple[int, int]) -> None:
        """Raise ``ValueError`` unless face tokens and regions fit each other, ``frames`` (bt) and ``size`` (h, w)."""
        if self.face is None:
            return
        sets, rest = divmod(self.face.shape[1], id_tokens)
        if self.regions is None:
            if sets != 1 or rest:
                raise ValueError(f"{self.face.shape[1]} face tokens without regions, expected {id_tokens}")
        elif rest or self.regions.shape != (frames, sets, *size):
            expected = f"[{frames},{sets},{size[0]},{size[1]}] for {self.face.shape[1]} face tokens"
            raise ValueError(f"regions of shape {list(self.regions.shape)}, expected {expected}")


def resize_regions(regions: Tensor, size: tuple[int, int]) -> Tensor:
    """Average regions [bt,s,h,w] over the positions of a level of ``size`` (h, w); sums over ``s`` are preserved."""
    return regions if regions.shape[-2:] == size else F.adaptive_avg_pool2d(regions, size)
