"""Measured throughput of a network's operators on a device, at the network's own shapes.

A measurement is valid for a week in ``throughput.json`` of the cache folder, by machine, device, type, threads, version
of torch and the operators; to measure again, remove the file. That of a CPU which other programs used meanwhile is not
stored: it holds for the present load only.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from stableanimator_cli import __version__
from stableanimator_cli.catalogue.home import cache_dir
from stableanimator_cli.engine.device import device_name, synchronize
from stableanimator_cli.errors import SaError
from stableanimator_cli.files import MARK, atomic_write
from stableanimator_cli.readers import read_json

MATRIX_TIME = 0.6  # fraction of the time in matrix products; norms, activations and the rest take the other part
SECONDS = 4.0  # total time for measuring
_SIDE = 1024  # of the matrices that are timed if no operator of the network can be
_LARGEST = 2**30  # bytes that one operator may read
_RUNS = 5  # rounds over all shapes at most; the fastest of each shape counts, so that a burst of load spoils none
VALID_FOR = datetime.timedelta(days=7)
_KEPT_ENTRIES = 200
_BUSY = 0.1  # fraction of a measurement on a CPU in which other programs had the core


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


@dataclass(frozen=True, slots=True)
class Throughput:
    """Floating-point operations per second, and the date of the measurement."""

    flops_per_second: float
    measured: str


def throughput(work: Mapping[Call, float], device: torch.device, dtype: torch.dtype) -> Throughput:
    """``flops_per_second``, of a large matrix product if none of the calls runs on this device.

    Valid for a week, unless other programs had the CPU meanwhile.
    """
    key, today, path = _key(work, device, dtype), datetime.date.today(), cache_dir() / "throughput.json"
    stored = _read(path, today)
    if key not in stored:
        started, waited = time.perf_counter(), _waited()
        speed = flops_per_second(work, device, dtype) or _matrix_speed(device, dtype)
        if device.type == "cpu" and _waited() - waited > _BUSY * (time.perf_counter() - started):
            return Throughput(speed, today.isoformat())
        stored[key] = {"flops_per_second": speed, "date": today.isoformat()}
        with suppress(SaError, OSError), atomic_write(path, marked=True) as temp:  # it is measured again without
            latest = dict(list(stored.items())[-_KEPT_ENTRIES:])
            temp.write_text(json.dumps({MARK: __version__, "measured": latest}, indent=1) + "\n", encoding="utf-8")
    return Throughput(stored[key]["flops_per_second"], stored[key]["date"])


def _waited() -> float:
    """Seconds that this thread was ready to run and other threads had the core, as Linux counts them; 0 elsewhere."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return 0.0


def _key(work: Mapping[Call, float], device: torch.device, dtype: torch.dtype) -> str:
    """Of the machine and of which operators take which part of the work, to a percent."""
    total = sum(work.values()) or 1
    parts = sorted(f"{round(100 * flops / total)} {call}" for call, flops in work.items() if 200 * flops > total)
    facts = [platform.node(), device_name(device), str(dtype), torch.get_num_threads(), torch.__version__, parts]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read(path: Path, today: datetime.date) -> dict[str, dict[str, Any]]:
    """Measurements that are not too old; none if the file is missing or damaged."""
    try:
        rows = read_json(path, "measured throughputs")["measured"]
        return {
            key: row
            for key, row in rows.items()
            if row["flops_per_second"] > 0 and today - VALID_FOR <= datetime.date.fromisoformat(row["date"]) <= today
        }
    except (SaError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    best = 0.0
    for _ in range(_RUNS):
        started = time.perf_counter()
        product = matrix @ matrix
        synchronize(device)
        seconds = max(time.perf_counter() - started, 1e-9)
        best = max(best, 2 * _SIDE**3 / seconds)
        del product
    return best


def flops_per_second(work: Mapping[Call, float], device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations per second over the calls of ``work``, which maps calls to their total FLOPs.

    The largest are measured first, as many as half the time allows, and then again in rounds. None if none of them
    runs on this device.
    """
    best: dict[Call, tuple[float, float]] = {}
    started = time.perf_counter()
    for call, _ in sorted(work.items(), key=lambda item: -item[1]):
        taken = _seconds(call, device, dtype)
        if taken is not None:
            best[call] = taken
        if time.perf_counter() > started + SECONDS / 2:
            break
    for _ in range(_RUNS - 1):
        for call in best:
            if time.perf_counter() > started + SECONDS:
                break
            taken = _seconds(call, device, dtype)
            if taken is not None:
                best[call] = min(best[call], taken, key=lambda run: run[1])
    flops = sum(work[call] for call in best)
    seconds = sum(work[call] / each * elapsed for call, (each, elapsed) in best.items() if each)
    return flops / seconds if seconds else None


def _seconds(call: Call, device: torch.device, dtype: torch.dtype) -> tuple[float, float] | None:
    """FLOPs and seconds of one run, after one that selects a kernel."""
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
            started = time.perf_counter()
            result = function(*inputs, **keywords)
            work = flop_registry[function._overloadpacket](*inputs, **keywords, out_val=result)
            synchronize(device)
            elapsed = time.perf_counter() - started
            if elapsed < SECONDS / 8:  # a second run of a slow operator would add nothing
                started = time.perf_counter()
                function(*inputs, **keywords)
                synchronize(device)
                elapsed = time.perf_counter() - started
    except (RuntimeError, TypeError, NotImplementedError):  # the device has no such kernel
        return None
    return float(work), max(elapsed, 1e-9)


def _operands(tree: Any) -> list[Operands]:
    found: list[Operands] = []
    tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, Operands) else None, tree)
    return found


def _elements(operand: Operands) -> int:
    """Elements of the storage that the strides span."""
    return 1 + sum((side - 1) * stride for side, stride in zip(operand.shape, operand.strides, strict=True))
