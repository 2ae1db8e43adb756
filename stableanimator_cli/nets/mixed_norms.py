"""Norms that keep a half-precision network in half precision under autocast.

Left alone, autocast computes norms on a card in float32 and hands float32 on: the residual stream doubles, and what is
stored for the backward pass with it. The kernels sum in float32 inside whatever the tensors' type, so the input's own
type is enough, which is also how the network runs when it animates. Weights stay float32.
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
    """Give every GroupNorm and LayerNorm of ``network`` the forward above; weights are the same objects."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = MixedGroupNorm
        elif type(module) is nn.LayerNorm:
            module.__class__ = MixedLayerNorm
    return network
