"""Temporal convolutions as matrix products where that is quicker: on a CPU.

SVD's temporal kernels span three frames and one pixel. A CPU's library runs them as general 3-D convolutions, ten
times slower than the product that they are, backwards above all. Weights and names stay the same; sums run in another
order, so answers agree within rounding.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
PRODUCTS = {"cpu"}  # devices that compute products; whoever counts for a CPU on the meta device adds that


class TimeConv(nn.Conv3d):
    """A convolution over three frames and one pixel [b,c,t,h,w], padded by a frame of zeros at both ends."""

    def kernel(self) -> Tensor:
        """The weight, for who keeps it in another form."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel()
        if x.device.type not in PRODUCTS:
            return self._conv_forward(x, kernel, self.bias)
        b, _, t, h, w = x.shape
        weight = kernel[..., 0, 0]
        if t == 1:
            taps, frames = weight[..., 1], x
        else:
            padded = F.pad(x, (0, 0, 0, 0, 1, 1))
            taps = weight.permute(0, 2, 1).flatten(1)
            frames = torch.cat([padded[:, :, k : k + t] for k in range(3)], dim=1)
        folded = frames.transpose(1, 2).reshape(b * t, -1, h, w)
        return F.conv2d(folded, taps[..., None, None], self.bias).reshape(b, t, -1, h, w).transpose(1, 2)


def with_time_convs(network: Network) -> Network:
    """Make every convolution of ``network`` that ``TimeConv`` can compute one; weights are the same objects."""
    for module in network.modules():
        if type(module) is nn.Conv3d and _fits(module):
            module.__class__ = TimeConv
    return network


def _fits(conv: nn.Conv3d) -> bool:
    ones = (1, 1, 1)
    return (
        (conv.kernel_size, conv.padding, conv.padding_mode) == ((3, 1, 1), (1, 0, 0), "zeros")
        and (conv.stride, conv.dilation) == (ones, ones)
        and conv.groups == 1
    )
