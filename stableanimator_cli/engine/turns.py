"""Group offload: of the UNet's weights only those of the block at work are on the device, the others wait in the host's
memory. Exact: what is computed does not change. Each call moves all blocks once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn

from stableanimator_cli.nets.unet import Run, once

_BLOCKS = (SpatioTemporalResBlock, BasicTransformerBlock, TemporalBasicTransformerBlock)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that take turns: every block that ``AnimationUNet.run`` is called with."""
    return [module for module in network.modules() if isinstance(module, _BLOCKS)]


def bytes_of(module: nn.Module) -> int:
    """Of all its weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(module))


def staying(network: nn.Module) -> list[Tensor]:
    """Weights and buffers that belong to no block."""
    waiting = {id(tensor) for block in blocks_of(network) for tensor in _tensors(block)}
    return [tensor for tensor in _tensors(network) if id(tensor) not in waiting]


def move_all_but_blocks(network: nn.Module, device: torch.device) -> None:
    """Onto the device with what stays there. Blocks go to the host's memory: pinned where the device is a card, so that
    they are read from it without a copy in between."""
    for tensor in staying(network):
        tensor.data = tensor.data.to(device)
    for block in blocks_of(network):
        for tensor in _tensors(block):
            host = tensor.data.to("cpu")
            tensor.data = host.pin_memory() if device.type == "cuda" and not host.is_pinned() else host


class InTurn:
    """A ``Run`` for ``AnimationUNet.run``: the block is on ``device`` while ``run`` calls it, and not else.

    ``calls`` counts the blocks that came (``blocks_moved``).
    """

    def __init__(self, device: torch.device, calls: Counter[str], run: Run = once) -> None:
        self._device = device
        self._calls = calls
        self._run = run

    def __call__(self, function: Callable[..., Tensor], block: nn.Module, *arguments: object) -> Tensor:
        self._calls["blocks_moved"] += 1
        with self.here(block):
            return self._run(function, block, *arguments)

    def fetched(self, tensor: Tensor) -> Tensor:
        """What waits, on the device."""
        return tensor.data.to(self._device, non_blocking=True)

    @contextmanager
    def here(self, *modules: nn.Module) -> Iterator[None]:
        """Within it these modules are on the device. Nothing is written back after it: weights do not change."""
        waiting = [(tensor, tensor.data) for module in modules for tensor in _tensors(module)]
        try:
            for tensor, _ in waiting:
                tensor.data = self.fetched(tensor)
            yield
        finally:
            for tensor, host in waiting:
                tensor.data = host


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
