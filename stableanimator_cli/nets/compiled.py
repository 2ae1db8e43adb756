"""The UNet's blocks as compiled code: each residual block and each transformer block by itself, not the whole network.

A block is met many times with other weights and the same shapes, and code compiled for one serves all of those: some
twenty small graphs instead of one of two thousand operators ("regional compilation"). What a block computes stays the
same; sums run in another order, so answers agree within rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

# Graphs of one block function: levels, widths going in, branches of guidance, window lengths. torch gives up at 8.
_MAX_GRAPHS = 256


class CompiledBlocks:
    """A ``BlockRunner`` for ``AnimationUNet.run``: compiles a function when it is first called with such shapes.

    Shapes are fixed in the code: windows of another length are compiled again. ``backend`` is torch.compile's. Nothing
    falls back to plain code without a word: what cannot be compiled raises.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._known: dict[Callable[..., Tensor], Callable[..., Any]] = {}
        if backend == "inductor":
            with warnings.catch_warnings():  # of torch's own older parts, which it imports on the way
                warnings.simplefilter("ignore")
                import_module("torch._inductor.compile_fx")

    def __call__(self, function: Callable[..., Tensor], *arguments: object) -> Tensor:
        if function not in self._known:
            self._known[function] = torch.compile(function, fullgraph=True, dynamic=False, backend=self._backend)
        with torch._dynamo.config.patch(recompile_limit=_MAX_GRAPHS, fail_on_recompile_limit_hit=True):
            return self._known[function](*arguments)
