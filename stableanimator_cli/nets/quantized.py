"""Weights that lie in memory as one byte a number and are computed with as they were: half of what bfloat16 takes.

``int8``: w = scale * q, q a whole number in [-127, 127]; ``fp8``: the same with q in float8 e4m3 (four bits of
exponent, three of mantissa, at most 448). ``scale`` is float32, one an output channel, so that the largest weight of a
channel is met exactly. A layer makes its weight again on each call, one layer at a time; sums run in the type of the
input. Norms, biases, time embeddings and the first and last convolution stay as they are: they are small.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.nets.time_conv import TimeConv

Store = Literal["plain", "int8", "fp8"]
Network = TypeVar("Network", bound=nn.Module)

SMALLEST = 4096  # numbers in a weight, below which a byte each saves nothing worth an error
_PLAIN = ("conv_in", "conv_out", "time_embedding", "add_embedding", "time_pos_embed")
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_TYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class _Stored:
    """What the layers below share: ``weight`` of one byte a number, ``scale`` float32 [out], and the ``dense`` type."""

    weight: Tensor
    scale: Tensor
    dense: torch.dtype

    def kernel(self) -> Tensor:
        """The weight in the type that is computed in."""
        scale = self.scale.to(self.dense).view(-1, *(1,) * (self.weight.dim() - 1))
        return self.weight.to(self.dense).mul_(scale)


class StoredLinear(_Stored, nn.Linear):
    """A linear layer over ``kernel``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.kernel(), self.bias)


class StoredConv2d(_Stored, nn.Conv2d):
    """A convolution over ``kernel``."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kernel(), self.bias)


class StoredTimeConv(_Stored, TimeConv):
    """A convolution along time, which asks for ``kernel`` itself."""


_STORED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StoredLinear,
    nn.Conv2d: StoredConv2d,
    TimeConv: StoredTimeConv,
}


def quantize_weights(network: Network, store: Store) -> Network:
    """Put every large matrix and kernel of a frozen ``network`` into one byte a number, in place; ``plain`` does
    nothing. Works on the ``meta`` device, for counting."""
    if store == "plain":
        return network
    for name, module in network.named_modules():
        kind = _STORED.get(type(module))
        if kind is None or any(part in _PLAIN for part in name.split(".")) or module.weight.numel() < SMALLEST:
            continue
        weight: Tensor = module.weight.detach()
        packed, scale = packed_weight(weight, _TYPES[store])
        module.__class__ = kind
        module.weight = nn.Parameter(packed, requires_grad=False)
        module.register_buffer("scale", scale)
        module.dense = weight.dtype  # type: ignore[assignment]
    return network


def packed_weight(weight: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [out,...] as (q, scale): q of ``kind`` in the weight's shape, scale float32 [out]."""
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1) / _LARGEST[kind]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a channel of zeros
    rows = rows / scale[:, None]
    if kind is torch.int8:
        rows = rows.round()
    return rows.to(kind).view(weight.shape), scale
