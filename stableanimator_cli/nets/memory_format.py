"""Convolution kernels in torch's channels-last memory format, which matrix units read."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def set_channels_last(network: Network, *, enabled: bool = True) -> Network:
    """Store every kernel [o,i,h,w] of ``network`` in channels-last format, in place; not ``enabled``: contiguous.

    The output of a convolution has its kernel's format. Sums may run in another order: outputs agree within rounding.
    """
    order = torch.channels_last if enabled else torch.contiguous_format
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)
    return network
