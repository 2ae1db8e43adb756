"""``sa bench`` from names to tables: checks what was asked, measures one bench after another, writes what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stableanimator_cli.bench import (
    compare,
    cost,
    drawing,
    evaluation,
    face_optimization,
    gate,
    networks,
    preprocessing,
    rendering,
    roofline,
    speed,
    training,
)
from stableanimator_cli.bench.harness import load_warning
from stableanimator_cli.bench.results import BenchReport, Table, environment
from stableanimator_cli.bench.roofline import Roof
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.parse import parse_size
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import STRIDE

MIN_SIDE = 64  # pixels a side
VARIANTS = dict.fromkeys((*speed.UNET_VARIANTS, *speed.VAE_VARIANTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What is measured. ``size`` (width, height), ``frames`` and ``steps`` None: what suits each bench; ``pairs`` the
    rounds of each comparison; ``face`` a side in pixels, None for the drawn face; ``variants`` of ``unet`` and ``vae``,
    None for all but those that compile."""

    names: tuple[str, ...]
    networks: str = "puppet"
    size: tuple[int, int] | None = None
    frames: int | None = None
    steps: int | None = None
    pairs: int = 7
    variants: tuple[str, ...] | None = None
    face: int | None = None
    iterations: int = 3
    margin: int = 8
    video: Path | None = None
    against: Path | None = None
    python: Path | None = None
    baseline: Path = gate.BASELINE
    accept: bool = False
    device: DeviceConfig

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> BenchConfig:
        """From flags by option name, None where not given. Raises ``ConfigError`` that names the flag."""
        given = {name: value for name, value in flags.items() if value is not None}
        machine = {name: given.pop(name) for name in ("device", "dtype") if name in given}
        if "size" in given:
            given["size"] = parse_size(given["size"])
        if "variants" in given:
            given["variants"] = tuple(given["variants"])
        return cls(**{**given, "names": tuple(given["names"]), "device": DeviceConfig(**machine)})

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in BENCHES:
                raise ConfigError("NAME", name, f"one of {', '.join(BENCHES)}")
        for name in self.variants or ():
            if name not in VARIANTS:
                raise ConfigError("--variant", name, f"one of {', '.join(VARIANTS)}")
        if self.size is not None and (any(side % STRIDE for side in self.size) or min(self.size) < MIN_SIDE):
            found = "x".join(map(str, self.size))
            raise ConfigError("--size", found, f"sides that are multiples of {STRIDE}, {MIN_SIDE} or more")
        if self.accept and "gate" not in self.names:
            raise ConfigError("--accept", "on", "the bench gate among NAME", hint="sa bench gate --accept")
        if self.video is not None and "preprocess" not in self.names:
            raise ConfigError("--video", str(self.video), "the bench preprocess among NAME")
        if self.against is not None and "compare" not in self.names:
            raise ConfigError("--against", str(self.against), "the bench compare among NAME")
        if self.against is None and "compare" in self.names:
            raise ConfigError("--against", None, "a clone of the reference implementation", hint=compare.CLONE_HINT)
        if self.python is not None and self.against is None:
            raise ConfigError("--python", str(self.python), "--against FOLDER beside it")

    def shape_or(self, size: tuple[int, int], frames: int) -> tuple[tuple[int, int], int]:
        return self.size or size, self.frames or frames


@dataclass(slots=True, kw_only=True)
class BenchRun:
    """One run: the plan of the device, its roof once it is known, and the progress callback."""

    config: BenchConfig
    plan: DevicePlan
    tick: Callable[[], object]
    roofs: dict[torch.dtype, Roof]
    tables: dict[str, list[Table]]

    def roof(self) -> Roof:
        """The roof in the networks' type, measured in this run before it is first asked for."""
        if self.plan.dtype not in self.roofs:
            table, roofs = roofline.roofline_table(self.plan, (self.plan.dtype,))
            self.tables.setdefault("roofline", []).append(table)
            self.roofs |= roofs
            self.tick()
        return self.roofs[self.plan.dtype]


def _roofline(bench: BenchRun) -> list[Table]:
    """The networks' type and the two that cards like; nothing more where the roof is known already."""
    dtypes = dict.fromkeys((bench.plan.dtype, torch.float32, torch.bfloat16))
    if bench.plan.device.type == "cuda":
        dtypes[torch.float16] = None
    table, roofs = roofline.roofline_table(bench.plan, tuple(dtypes))
    bench.roofs |= roofs
    return [table]


def _cost(bench: BenchRun) -> list[Table]:
    config = bench.config
    sizes = (config.size,) if config.size else cost.SIZES
    # counted without weights, so the released shapes are no more work than small ones
    tables = cost.cost_tables(
        networks=networks.FULL if config.networks == "puppet" else config.networks,
        sizes=sizes, frames=config.frames or 16, chunk=4, face=config.face or 128,
    )  # fmt: skip
    return list(tables)


def _unet(bench: BenchRun) -> list[Table]:
    size, frames = bench.config.shape_or((128, 128), 16)
    variants = bench.config.variants or tuple(way for way in speed.UNET_VARIANTS if way != "compiled")
    model, shape = networks.open_bench_model(bench.config.networks), speed.ClipShape(size=size, frames=frames)
    return [speed.time_unet(model, bench.plan, shape, variants, bench.config.pairs, bench.roof(), bench.tick)]


