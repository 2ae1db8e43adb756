"""CUDA graphs: record a network's call once and replay it, if launching its 2,000 kernels takes longer than they do.

A graph holds kernels and addresses. So inputs are copied into recorded tensors, the output is copied out, and weights
must not move: offload is excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stableanimator_cli.nets.context import Context

# record a call: returns a function that replays it, and its output tensor
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
_WARM_UPS = 2  # libraries select algorithms and allocate workspaces, which cannot be recorded


class GraphedCalls:
    """A network's calls ``(sample, c_noise, context, time_ids, pose)``, recorded once per context and shape.

    Contexts that differ in their regions only, and so share their prepared layers, count as one. All graphs share a
    memory pool, which is freed with this object.
    """

    def __init__(self, network: Callable[..., Tensor], record: Record) -> None:
        self._network = network
        self._record = record
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(
        self, sample: Tensor, c_noise: float, context: Context, time_ids: Tensor, pose: Tensor | None = None
    ) -> Tensor:
        shapes = (None if tensor is None else tensor.shape for tensor in (pose, context.regions))
        key = (id(context.layers), sample.shape, *shapes)
        if key not in self._graphs:
            self._graphs[key] = _Graph(self._network, self._record, sample, context, time_ids, pose)
        return self._graphs[key](sample, c_noise, context.regions, pose)


class _Graph:
    """One recorded call, its inputs and its output. It keeps the prepared layers alive, whose ``id`` is the key."""

    def __init__(
        self,
        network: Callable[..., Tensor],
        record: Record,
        sample: Tensor,
        context: Context,
        time_ids: Tensor,
        pose: Tensor | None,
    ) -> None:
        self._sample = sample.clone()
        self._noise = torch.zeros((), device=sample.device)
        self._pose = None if pose is None else pose.clone()
        self._regions = None if context.regions is None else context.regions.clone()
        context = replace(context, regions=self._regions)
        self._replay, self._output = record(lambda: network(self._sample, self._noise, context, time_ids, self._pose))

    def __call__(self, sample: Tensor, c_noise: float, regions: Tensor | None, pose: Tensor | None) -> Tensor:
        self._sample.copy_(sample)
        self._noise.fill_(c_noise)
        if self._regions is not None and regions is not None:
            self._regions.copy_(regions)
        if self._pose is not None and pose is not None:
            self._pose.copy_(pose)
        self._replay()
        return self._output.clone()


class Recorder:
    """A ``Record`` on one GPU. All graphs share one memory pool, as they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        # torch's own stream for recordings is that of the GPU on which this process recorded first
        self._stream = torch.cuda.Stream(device)

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            torch.cuda.empty_cache()  # memory of the warm-ups
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output = run()
        return graph.replay, output
