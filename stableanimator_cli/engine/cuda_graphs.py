"""CUDA graphs: a network's call recorded once and replayed, where starting its 2,000 kernels takes longer than they do.

What is recorded are kernels and addresses. So inputs are copied into the tensors that were recorded, the answer is
copied out, and weights must stay where they are: no offload of any kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from stableanimator_cli.nets.unet import Context

# runs a call and keeps it: what runs it again, and the tensor that its answer is written to
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
_WARM_UPS = 2  # before recording: libraries choose their algorithms and take their workspaces, which cannot be recorded


class GraphedCalls:
    """A network's calls ``(sample, c_noise, context, time_ids, pose)``, each kind of which is recorded when it comes
    first: one a context and shape. All share their memory, which is free again when this object is."""

    def __init__(self, network: Callable[..., Tensor], record: Record) -> None:
        self._network = network
        self._record = record
        self._known: dict[Hashable, _Kind] = {}

    def __call__(
        self, sample: Tensor, c_noise: float, context: Context, time_ids: Tensor, pose: Tensor | None = None
    ) -> Tensor:
        key = (id(context), sample.shape, None if pose is None else pose.shape)
        if key not in self._known:
            self._known[key] = _Kind(self._network, self._record, sample, context, time_ids, pose)
        return self._known[key](sample, c_noise, pose)


class _Kind:
    """One recorded call and the tensors that it reads and writes; it holds the context, whose ``id`` is its name."""

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
        self._replay, self._answer = record(lambda: network(self._sample, self._noise, context, time_ids, self._pose))

    def __call__(self, sample: Tensor, c_noise: float, pose: Tensor | None) -> Tensor:
        self._sample.copy_(sample)
        self._noise.fill_(c_noise)
        if self._pose is not None and pose is not None:
            self._pose.copy_(pose)
        self._replay()
        return self._answer.clone()


class Recorder:
    """A ``Record`` on one card, all graphs in one pool of memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            torch.cuda.empty_cache()  # what the warm-ups took on their stream is of no use to the recording
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                answer = run()
        return graph.replay, answer
