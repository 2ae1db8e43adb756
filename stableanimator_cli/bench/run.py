"""``sa bench``: measures one bench after another and collects their tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from stableanimator_cli.bench import (
    compare,
    cost,
    drawing,
    evaluation,
    face_optimization,
    frontier,
    gate,
    networks,
    operators,
    preprocessing,
    rendering,
    roofline,
    speed,
    training,
)
from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.harness import load_warning
from stableanimator_cli.bench.results import BenchReport, Table, environment
from stableanimator_cli.bench.roofline import Roof
from stableanimator_cli.config.bench import BenchConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import BadInput
from stableanimator_cli.progress import NullReporter, Reporter


def _roofline(bench: BenchRun) -> list[Table]:
    """The roof in the networks' type and in those that GPUs are made for."""
    dtypes = dict.fromkeys((bench.plan.dtype, torch.float32, torch.bfloat16))
    if bench.plan.device.type == "cuda":
        dtypes[torch.float16] = None
    table, roofs = roofline.roofline_table(bench.plan, tuple(dtypes))
    bench.roofs |= roofs
    return [table]


def _cost(bench: BenchRun) -> list[Table]:
    config = bench.config
    model = config.networks or networks.FULL  # counted without weights: the released shapes are no more work
    sizes = (config.size,) if config.size else cost.SIZES
    return list(
        cost.cost_tables(networks=model, sizes=sizes, frames=config.frames or 16, chunk=4, face=config.face or 128)
    )


def _hjb(bench: BenchRun) -> list[Table]:
    config, shape = bench.config, bench.shape((512, 512), 4)
    margin = config.value("margin")
    case = face_optimization.RefineCase(
        size=shape.size, frames=shape.frames, iterations=config.value("iterations"), margin=margin,
        mask_dilation=min(face_optimization.RefineCase().mask_dilation, margin), face=config.face,
    )  # fmt: skip
    with networks.open_engine(bench.model(), bench.plan) as engine:
        return face_optimization.measure_face_optimization(bench, engine, case)


def _train(bench: BenchRun) -> list[Table]:
    return [
        training.compare_caching(bench), training.compare_checkpointing(bench), training.count_full_size(bench),
    ]  # fmt: skip


def _preprocess(bench: BenchRun) -> list[Table]:
    tables = [preprocessing.time_detection(bench)]
    return tables if bench.config.video else [*tables, drawing.time_drawing(bench)]


def _evaluate(bench: BenchRun) -> list[Table]:
    size = bench.config.size or (256, 256)
    measures = (evaluation.time_metric_networks, evaluation.time_pixel_metrics, evaluation.count_metric_memory)
    return [measure(bench, size) for measure in measures]


def _compare(bench: BenchRun) -> list[Table]:
    assert bench.config.against is not None
    compare.check_clone(bench.config.against)  # before minutes of making weights
    return [compare.compare_networks(bench, compare.model_to_compare(bench.config.value("networks")))]


def _gate(bench: BenchRun) -> list[Table]:
    path, accept = bench.config.baseline or gate.BASELINE, bench.config.accept
    # read before anything is counted; with --accept so that a file of another kind is not replaced
    recorded = gate.read_baseline(path) if not accept or os.path.lexists(path) else {}
    counters = gate.collect_counters(bench.tick)
    if accept:
        if os.path.lexists(path) and not recorded.keys() & counters.keys():
            raise BadInput(path, "integers by other names", "counters that `sa bench gate --accept` recorded before")
        gate.write_baseline(path, counters)
    return [gate.compare_counters(counters, counters if accept else recorded)]


BENCHES: dict[str, Callable[[BenchRun], list[Table]]] = {
    "roofline": _roofline,
    "cost": _cost,
    "operators": operators.time_operators,
    "unet": speed.time_unet,
    "vae": speed.time_vae,
    "sample": rendering.time_rendering,
    "long": rendering.measure_lengths,
    "hjb": _hjb,
    "train": _train,
    "preprocess": _preprocess,
    "evaluate": _evaluate,
    "compare": _compare,
    "frontier": frontier.measure_frontier,
    "gate": _gate,
}
_UNTIMED = {"cost", "long", "frontier", "gate"}


def run(*, flags: Mapping[str, Any], command: str, reporter: Reporter | None = None) -> BenchReport:
    """Run the benches of NAME in the order of ``BENCHES``: the roofline comes before what is compared with it.

    ``flags`` by option name, None if not given. Raises ``SaError``; ``check`` raises the gate's verdict.
    """
    reporter = reporter or NullReporter()
    config = resolve(BenchConfig, flags)
    plan = DevicePlan.of(config.device_config)
    warning = load_warning()
    if warning and not set(config.names) <= _UNTIMED:
        reporter.warning(warning)
    tables: dict[str, list[Table]] = {}
    roofs: dict[torch.dtype, Roof] = {}
    for name in (name for name in BENCHES if name in config.names):
        with reporter.progress(None, name, "run") as bar:
            bench = BenchRun(config=config, plan=plan, tick=bar.update, roofs=roofs, tables=tables)
            tables.setdefault(name, []).extend(BENCHES[name](bench))
    return BenchReport(command=command, environment=environment(plan.device), tables=tables)


def check(report: BenchReport, baseline: Path | None) -> None:
    """Raise ``CheckFailed`` if the gate was among the benches and a counter changed."""
    for table in report.tables.get("gate", ()):
        gate.check_unchanged(table, baseline or gate.BASELINE)
