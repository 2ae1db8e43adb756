"""Regression gate: FLOPs, peak bytes, operators and calls compared with recorded counters.

Nothing is timed, so a difference is a change of the code or of torch. ``sa bench gate --accept`` records a new list.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from stableanimator_cli.bench import cost
from stableanimator_cli.bench.networks import FULL, open_bench_model, open_engine
from stableanimator_cli.bench.rendering import make_request, render_frames
from stableanimator_cli.bench.results import Table
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import BadInput, CheckFailed
from stableanimator_cli.files import atomic_write, require_file
from stableanimator_cli.readers import read_json

BASELINE = Path(__file__).with_name("baseline.json")
LARGE, FRAMES, CHUNK, FACE = (576, 1024), 16, 4, 128
Counters = dict[str, int]


def collect_counters(tick: Callable[[], object] = lambda: None) -> Counters:
    """All counters by name: full-size networks on the ``meta`` device, and calls of a small rendering."""
    model, counters, costs = open_bench_model(FULL), {}, {}
    for name, count in cost.unet_cost(model, LARGE, FRAMES, torch.bfloat16).items():
        costs[f"{name} 576x1024"] = count
    tick()
    for name, count in cost.vae_cost(model, LARGE, FRAMES, torch.bfloat16, CHUNK).items():
        costs[f"{name} 576x1024"] = count
    tick()
    # two chunks distinguish one graph from one backward pass per chunk
    hjb = cost.face_optimization_cost(model, LARGE, 2 * CHUNK, torch.float32, CHUNK, FACE, checkpointing=(True,))
    for name, count in hjb.items():
        costs[f"{name} 576x1024"] = count
    tick()
    for name, count in costs.items():
        counters |= {f"{name}: FLOPs": count.flops, f"{name}: bytes alive": count.bytes}
        counters[f"{name}: operators"] = count.operators
    for frames in (16, 64, 300):
        counters[f"windows of {frames} frames"] = len(plan_windows(frames, length=16, overlap=4))
    plan = DevicePlan(device=torch.device("cpu"), dtype=torch.float32)
    with open_engine(open_bench_model("puppet"), plan) as engine:
        render_frames(engine, make_request((64, 64), 6, 2, window=4, overlap=1))
        counters |= {f"calls of a rendering: {name}": count for name, count in sorted(engine.calls.items())}
    tick()
    return counters


def read_baseline(path: Path) -> Counters:
    """Read recorded counters. Raises ``BadInput`` for another file."""
    expected = "counters by name, as `sa bench gate --accept` writes them"
    data = read_json(require_file(path, expected), expected)
    if not isinstance(data, dict) or not all(isinstance(value, int) for value in data.values()):
        raise BadInput(path, "something other than integers by name", expected)
    return data


def write_baseline(path: Path, counters: Counters) -> None:
    with atomic_write(path) as temp:
        temp.write_text(json.dumps(counters, indent=2) + "\n", encoding="utf-8")


def compare_counters(actual: Counters, expected: Counters) -> Table:
    """Counters that differ, are new or missing; no rows if all are equal."""
    names = dict.fromkeys([*expected, *actual])
    rows = [
        {
            "counter": name,
            "recorded": expected.get(name),
            "found": actual.get(name),
            "change": _change(expected.get(name), actual.get(name)),
        }
        for name in names
        if expected.get(name) != actual.get(name)
    ]
    note = f"{len(actual)} counters, {len(rows)} changed."
    return Table(title="Gate", rows=rows, note=note)


def _change(before: int | None, now: int | None) -> str:
    if before is None or now is None:
        return "new" if before is None else "gone"
    return f"{100 * (now - before) / before:+.3g} %" if before else f"{now - before:+d}"


def check_unchanged(changed: Table, path: Path) -> None:
    """Raise ``CheckFailed`` with the differences."""
    if not changed.rows:
        return
    words = [f"{row['counter']} {row['recorded']} -> {row['found']} ({row['change']})" for row in changed.rows]
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    raise CheckFailed(
        f"{path.name}: {len(words)} counter(s) changed: {'; '.join(words[:3])}{more}",
        hint="find what changed the work done; if it is meant, record it: `sa bench gate --accept`",
    )
