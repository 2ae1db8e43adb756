"""Weight-only int8 and fp8 quantization: one byte per weight, half of bfloat16.

``int8``: w = scale * q with an integer q in [-127, 127]. ``fp8``: the same with q in float8 e4m3 (four bits of
exponent, three of mantissa, at most 448). ``scale`` is float32 [out], so that the largest weight of each output channel
is exact. Each call of a layer dequantizes its weight; sums run in the dtype of the input. Norms, biases, time
embeddings and the first and last convolution are small and stay unquantized.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stableanimator_cli.nets.time_conv import TimeConv

Quantization = Literal["plain", "int8", "fp8"]
Network = TypeVar("Network", bound=nn.Module)

MIN_NUMEL = 4096  # smaller weights save too little memory for their error
_UNQUANTIZED = ("conv_in", "conv_out", "time_embedding", "add_embedding", "time_pos_embed")
_MAX_VALUE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class _Quantized:
    """Common part of the layers below: ``weight`` of one byte per value, ``scale`` float32 [out], ``compute_dtype``."""

    weight: Tensor
    scale: Tensor
    compute_dtype: torch.dtype

    def kernel(self) -> Tensor:
        """The dequantized weight in ``compute_dtype``."""
        scale = self.scale.to(self.compute_dtype).view(-1, *(1,) * (self.weight.dim() - 1))
        return self.weight.to(self.compute_dtype).mul_(scale)


class QuantizedLinear(_Quantized, nn.Linear):
    """A linear layer with the weight ``kernel``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.kernel(), self.bias)


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """A convolution with the weight ``kernel``."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.kernel(), self.bias)


class QuantizedTimeConv(_Quantized, TimeConv):
    """A convolution along time, whose ``forward`` calls ``kernel``."""


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
    TimeConv: QuantizedTimeConv,
}


def quantize_weights(network: Network, quantization: Quantization) -> Network:
    """Quantize every large weight of a frozen ``network`` in place; ``plain`` does nothing. Works on the ``meta``
    device, for counting."""
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
    """A weight [out,...] as (q, scale): q of dtype ``kind`` in the weight's shape, scale float32 [out]."""
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1) / _MAX_VALUE[kind]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a channel of zeros
    rows = rows / scale[:, None]
    if kind is torch.int8:
        rows = rows.round()
    return rows.to(kind).view(weight.shape), scale
