"""Temporal convolutions as matrix products on a CPU, where these are faster.

SVD's temporal kernels span three frames and one pixel: each tap is one matrix product over all pixels of a frame. CPU
libraries run general 3-D convolutions, which take twice the time for large frames, and on some processors ten times,
mostly in the backward pass. Weights and names stay the same. Sums run in another order, so outputs agree within
rounding.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
MATMUL_DEVICES = {"cpu"}  # devices that use matrix products; counting for a CPU on the meta device adds "meta"


class TimeConv(nn.Conv3d):
    """A convolution over three frames and one pixel [b,c,t,h,w], padded by a frame of zeros at both ends."""

    def kernel(self) -> Tensor:
        """The weight; quantized layers override it."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel()
        if x.device.type not in MATMUL_DEVICES:
            return self._conv_forward(x, kernel, self.bias)
        b, c, t, h, w = x.shape
        before, now, after = kernel[..., 0, 0].unbind(-1)  # [o,c] each
        # diffusers' clips are views of images [bt,c,h,w]: nothing is copied here
        frames = x.transpose(1, 2).reshape(b * t, c, h * w)
        taps = now.expand(b * t, -1, -1)
        output = taps @ frames if self.bias is None else torch.baddbmm(self.bias[:, None], taps, frames)
        output = output.view(b, t, -1, h * w)
        if t > 1:
            clips = frames.view(b, t, c, h * w)
            if torch.is_grad_enabled():  # bitwise equal; gradients of in-place sums would be copied
                output = output + F.pad(before @ clips[:, :-1], (0, 0, 0, 0, 1, 0))
                output = output + F.pad(after @ clips[:, 1:], (0, 0, 0, 0, 0, 1))
            else:
                output[:, 1:] += before @ clips[:, :-1]
                output[:, :-1] += after @ clips[:, 1:]
        return output.view(b, t, -1, h, w).transpose(1, 2)


def with_time_convs(network: Network) -> Network:
    """Make every convolution of ``network`` that fits a ``TimeConv``, in place; weights are the same objects."""
    for module in network.modules():
        if type(module) is nn.Conv3d and _is_convertible(module):
            module.__class__ = TimeConv
    return network


def _is_convertible(conv: nn.Conv3d) -> bool:
    ones = (1, 1, 1)
    return (
        (conv.kernel_size, conv.padding, conv.padding_mode) == ((3, 1, 1), (1, 0, 0), "zeros")
        and (conv.stride, conv.dilation) == (ones, ones)
        and conv.groups == 1
    )
