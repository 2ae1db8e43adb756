"""Exponential moving average of the trained weights (Polyak averaging), in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stableanimator_cli.engine.training.fsdp import scatter


class EMA:
    """Average with ``decay`` per step, less at first: min(decay, (1 + n) / (10 + n)) after n steps.

    ``values`` by parameter name. A parameter that starts to train later joins with its current value.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {}

    def attach(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Move the values to the device of the parameters, sharded like them."""
        self.values = {name: scatter(value, parameters[name]) for name, value in self.values.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Average the weights after step ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters.items():
            if name in self.values:
                self.values[name].lerp_(parameter.detach().float(), 1 - decay)
            else:
                self.values[name] = parameter.detach().float().clone()
