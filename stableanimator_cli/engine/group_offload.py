"""Group offload: only the weights of two UNet blocks are on the device, the others are in host memory.

Exact, and each call copies every block once. On a CUDA GPU a block's weights are one slice of a pinned slab, copied at
once on their own stream: while a block computes, the next one's weights arrive. Two buffers alternate; a copy waits for
the computation that read its buffer, and a computation waits for its copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn

from stableanimator_cli.engine.host_weights import Packed, fetched, named_tensors, pack
from stableanimator_cli.nets.unet_blocks import BlockRunner, call_block

_BLOCKS = (SpatioTemporalResBlock, BasicTransformerBlock, TemporalBasicTransformerBlock)


class _HostBlock(NamedTuple):
    """A block's weights in host memory, and the bytes of the largest block of its network."""

    packed: Packed
    largest: int


_host_blocks: WeakKeyDictionary[nn.Module, _HostBlock] = WeakKeyDictionary()


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Every block that ``AnimationUNet.run`` is called with."""
    kinds = getattr(network, "block_types", _BLOCKS)
    return [module for module in network.modules() if isinstance(module, kinds)]


def bytes_of(module: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(module))


def outside_blocks(network: nn.Module) -> list[Tensor]:
    """Weights and buffers that belong to no block."""
    in_blocks = {id(tensor) for block in blocks_of(network) for tensor in _tensors(block)}
    return [tensor for tensor in _tensors(network) if id(tensor) not in in_blocks]


def pack_blocks(network: nn.Module, *, pin: bool) -> None:
    """Move the weights of all blocks to one slab of host memory, unless this was done before."""
    blocks = blocks_of(network)
    if blocks and blocks[0] not in _host_blocks:
        packed = pack([named_tensors(block) for block in blocks], pin=pin)
        largest = max(len(one.slab) for one in packed)
        _host_blocks.update({block: _HostBlock(one, largest) for block, one in zip(blocks, packed, strict=True)})


class DoubleBuffer:
    """Two buffers of ``size`` bytes on a CUDA GPU, filled on a stream of their own. ``slot`` is 0 or 1."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]
        self._read = [torch.cuda.Event() for _ in range(2)]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # earlier users of the buffers' memory
        for buffer in self.buffers:
            buffer.record_stream(self._stream)  # not reused while a copy is running

    def copy(self, host: Tensor, slot: int) -> None:
        """Start to copy ``host`` into a buffer, after the computation that reads it."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._read[slot])  # an event that was never recorded is no wait
            self.buffers[slot][: len(host)].copy_(host, non_blocking=True)
            self._copied[slot].record(self._stream)

    def acquire(self, slot: int) -> None:
        """Make the computation from here on wait for the copy into this buffer."""
        torch.cuda.current_stream(self._device).wait_event(self._copied[slot])

    def release(self, slot: int) -> None:
        """Mark the end of the computation that reads this buffer."""
        self._read[slot].record(torch.cuda.current_stream(self._device))


class GroupOffload:
    """A ``BlockRunner`` for ``AnimationUNet.run`` that keeps a block on ``device`` only while ``run`` calls it.

    ``calls["blocks_moved"]`` counts copied blocks. Blocks packed by ``pack_blocks`` go through ``buffers``; the order
    of the last call predicts the next block.
    """

    def __init__(
        self,
        device: torch.device,
        calls: Counter[str],
        run: BlockRunner = call_block,
        buffers: Callable[[torch.device, int], DoubleBuffer] = DoubleBuffer,
    ) -> None:
        self._device = device
        self._calls = calls
        self._run = run
        self._open_buffers = buffers
        self._buffers: DoubleBuffer | None = None
        self._slot = 0
        self._prefetched: nn.Module | None = None
        self._previous: nn.Module | None = None
        self._next: dict[nn.Module, nn.Module] = {}

    def __call__(self, function: Callable[..., Tensor], block: nn.Module, *arguments: object) -> Tensor:
        self._calls["blocks_moved"] += 1
        host = _host_blocks.get(block)
        with self.on_device(block) if host is None else self._buffered(block, host):
            return self._run(function, block, *arguments)

    def release(self) -> None:
        """Free the buffers."""
        self._buffers = self._prefetched = None

    def fetched(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor's data on the device."""
        return fetched(tensor.data, self._device)

    @contextmanager
    def _buffered(self, block: nn.Module, host: _HostBlock) -> Iterator[None]:
        """Read the block's weights from a buffer and prefetch the next block into the other."""
        if self._buffers is None:
            self._buffers = self._open_buffers(self._device, host.largest)
        buffers, self._slot = self._buffers, 1 - self._slot
        slot, tensors = self._slot, named_tensors(block)
        if self._prefetched is not block:
            buffers.copy(host.packed.slab, slot)
        buffers.acquire(slot)
        if self._previous is not None:
            self._next[self._previous] = block
        following = self._next.get(block)
        self._previous, self._prefetched = block, following
        if following is not None:
            buffers.copy(_host_blocks[following].packed.slab, 1 - slot)
        try:
            for name, view in host.packed.views(buffers.buffers[slot]).items():
                tensors[name].data = view
            yield
        finally:
            buffers.release(slot)
            for name, view in host.packed.views().items():
                tensors[name].data = view

    @contextmanager
    def on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Keep these modules on the device within it. Nothing is copied back, as weights do not change."""
        host = [(tensor, tensor.data) for module in modules for tensor in _tensors(module)]
        try:
            for tensor, _ in host:
                tensor.data = self.fetched(tensor)
            yield
        finally:
            for tensor, data in host:
                tensor.data = data


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
