"""Low-rank updates of linear layers (Hu et al. 2022, "LoRA"): W x becomes W x + (alpha / rank) B A x.

A layer keeps its module, its name and its frozen weight, and gets two small ones, so that the rest of the network does
not change. ``merge_lora`` returns the state dict of the plain network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOWN, UP = "lora_down", "lora_up"


class LoraLinear(nn.Linear):
    """A linear layer with ``lora_down`` [rank,in] and ``lora_up`` [out,rank], initially zero; alpha is rank."""

    lora_down: nn.Parameter
    lora_up: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + F.linear(F.linear(input, self.lora_down), self.lora_up)


def add_lora(network: nn.Module, rank: int, select: Callable[[str], bool], *, seed: int = 0) -> list[str]:
    """Give every linear layer whose name passes ``select`` an update of ``rank``, or of its width if that is less.

    Returns the layers' names. ``lora_down`` is drawn from ``seed``, equal on every rank. ``lora_up`` is zero, so the
    network's output does not change yet.
    """
    names = []
    generator = torch.Generator().manual_seed(seed)
    for name, module in network.named_modules():
        if type(module) is nn.Linear and select(name):
            width = min(rank, *module.weight.shape)
            options = {"device": module.weight.device, "dtype": torch.float32}
            down = torch.randn(width, module.in_features, generator=generator) * module.in_features**-0.5
            module.__class__ = LoraLinear
            module.register_parameter(DOWN, nn.Parameter(down.to(**options)))
            module.register_parameter(UP, nn.Parameter(torch.zeros(module.out_features, width, **options)))
            names.append(name)
    return names


def is_lora(name: str) -> bool:
    """Whether the parameter or tensor of that name is part of an update."""
    return name.rsplit(".", 1)[-1] in (DOWN, UP)


def merge_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with every update added to its layer's weight, in float32, and without the updates' names."""
    plain = {name: tensor for name, tensor in tensors.items() if not is_lora(name)}
    for name, up in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == UP:
            weight = plain[f"{layer}.weight"]
            plain[f"{layer}.weight"] = weight.float() + up.float() @ tensors[f"{layer}.{DOWN}"].float()
    return plain
