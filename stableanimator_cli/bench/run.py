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
    gate,
    hjb,
    networks,
    preprocessing,
    rendering,
    roofline,
    speed,
    training,
)
from stableanimator_cli.bench.harness import busy
from stableanimator_cli.bench.results import BenchReport, Table, environment
from stableanimator_cli.bench.roofline import Roof
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.config.parse import parse_size
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.progress import NullReporter, Reporter
from stableanimator_cli.records import STRIDE

SMALLEST = 64  # pixels a side
WAYS = dict.fromkeys((*speed.UNET_WAYS, *speed.VAE_WAYS))


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
            if name not in WAYS:
                raise ConfigError("--variant", name, f"one of {', '.join(WAYS)}")
        if self.size is not None and (any(side % STRIDE for side in self.size) or min(self.size) < SMALLEST):
            found = "x".join(map(str, self.size))
            raise ConfigError("--size", found, f"sides that are multiples of {STRIDE}, {SMALLEST} or more")
        if self.accept and "gate" not in self.names:
            raise ConfigError("--accept", "on", "the bench gate among NAME", hint="sa bench gate --accept")
        if self.video is not None and "preprocess" not in self.names:
            raise ConfigError("--video", str(self.video), "the bench preprocess among NAME")
        if self.against is not None and "compare" not in self.names:
            raise ConfigError("--against", str(self.against), "the bench compare among NAME")
        if self.against is None and "compare" in self.names:
            raise ConfigError("--against", None, "a clone of the reference implementation", hint=compare.CLONE)
        if self.python is not None and self.against is None:
            raise ConfigError("--python", str(self.python), "--against FOLDER beside it")

    def shape(self, size: tuple[int, int], frames: int) -> tuple[tuple[int, int], int]:
        return self.size or size, self.frames or frames


@dataclass(slots=True, kw_only=True)
class Bench:
    """One run: the plan of the device, its roof once it is known, and where progress is told."""

    config: BenchConfig
    plan: DevicePlan
    tick: Callable[[], object]
    roofs: dict[torch.dtype, Roof]
    found: dict[str, list[Table]]

    def roof(self) -> Roof:
        """The roof in the networks' type, measured in this run before it is first asked for."""
        if self.plan.dtype not in self.roofs:
            table, roofs = roofline.table(self.plan, (self.plan.dtype,))
            self.found.setdefault("roofline", []).append(table)
            self.roofs |= roofs
            self.tick()
        return self.roofs[self.plan.dtype]


def _roofline(bench: Bench) -> list[Table]:
    """The networks' type and the two that cards like; nothing more where the roof is known already."""
    dtypes = dict.fromkeys((bench.plan.dtype, torch.float32, torch.bfloat16))
    if bench.plan.device.type == "cuda":
        dtypes[torch.float16] = None
    table, roofs = roofline.table(bench.plan, tuple(dtypes))
    bench.roofs |= roofs
    return [table]


def _cost(bench: Bench) -> list[Table]:
    config = bench.config
    sizes = (config.size,) if config.size else cost.SIZES
    # counted without weights, so the released shapes are no more work than small ones
    tables = cost.tables(
        networks=networks.FULL if config.networks == "puppet" else config.networks,
        sizes=sizes, frames=config.frames or 16, chunk=4, face=config.face or 128,
    )  # fmt: skip
    return list(tables)


def _unet(bench: Bench) -> list[Table]:
    size, frames = bench.config.shape((128, 128), 16)
    variants = bench.config.variants or tuple(way for way in speed.UNET_WAYS if way != "compiled")
    model, shape = networks.model_of(bench.config.networks), speed.Shape(size=size, frames=frames)
    return [speed.unet(model, bench.plan, shape, variants, bench.config.pairs, bench.roof(), bench.tick)]


def _vae(bench: Bench) -> list[Table]:
    size, frames = bench.config.shape((128, 128), 8)
    model, shape = networks.model_of(bench.config.networks), speed.Shape(size=size, frames=frames)
    variants = bench.config.variants or speed.VAE_WAYS
    return [speed.vae(model, bench.plan, shape, variants, bench.config.pairs, bench.roof(), bench.tick)]


