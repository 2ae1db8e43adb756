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

Quantization = Literal["plain", "int8", "fp8"]
Network = TypeVar("Network", bound=nn.Module)

MIN_NUMEL = 4096  # numbers in a weight, below which a byte each saves nothing worth an error
_UNQUANTIZED = ("conv_in", "conv_out", "time_embedding", "add_embedding", "time_pos_embed")
_MAX_VALUE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class _Quantized:
    """What the layers below share: ``weight`` of one byte a number, ``scale`` float32 [out], and the ``dense`` type."""

    weight: Tensor
    scale: Tensor
    compute_dtype: torch.dtype

    def kernel(self) -> Tensor:
        """The weight in the type that is computed in."""
        scale = self.scale.to(self.compute_dtype).view(-1, *(1,) * (self.weight.dim() - 1))
        return self.weight.to(self.compute_dtype).mul_(scale)


class QuantizedLinear(_Quantized, nn.Linear):
    """A linear layer over ``kernel``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.kernel(), self.bias)


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """A convolution over ``kernel``."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kernel(), self.bias)


class QuantizedTimeConv(_Quantized, TimeConv):
    """A convolution along time, which asks for ``kernel`` itself."""


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
    TimeConv: QuantizedTimeConv,
}


def quantize_weights(network: Network, quantization: Quantization) -> Network:
    """Put every large matrix and kernel of a frozen ``network`` into one byte a number, in place; ``plain`` does
    nothing. Works on the ``meta`` device, for counting."""
    if quantization == "plain":
        return network
    for name, module in network.named_modules():
        kind = _QUANTIZED.get(type(module))
        if kind is None or any(part in _UNQUANTIZED for part in name.split(".")) or module.weight.numel() < MIN_NUMEL:
            continue
        weight: Tensor = module.weight.detach()
        packed, scale = quantize_weight(weight, _DTYPES[quantization])
        module.__class__ = kind
        module.weight = nn.Parameter(packed, requires_grad=False)
        module.register_buffer("scale", scale)
        module.compute_dtype = weight.dtype  # type: ignore[assignment]
    return network


def quantize_weight(weight: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [out,...] as (q, scale): q of ``kind`` in the weight's shape, scale float32 [out]."""
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1) / _MAX_VALUE[kind]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a channel of zeros
    rows = rows / scale[:, None]
    if kind is torch.int8:
        rows = rows.round()
    return rows.to(kind).view(weight.shape), scale
