"""Norms that keep a half-precision network in half precision under autocast.

By default autocast computes norms on a GPU in float32 and returns float32. This doubles the residual stream and what
the backward pass stores. The kernels accumulate in float32 for any dtype, so the input's dtype suffices, as in
inference. Weights stay float32.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class MixedGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.group_norm(input, self.num_groups, *_affine_like(self, input), self.eps)


class MixedLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(input, self.normalized_shape, *_affine_like(self, input), self.eps)


def _affine_like(norm: nn.GroupNorm | nn.LayerNorm, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    weight, bias = (None if p is None else p.to(x.dtype) for p in (norm.weight, norm.bias))
    return weight, bias


def with_mixed_norms(network: Network) -> Network:
    """Make every GroupNorm and LayerNorm of ``network`` a mixed one, in place; weights are the same objects."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = MixedGroupNorm
        elif type(module) is nn.LayerNorm:
            module.__class__ = MixedLayerNorm
    return network
