"""Where the time of a guided step, of decoding and of a training step goes: by operator, beside the roofline.

Each operator that reaches the device is timed by itself, with the FLOPs of torch's formulas and the bytes of its
tensors. The roofline says how long it had to take: ``max(FLOPs / rate, bytes / bandwidth)`` (Williams, Waterman and
Patterson 2009). What an operator takes above that is what a better kernel could save; what it takes altogether is the
most that fewer calls could save.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.networks import load_network
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.roofline import GIGA, Roof, synchronizer
from stableanimator_cli.bench.speed import decoding, guided_step
from stableanimator_cli.bench.training import frozen_optimizer, open_parts, train_step
from stableanimator_cli.engine.device import memory_guard
from stableanimator_cli.engine.memory.train_step import random_inputs
from stableanimator_cli.engine.training import TrainingSettings
from stableanimator_cli.engine.training.model import Dtype
from stableanimator_cli.nets.unet import AnimationUNet

LEAST_SHARE = 0.01  # of all operators' time; below it they are summed up in one row
OTHERS, OUTSIDE = "all others", "outside of operators"
_HINT = "use a smaller --size or --frames, or --dtype bfloat16"


class OperatorTimes(TorchDispatchMode):
    """Seconds, calls, FLOPs and bytes by operator (``convolution``, ``addmm``), of everything that runs inside.

    The device is waited for before and after each operator, so on a GPU small ones appear longer than they are.
    Bytes are those of the distinct tensors that an operator reads and writes; views and uninitialised memory move none.
    """

    def __init__(self, synchronize: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._synchronize, self._clock = synchronize, clock

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._synchronize()
        started = self._clock()
        result = func(*args, **kwargs)
        self._synchronize()
        name = func._overloadpacket.__name__
        self.seconds[name] += self._clock() - started
        self.calls[name] += 1
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops[name] += formula(*args, **kwargs, out_val=result)
        self.bytes[name] += _moved(func, (args, kwargs), result)
        return result


def _moved(func: Any, given: object, result: object) -> int:
    """Bytes of the distinct tensors that an operator reads and writes; 0 for a view and for uninitialised memory."""
    read, written = ({id(x): x for x in tree_leaves(part) if isinstance(x, Tensor)} for part in (given, result))
    memory = {id(x.untyped_storage()) for x in read.values()}
    is_view = not func._schema.is_mutable and any(id(x.untyped_storage()) in memory for x in written.values())
    if is_view or "empty" in func._overloadpacket.__name__:
        return 0
    return sum(map(_nbytes, (read | written).values()))


def _nbytes(tensor: Tensor) -> int:
    """Bytes that are read: positions along which a tensor is only repeated (stride 0) are read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    positions = 1
    for size, stride in sizes:
        positions *= size if stride else 1
    return positions * tensor.element_size() if tensor.numel() else 0


def time_operators(bench: BenchRun) -> list[Table]:
    """One table for a guided step of the UNet, one for decoding and one for a training step."""
    model, shape, plan = bench.model(), bench.shape((128, 128), 8), bench.plan
    tables = []
    with memory_guard("measuring operators", _HINT):
        with torch.no_grad():
            unet = cast(AnimationUNet, load_network(model, "unet", plan.dtype).to(plan.device))
            step = guided_step(unet, shape, plan, unet)
            tables.append(_table(bench, f"A guided step of {model.name}, {shape}, {bench.dtype}", step))
            del unet, step
            vae: Any = load_network(model, "vae", plan.dtype).to(plan.device)
            decode = partial(decoding(vae, shape, plan), shape.frames)
            tables.append(_table(bench, f"Decoding, {model.name}, {shape}, {bench.dtype}", decode))
            del vae, decode
        parts = open_parts(model, TrainingSettings(dtype=cast(Dtype, bench.dtype), checkpointing="off"), plan)
        optimizer = frozen_optimizer(parts)
        inputs = random_inputs(parts.model, 1, shape.frames, shape.size, plan.device)
        title = f"A training step of {model.name}, {shape}, {parts.settings.train}, {bench.dtype}"
        tables.append(_table(bench, title, lambda: train_step(parts, inputs, optimizer)))
    return tables


def _table(bench: BenchRun, title: str, run: Callable[[], object]) -> Table:
    """Time ``run`` plainly and by operator, in turns, and put its operators beside the roof."""
    rounds: list[OperatorTimes] = []

    def by_operator() -> None:
        with OperatorTimes(synchronizer(bench.plan.device)) as found:
            run()
        rounds.append(found)

    timed = bench.time({"plain": run, "by operator": by_operator})
    rows = operator_rows(rounds[1:], bench.roof(), timed.median("plain"))  # the first one warmed up
    note = (
        f"Means of {bench.rounds} round(s). The roof of an operator is its FLOPs at {bench.roof().gflops:.4g} GFLOP/s "
        f"or its bytes at {bench.roof().bandwidth:.4g} GB/s, whichever is longer. `{OUTSIDE}` is what plain runs take "
        "above the operators' time (median): Python and dispatch."
    )
    return Table(title=title, rows=rows, note=note)


def operator_rows(rounds: list[OperatorTimes], roof: Roof, plain: float) -> list[dict[str, Any]]:
    """Rows by falling time: operators above ``LEAST_SHARE``, the others, the time outside of them, and all.

    ``plain`` is the seconds of a run in which operators are not timed.
    """
    count, last = len(rounds), rounds[-1]
    seconds = {name: sum(one.seconds.get(name, 0.0) for one in rounds) for name in last.seconds}
    total = sum(seconds.values())
    large = sorted((name for name in seconds if seconds[name] >= LEAST_SHARE * total), key=lambda name: -seconds[name])
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in large}
    small = tuple(seconds.keys() - set(large))
    if small:
        groups[f"{OTHERS} ({len(small)})"] = small
    least = {name: roof.least_seconds(last.flops[name], last.bytes[name]) for name in seconds}
    rows = []
    for title, names in groups.items():
        taken = sum(seconds[name] for name in names) / count
        flops, moved = (sum(counter[name] for name in names) for counter in (last.flops, last.bytes))
        bound = sum(least[name] for name in names)
        rows.append(_row(title, sum(last.calls[name] for name in names), taken, plain, flops, moved, bound))
    rows.append(_row(OUTSIDE, None, max(plain - total / count, 0.0), plain))
    flops, moved = sum(last.flops.values()), sum(last.bytes.values())
    rows.append(_row("all", sum(last.calls.values()), plain, plain, flops, moved, sum(least.values())))
    return rows


def _row(
    name: str, calls: int | None, taken: float, plain: float, flops: int = 0, moved: int = 0, least: float = 0.0
) -> dict[str, Any]:
    return {
        "operator": name,
        "calls": calls,
        "ms": 1e3 * taken,
        "% of the time": 100 * taken / plain,
        "GFLOP": flops / GIGA if flops else None,
        "GB moved": moved / GIGA if moved else None,
        "ms by the roof": 1e3 * least if least else None,
        "% of the roof": 100 * least / taken if least and taken else None,
    }
