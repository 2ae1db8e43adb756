"""Regional compilation of the UNet: each residual block and each transformer block, not the whole network.

Many blocks differ in weights but not in shapes, and code compiled for one serves all of them. This takes some twenty
small graphs instead of one of two thousand operators. Sums run in another order, so outputs agree within rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

# Graphs of one block function: levels, input widths, branches of guidance, window lengths. torch stops at 8.
_MAX_GRAPHS = 256


class CompiledBlocks:
    """A ``BlockRunner`` for ``AnimationUNet.run``: compiles a function on its first call with new shapes.

    Shapes are static: windows of another length are compiled again. ``backend`` is torch.compile's. There is no silent
    fallback: a function that cannot be compiled raises.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._compiled: dict[Callable[..., Tensor], Callable[..., Any]] = {}
        if backend == "inductor":
            with warnings.catch_warnings():  # of older parts that torch imports
                warnings.simplefilter("ignore")
                import_module("torch._inductor.compile_fx")

    def __call__(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, fullgraph=True, dynamic=False, backend=self._backend)
        with torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS, fail_on_recompile_limit_hit=True):
            return self._compiled[function](*arguments)
