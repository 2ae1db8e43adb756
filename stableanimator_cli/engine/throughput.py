"""Measured throughput of a network's operators on a device, at the network's own shapes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

MATRIX_TIME = 0.6  # fraction of the time in matrix products; norms, activations and the rest take the other part
SECONDS = 4.0  # total time for measuring
_SIDE = 1024  # of the matrices that are timed if no operator of the network can be
_LARGEST = 2**30  # bytes that one operator may read
_RUNS = 3  # per shape; the fastest counts


@dataclass(frozen=True, slots=True)
class Operands:
    """A tensor's shape and strides, in place of the tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    floating: bool


Call = tuple[Any, tuple[Any, ...], tuple[tuple[str, Any], ...]]
"""An operator and its arguments, tensors as ``Operands``. Hashable."""


def call_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """The call with tensors as ``Operands``, None if an argument is not hashable."""

    def without_values(value: Any) -> Any:
        if isinstance(value, Tensor):
            return Operands(tuple(value.shape), tuple(value.stride()), value.is_floating_point())
        return tuple(map(without_values, value)) if isinstance(value, list | tuple) else value

    call = (
        function,
        without_values(args),
        tuple(sorted((name, without_values(value)) for name, value in kwargs.items())),
    )
    try:
        hash(call)
    except TypeError:
        return None
    return call


def throughput(work: Mapping[Call, float], device: torch.device, dtype: torch.dtype) -> float:
    """``flops_per_second``, of a large matrix product if none of the calls runs on this device."""
    return flops_per_second(work, device, dtype) or _matrix_speed(device, dtype)


def _matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    best = 0.0
    for _ in range(_RUNS):
        started = time.perf_counter()
        product = matrix @ matrix
        _synchronize(device)
        seconds = max(time.perf_counter() - started, 1e-9)
        best = max(best, 2 * _SIDE**3 / seconds)
        del product
    return best


def flops_per_second(work: Mapping[Call, float], device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations per second over the calls of ``work``, which maps calls to their total FLOPs.

    The largest are measured first, as many as time allows. None if none of them runs on this device.
    """
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

    def allocate(value: Any) -> Any:
        if isinstance(value, Operands):
            storage = torch.zeros(_elements(value), device=device, dtype=dtype if value.floating else torch.int64)
            return storage.as_strided(value.shape, value.strides)
        return [allocate(one) for one in value] if isinstance(value, tuple) else value

    try:
        inputs, keywords = [allocate(value) for value in args], {name: allocate(value) for name, value in kwargs}
        with torch.no_grad():
            result = function(*inputs, **keywords)  # the first run selects a kernel
            work = flop_registry[function._overloadpacket](*inputs, **keywords, out_val=result)
            best = float("inf")
            for _ in range(_RUNS):
                _synchronize(device)
                started = time.perf_counter()
                function(*inputs, **keywords)
                _synchronize(device)
                best = min(best, time.perf_counter() - started)
                if best > SECONDS / 8:
                    break
    except (RuntimeError, TypeError, NotImplementedError):  # the device has no such kernel
        return None
    return float(work), max(best, 1e-9)


def _operands(tree: Any) -> list[Operands]:
    found: list[Operands] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Operands) else None, tree)
    return found


def _elements(operand: Operands) -> int:
    """Elements of the storage that the strides span."""
    return 1 + sum((side - 1) * stride for side, stride in zip(operand.shape, operand.strides, strict=True))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
