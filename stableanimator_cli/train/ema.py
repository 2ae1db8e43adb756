"""The moving average of the trained weights (Polyak averaging): float32, saved, restored, and what is validated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Keeps ``decay`` of itself a step, less at first: min(decay, (1 + n) / (10 + n)) after n steps.

    ``values`` by parameter name. A parameter that begins to train later joins with its value of then.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def follow(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Take in the weights after step ``step`` (counted from 1)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters.items():
            if name in self.values:
                self.values[name].lerp_(parameter.detach().float(), 1 - keep)
            else:
                self.values[name] = parameter.detach().float().clone()

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Within it the parameters hold the average; after it, bit for bit what they held before."""
        before = {name: parameters[name].detach().clone() for name in self.values if name in parameters}
        try:
            with torch.no_grad():
                for name in before:
                    parameters[name].copy_(self.values[name])
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    parameters[name].copy_(value)
