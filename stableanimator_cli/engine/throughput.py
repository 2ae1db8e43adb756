"""How fast a device computes the operators of a network, measured at the shapes that the network has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

SECONDS = 4.0  # spent on measuring in all
_LARGEST = 2**30  # bytes that one operator may read
_RUNS = 3  # of each shape; the quickest counts


@dataclass(frozen=True, slots=True)
class Operands:
    """A tensor's shape and strides, in place of the tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    floating: bool


Call = tuple[Any, tuple[Any, ...], tuple[tuple[str, Any], ...]]
"""An operator with its arguments, tensors as ``Operands``; can be a key."""


def call_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """The call without its numbers, None if an argument cannot be part of a key."""

    def bare(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Operands(tuple(value.shape), tuple(value.stride()), value.is_floating_point())
        return tuple(map(bare, value)) if isinstance(value, list | tuple) else value

    call = (function, bare(args), tuple(sorted((name, bare(value)) for name, value in kwargs.items())))
    try:
        hash(call)
    except TypeError:
        return None
    return call


def flops_per_second(work: Mapping[Call, float], device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations per second over the calls of ``work`` (FLOPs of each in all), the largest first, as
    many as there is time for: their FLOPs by the seconds that they take. None if none of them runs here."""
    flops = seconds = 0.0
    limit = time.perf_counter() + SECONDS
    for call, total in sorted(work.items(), key=lambda item: -item[1]):
        taken = _seconds(call, device, dtype)
        if taken is not None:
            each, elapsed = taken
            flops += total
            seconds += total / each * elapsed if each else 0.0
        if time.perf_counter() > limit:
            break
    return flops / seconds if seconds else None


def _seconds(call: Call, device: torch.device, dtype: torch.dtype) -> tuple[float, float] | None:
    """FLOPs and seconds of one run."""
    from torch.utils.flop_counter import flop_registry

    function, args, kwargs = call
    size = sum(_elements(value) for value in _operands((args, kwargs))) * dtype.itemsize
    if size > _LARGEST:
        return None

    def made(value: Any) -> Any:
        if isinstance(value, Operands):
            storage = torch.zeros(_elements(value), device=device, dtype=dtype if value.floating else torch.int64)
            return storage.as_strided(value.shape, value.strides)
        return [made(one) for one in value] if isinstance(value, tuple) else value

    try:
        given, named = [made(value) for value in args], {name: made(value) for name, value in kwargs}
        with torch.no_grad():
            result = function(*given, **named)  # the first run chooses a kernel
            work = flop_registry[function._overloadpacket](*given, **named, out_val=result)
            best = float("inf")
            for _ in range(_RUNS):
                _wait(device)
                started = time.perf_counter()
                function(*given, **named)
                _wait(device)
                best = min(best, time.perf_counter() - started)
                if best > SECONDS / 8:
                    break
    except (RuntimeError, TypeError, NotImplementedError):  # a kernel that this device does not have
        return None
    return float(work), max(best, 1e-9)


def _operands(tree: Any) -> list[Operands]:
    found: list[Operands] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Operands) else None, tree)
    return found


def _elements(operand: Operands) -> int:
    """Numbers between the first and the last that the strides reach."""
    return 1 + sum((side - 1) * stride for side, stride in zip(operand.shape, operand.strides, strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
