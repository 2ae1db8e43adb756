"""A module with ``device`` and ``dtype``, which the pipelines of diffusers require of each network."""

from __future__ import annotations

import torch
from torch import nn


class PlacedModule(nn.Module):
    """``nn.Module`` with the ``device`` and ``dtype`` of its first parameter."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
