"""Group offload: of the UNet's weights only those of two blocks are on the device, the others wait in host memory.

Exact: what is computed does not change. Each call copies all blocks once. On a CUDA card a block's weights are one run
of bytes of a pinned slab and travel in one copy, on a stream of their own: while a block computes, the next one's
arrive. Two buffers take turns; a copy waits for the work that read its buffer before, and work waits for its copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn

from stableanimator_cli.engine.host_weights import Packed, named_tensors, pack
from stableanimator_cli.nets.unet import BlockRunner, call_block

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


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A block's weights in host memory, and the bytes of the largest block of its network."""

    packed: Packed
    largest: int


_waiting: WeakKeyDictionary[nn.Module, _Waiting] = WeakKeyDictionary()


def pack_blocks(network: nn.Module, *, pin: bool) -> None:
    """Move the weights of all blocks to one slab of host memory, from which ``InTurn`` copies them. Once is enough."""
    blocks = blocks_of(network)
    if blocks and blocks[0] not in _waiting:
        packed = pack([named_tensors(block) for block in blocks], pin=pin)
        largest = max(len(one.slab) for one in packed)
        _waiting.update({block: _Waiting(one, largest) for block, one in zip(blocks, packed, strict=True)})


class Lane(Protocol):
    """Two buffers on the device and the way to them. ``slot`` is 0 or 1."""

    def buffer(self, slot: int) -> Tensor:
        """uint8[bytes] on the device."""
        ...

    def copy(self, host: Tensor, slot: int) -> None:
        """Begin to copy into a buffer, once the work that reads it is done. Returns at once."""
        ...

    def begin(self, slot: int) -> None:
        """What is computed from here on waits for the copy into this buffer."""
        ...

    def end(self, slot: int) -> None:
        """What was computed until here is the work that reads this buffer."""
        ...


class CardLane:
    """A ``Lane`` of a CUDA card, with a stream for copies and an event for each end of a turn."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._arrived = [torch.cuda.Event() for _ in range(2)]
        self._read = [torch.cuda.Event() for _ in range(2)]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # whose memory the buffers may have been
        for buffer in self._buffers:
            buffer.record_stream(self._stream)  # not given to others while a copy is on its way

    def buffer(self, slot: int) -> Tensor:
        return self._buffers[slot]

    def copy(self, host: Tensor, slot: int) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._read[slot])  # one that was never recorded is no wait
            self._buffers[slot][: len(host)].copy_(host, non_blocking=True)
            self._arrived[slot].record(self._stream)

    def begin(self, slot: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])

    def end(self, slot: int) -> None:
        self._read[slot].record(torch.cuda.current_stream(self._device))


class GroupOffload:
    """A ``Run`` for ``AnimationUNet.run``: the block is on ``device`` while ``run`` calls it, and not else.

    ``calls`` counts the blocks that came (``blocks_moved``). Blocks that ``pack_blocks`` has packed go through a
    ``lane`` of the largest block's bytes, on a CUDA card ``CardLane``; the order of the last call says which is next.
    """

    def __init__(
        self,
        device: torch.device,
        calls: Counter[str],
        run: BlockRunner = call_block,
        lane: Callable[[torch.device, int], Lane] = CardLane,
    ) -> None:
        self._device = device
        self._calls = calls
        self._run = run
        self._lane_of = lane
        self._lane: Lane | None = None
        self._slot = 0
        self._ahead: nn.Module | None = None  # on its way to the other buffer
        self._before: nn.Module | None = None
        self._next: dict[nn.Module, nn.Module] = {}

    def __call__(self, function: Callable[..., Tensor], block: nn.Module, *arguments: object) -> Tensor:
        self._calls["blocks_moved"] += 1
        waiting = _waiting.get(block)
        with self.here(block) if waiting is None else self._arrived(block, waiting):
            return self._run(function, block, *arguments)

    def release(self) -> None:
        """Give the buffers back."""
        self._lane = self._ahead = None

    def fetched(self, tensor: Tensor) -> Tensor:
        """What waits, on the device."""
        return tensor.data.to(self._device, non_blocking=True)

    @contextmanager
    def _arrived(self, block: nn.Module, waiting: _Waiting) -> Iterator[None]:
        """Within it the block's weights are those in a buffer, and the next block's are on their way to the other."""
        if self._lane is None:
            self._lane = self._lane_of(self._device, waiting.largest)
        lane, self._slot = self._lane, 1 - self._slot
        slot, tensors = self._slot, named_tensors(block)
        if self._ahead is not block:
            lane.copy(waiting.packed.slab, slot)
        lane.begin(slot)
        if self._before is not None:
            self._next[self._before] = block
        following = self._next.get(block)
        self._before, self._ahead = block, following
        if following is not None:
            lane.copy(_waiting[following].packed.slab, 1 - slot)
        try:
            for name, view in waiting.packed.views(lane.buffer(slot)).items():
                tensors[name].data = view
            yield
        finally:
            lane.end(slot)
            for name, view in waiting.packed.views().items():
                tensors[name].data = view

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
