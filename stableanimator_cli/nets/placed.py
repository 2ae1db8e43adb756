"""A module with ``device`` and ``dtype``, which the pipelines of diffusers require of each network."""

from __future__ import annotations

import torch
from torch import nn


def device_of(network: nn.Module) -> torch.device:
    """Device of ``network``'s computation, to which a hook of accelerate (``enable_model_cpu_offload``) moves weights
    when the network is called."""
    hooks = (getattr(module, "_hf_hook", None) for module in network.modules())
    device = next((found for hook in hooks if (found := getattr(hook, "execution_device", None)) is not None), None)
    return next(network.parameters()).device if device is None else torch.device(device)


class PlacedModule(nn.Module):
    """``nn.Module`` with the ``device`` and ``dtype`` of its first parameter."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