def _sample(bench: Bench) -> list[Table]:
    size, frames = bench.config.shape((128, 128), 16)
    model = networks.model_of(bench.config.networks)
    steps, rounds = bench.config.steps or 4, bench.config.pairs
    return list(rendering.sample(model, bench.plan, size, frames, steps, rounds, bench.roof(), bench.tick))


def _long(bench: Bench) -> list[Table]:
    size, frames = bench.config.shape((64, 64), 64)
    model = networks.model_of(bench.config.networks)
    return list(rendering.long(model, bench.plan, size, frames, bench.config.steps or 1, bench.tick))


def _hjb(bench: Bench) -> list[Table]:
    config = bench.config
    size, frames = config.shape((512, 512), 4)
    trial = hjb.Trial(
        size=size, frames=frames, iterations=config.iterations, margin=config.margin,
        reach=min(hjb.Trial().reach, config.margin), face=config.face,
    )  # fmt: skip
    with networks.open_engine(networks.model_of(config.networks), bench.plan) as engine:
        return list(hjb.measure(engine, trial, config.pairs, bench.roof(), bench.tick))


def _train(bench: Bench) -> list[Table]:
    size, frames = bench.config.shape((128, 128), 8)
    model, shape = networks.model_of(bench.config.networks), training.Shape(size=size, frames=frames)
    given = (model, bench.plan, shape, bench.config.pairs, bench.roof(), bench.tick)
    size, frames = bench.config.shape((576, 1024), 16)
    released = training.counted_full(training.Shape(size=size, frames=frames), bench.tick)
    return [training.caching(*given), training.checkpointing(*given), released]


def _preprocess(bench: Bench) -> list[Table]:
    size, frames = bench.config.shape((256, 256), 32)
    name = "puppet" if bench.config.networks == networks.FULL else bench.config.networks
    clip = preprocessing.clip_of(bench.config.video, size, frames)
    tables = [preprocessing.measure(name, str(bench.plan.device), clip, bench.config.pairs, bench.tick)]
    if bench.config.video is None:
        tables.append(drawing.measure(bench.config.pairs, bench.tick))
    return tables


def _evaluate(bench: Bench) -> list[Table]:
    size, _ = bench.config.shape((256, 256), 0)
    model = "puppet" if bench.config.networks == networks.FULL else bench.config.networks
    return [
        evaluation.networks(bench.plan, size, bench.config.pairs, bench.tick, model=model),
        evaluation.pixels(size, bench.config.pairs, bench.tick),
        evaluation.kept(size, bench.tick),
    ]


def _compare(bench: Bench) -> list[Table]:
    config = bench.config
    assert config.against is not None
    size, frames = config.shape((128, 128), 16)
    compare.require_clone(config.against)
    model, shape = compare.model_to_compare(config.networks), speed.Shape(size=size, frames=frames)
    given = (config.against, config.python, config.pairs, bench.roof(), bench.tick)
    return [compare.measure(model, bench.plan, shape, *given)]


def _gate(bench: Bench) -> list[Table]:
    found = gate.counters(bench.tick)
    if bench.config.accept:
        gate.write(bench.config.baseline, found)
    return [gate.compare(found, gate.read(bench.config.baseline))]


BENCHES: dict[str, Callable[[Bench], list[Table]]] = {
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
    warning = busy()
    if warning and not set(config.names) <= _UNTIMED:
        reporter.warning(warning)
    found: dict[str, list[Table]] = {}
    for name in (name for name in BENCHES if name in config.names):
        with reporter.progress(None, name, "run") as bar:
            bench = Bench(config=config, plan=plan, tick=bar.update, roofs={}, found=found)
            found.setdefault(name, []).extend(BENCHES[name](bench))
    return BenchReport(command=command, environment=environment(plan.device), tables=found)


def check(report: BenchReport, baseline: Path | None) -> None:
    """Raise ``CheckFailed`` where the gate was among the benches and a counter changed."""
    for table in report.tables.get("gate", ()):
        gate.require(table, baseline or gate.BASELINE)
