"""Weights that wait in host memory while they are not on the device: nothing is copied back, for they do not change.

For a CUDA card they lie in one pinned slab, which is allocated once and read by asynchronous copies. torch rounds a
pinned allocation up to a power of two bytes. Where the system refuses to pin so much, the slab is ordinary memory and
copies are slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # bytes, of each tensor in a slab: what kernels may take for granted


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a slab: its first byte, and what it is."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize

    def view(self, slab: Tensor) -> Tensor:
        flat = slab[self.start : self.start + self.bytes].view(self.dtype)
        return flat.as_strided(self.shape, self.stride) if flat.numel() else flat.view(self.shape)


@dataclass(frozen=True, slots=True)
class Packed:
    """Tensors by name in a run of bytes, ``slab`` uint8[n]."""

    slab: Tensor
    places: Mapping[str, Place]

    def views(self, slab: Tensor | None = None) -> dict[str, Tensor]:
        """The tensors as views of the slab, or of a copy of it elsewhere."""
        slab = self.slab if slab is None else slab
        return {name: place.view(slab) for name, place in self.places.items()}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


def pack(groups: Sequence[Mapping[str, Tensor]], *, pin: bool) -> list[Packed]:
    """Put all tensors of all groups into one slab of host memory; each group lies in one run of it.

    The tensors read from the slab afterwards, so that what they held before is free again one by one.
    """
    laid, starts, end = [], [], 0
    for group in groups:
        starts.append(end)
        places = {}
        for name, tensor in group.items():
            place = Place(end - starts[-1], tensor.dtype, tuple(tensor.shape), _stride(tensor))
            places[name] = place
            end += -(-place.bytes // ALIGNMENT) * ALIGNMENT
        laid.append(places)
    slab = _allocated(end, pin)
    found = []
    for group, places, start, stop in zip(groups, laid, starts, [*starts[1:], end], strict=True):
        packed = Packed(slab[start:stop], places)
        for name, view in packed.views().items():
            view.copy_(group[name].data)
            group[name].data = view
        found.append(packed)
    return found


class HostCopy:
    """A network's weights in host memory, of which ``up`` makes copies on the device and ``down`` drops them.

    ``names``: only these; the others are left alone.
    """

    def __init__(self, network: nn.Module, device: torch.device, names: Iterable[str] | None = None) -> None:
        self._network = network
        self._device = device
        tensors = named_tensors(network)
        chosen = {name: tensors[name] for name in (tensors if names is None else names)}
        if device.type == "cuda":
            (packed,) = pack([chosen], pin=True)
            self._host = packed.views()
        else:
            self._host = {name: tensor.data for name, tensor in chosen.items()}
        self.on_device = False

    def up(self) -> None:
        """Copy the weights to the device, in the order of its work there."""
        if not self.on_device:
            self.on_device = True  # also where the memory is too small for all of them: ``down`` drops what came
            for name, tensor in self._tensors().items():
                tensor.data = fetched(self._host[name], self._device)

    def down(self) -> None:
        """Let go of the copies on the device; the weights are those in host memory again."""
        if self.on_device:
            for name, tensor in self._tensors().items():
                tensor.data = self._host[name]
            self.on_device = False

    def _tensors(self) -> dict[str, Tensor]:
        """By name and not by identity: a change of dtype and back gives a module new buffers."""
        tensors = named_tensors(self._network)
        return {name: tensors[name] for name in self._host}


def fetched(host: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; from pinned memory it is on its way when this returns."""
    return host.to(device, non_blocking=True)


def _stride(tensor: Tensor) -> tuple[int, ...]:
    """Its own, where it fills its memory without gaps; else that of a contiguous tensor."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if last or tensor.is_contiguous():
        return tuple(tensor.stride())
    return tuple(torch.empty(tensor.shape, device="meta").stride())


def _allocated(size: int, pin: bool) -> Tensor:
    if pin:
        with suppress(RuntimeError):  # the system's limit of locked memory
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.empty(size, dtype=torch.uint8)
