"""Kernels of convolutions with their channels last in memory, the order that matrix units read them in."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def set_channels_last(network: Network, *, enabled: bool = True) -> Network:
    """Lay out every kernel [o,i,h,w] of ``network`` so, in place; not ``wanted``: as torch does by itself.

    Pictures follow: a convolution's answer has its kernel's order. Sums may run in another order then, so answers agree
    within rounding.
    """
    order = torch.channels_last if enabled else torch.contiguous_format
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)
    return network
