"""Weights in host memory, copied to the device and dropped there: they do not change, so nothing is copied back.

For a CUDA GPU they are in one pinned slab, allocated once and read by asynchronous copies. Torch rounds a pinned
allocation up to a power of two bytes. If the system refuses to pin it, the slab is ordinary memory and copies are
slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # bytes, of each tensor in a slab, as kernels may assume


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Position of a tensor in a slab, dtype, shape and strides."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, slab: Tensor) -> Tensor:
        flat = slab[self.start : self.start + self.bytes].view(self.dtype)
        return flat.as_strided(self.shape, self.stride) if flat.numel() else flat.view(self.shape)


@dataclass(frozen=True, slots=True)
class Packed:
    """Tensors by name in ``slab`` uint8[n]."""

    slab: Tensor
    layouts: Mapping[str, TensorLayout]

    def views(self, slab: Tensor | None = None) -> dict[str, Tensor]:
        """The tensors as views of the slab, or of a copy of it."""
        slab = self.slab if slab is None else slab
        return {name: layout.view(slab) for name, layout in self.layouts.items()}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


def pack(groups: Sequence[Mapping[str, Tensor]], *, pin: bool) -> list[Packed]:
    """Move all tensors into one slab of host memory, each group into one slice of it.

    The tensors become views of the slab one by one, so that their former memory is freed on the way.
    """
    layouts, starts, end = [], [], 0
    for group in groups:
        starts.append(end)
        layouts.append({})
        for name, tensor in group.items():
            layout = TensorLayout(end - starts[-1], tensor.dtype, tuple(tensor.shape), _dense_stride(tensor))
            layouts[-1][name] = layout
            end += -(-layout.bytes // ALIGNMENT) * ALIGNMENT
    slab = _allocate(end, pin)
    packed = [Packed(slab[a:b], layout) for layout, a, b in zip(layouts, starts, [*starts[1:], end], strict=True)]
    for group, one in zip(groups, packed, strict=True):
        for name, view in one.views().items():
            view.copy_(group[name].data)
            group[name].data = view
    return packed


class HostCopy:
    """A network's weights in host memory: ``up`` copies them to the device, ``down`` drops the copies.

    ``names`` restricts it to these tensors.
    """

    def __init__(self, network: nn.Module, device: torch.device, names: Iterable[str] | None = None) -> None:
        self._network = network
        self._device = device
        tensors = named_tensors(network)
        selected = {name: tensors[name] for name in (tensors if names is None else names)}
        if device.type == "cuda":
            (packed,) = pack([selected], pin=True)
            self._host = packed.views()
        else:
            self._host = {name: tensor.data for name, tensor in selected.items()}
        self.on_device = False

    def up(self) -> None:
        """Copy the weights to the device, in stream order."""
        if not self.on_device:
            self.on_device = True  # also if memory runs out halfway: ``down`` then drops the first copies
            for name, tensor in self._tensors().items():
                tensor.data = fetched(self._host[name], self._device)

    def down(self) -> None:
        """Drop the copies on the device and use the weights in host memory."""
        if self.on_device:
            for name, tensor in self._tensors().items():
                tensor.data = self._host[name]
            self.on_device = False

    def _tensors(self) -> dict[str, Tensor]:
        """Found by name: a change of dtype and back gives a module new buffers."""
        tensors = named_tensors(self._network)
        return {name: tensors[name] for name in self._host}


def fetched(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; from pinned memory it is asynchronous."""
    return host.to(device, non_blocking=True)


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides if it fills its memory without gaps, else those of a contiguous tensor."""
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if channels_last or tensor.is_contiguous():
        return tuple(tensor.stride())
    return tuple(torch.empty(tensor.shape, device="meta").stride())


def _allocate(size: int, pin: bool) -> Tensor:
    if pin:
        with suppress(RuntimeError):  # the system's limit of locked memory
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.empty(size, dtype=torch.uint8)