def _vae(bench: BenchRun) -> list[Table]:
    size, frames = bench.config.shape_or((128, 128), 8)
    model, shape = networks.open_bench_model(bench.config.networks), speed.ClipShape(size=size, frames=frames)
    variants = bench.config.variants or speed.VAE_VARIANTS
    return [speed.time_vae(model, bench.plan, shape, variants, bench.config.pairs, bench.roof(), bench.tick)]


def _sample(bench: BenchRun) -> list[Table]:
    size, frames = bench.config.shape_or((128, 128), 16)
    model = networks.open_bench_model(bench.config.networks)
    steps, rounds = bench.config.steps or 4, bench.config.pairs
    return list(rendering.time_rendering(model, bench.plan, size, frames, steps, rounds, bench.roof(), bench.tick))


def _long(bench: BenchRun) -> list[Table]:
    size, frames = bench.config.shape_or((64, 64), 64)
    model = networks.open_bench_model(bench.config.networks)
    return list(rendering.measure_lengths(model, bench.plan, size, frames, bench.config.steps or 1, bench.tick))


def _hjb(bench: BenchRun) -> list[Table]:
    config = bench.config
    size, frames = config.shape_or((512, 512), 4)
    trial = face_optimization.RefineCase(
        size=size, frames=frames, iterations=config.iterations, margin=config.margin,
        mask_dilation=min(face_optimization.RefineCase().mask_dilation, config.margin), face=config.face,
    )  # fmt: skip
    with networks.open_engine(networks.open_bench_model(config.networks), bench.plan) as engine:
        return list(face_optimization.measure_face_optimization(engine, trial, config.pairs, bench.roof(), bench.tick))


def _train(bench: BenchRun) -> list[Table]:
    size, frames = bench.config.shape_or((128, 128), 8)
    model, shape = networks.open_bench_model(bench.config.networks), training.Shape(size=size, frames=frames)
    given = (model, bench.plan, shape, bench.config.pairs, bench.roof(), bench.tick)
    size, frames = bench.config.shape_or((576, 1024), 16)
    released = training.count_full_size(training.Shape(size=size, frames=frames), bench.tick)
    return [training.compare_caching(*given), training.compare_checkpointing(*given), released]


def _preprocess(bench: BenchRun) -> list[Table]:
    size, frames = bench.config.shape_or((256, 256), 32)
    name = "puppet" if bench.config.networks == networks.FULL else bench.config.networks
    clip = preprocessing.open_or_draw_clip(bench.config.video, size, frames)
    tables = [preprocessing.time_detection(name, str(bench.plan.device), clip, bench.config.pairs, bench.tick)]
    if bench.config.video is None:
        tables.append(drawing.time_drawing(bench.config.pairs, bench.tick))
    return tables


def _evaluate(bench: BenchRun) -> list[Table]:
    size, _ = bench.config.shape_or((256, 256), 0)
    model = "puppet" if bench.config.networks == networks.FULL else bench.config.networks
    return [
        evaluation.time_metric_networks(bench.plan, size, bench.config.pairs, bench.tick, model=model),
        evaluation.time_pixel_metrics(size, bench.config.pairs, bench.tick),
        evaluation.count_metric_memory(size, bench.tick),
    ]


def _compare(bench: BenchRun) -> list[Table]:
    config = bench.config
    assert config.against is not None
    size, frames = config.shape_or((128, 128), 16)
    compare.check_clone(config.against)
    model, shape = compare.model_to_compare(config.networks), speed.ClipShape(size=size, frames=frames)
    given = (config.against, config.python, config.pairs, bench.roof(), bench.tick)
    return [compare.compare_networks(model, bench.plan, shape, *given)]


def _gate(bench: BenchRun) -> list[Table]:
    found = gate.collect_counters(bench.tick)
    if bench.config.accept:
        gate.write_baseline(bench.config.baseline, found)
    return [gate.compare_counters(found, gate.read_baseline(bench.config.baseline))]


BENCHES: dict[str, Callable[[BenchRun], list[Table]]] = {
    "roofline": _roofline,
    "cost": _cost,
    "unet": _unet,
    "vae": _vae,
    "sample": _sample,
    "long": _long,
    "hjb": _hjb,
    "train": _train,
    "preprocess": _preprocess,
    "evaluate": _evaluate,
    "compare": _compare,
    "gate": _gate,
}
_UNTIMED = {"cost", "long", "gate"}


def run(*, flags: Mapping[str, Any], command: str, reporter: Reporter | None = None) -> BenchReport:
    """Measure every bench of ``flags["names"]`` in the order of ``BENCHES``: the roofline before what is read against
    it. Raises ``SaError``; the gate's verdict is ``check``."""
    reporter = reporter or NullReporter()
    config = BenchConfig.of(flags)
    plan = DevicePlan.of(config.device)
    warning = load_warning()
    if warning and not set(config.names) <= _UNTIMED:
        reporter.warning(warning)
    found: dict[str, list[Table]] = {}
    for name in (name for name in BENCHES if name in config.names):
        with reporter.progress(None, name, "run") as bar:
            bench = BenchRun(config=config, plan=plan, tick=bar.update, roofs={}, tables=found)
            found.setdefault(name, []).extend(BENCHES[name](bench))
    return BenchReport(command=command, environment=environment(plan.device), tables=found)


def check(report: BenchReport, baseline: Path | None) -> None:
    """Raise ``CheckFailed`` where the gate was among the benches and a counter changed."""
    for table in report.tables.get("gate", ()):
        gate.check_unchanged(table, baseline or gate.BASELINE)
