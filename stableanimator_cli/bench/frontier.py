"""``sa bench frontier``: which fewer network calls lose nothing that can be seen, on videos with a ground truth.

Three rounds. The first renders a few videos with every schedule, solver and number of steps. The second varies guidance
and cached features of the best of them. The third measures what is left on all other videos, beside 25 steps with
guidance in each (``BASELINE``), the model's own settings and ``--preset quick``. Losses are paired by video. A setting
is without a visible loss if no 95 % interval of its figures excludes 0 on the worse side, and no figure is lost, as a
face that is not found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import __version__
from stableanimator_cli.animate.run import resolve_config
from stableanimator_cli.api import Animator
from stableanimator_cli.bench import frontier_plot
from stableanimator_cli.bench.context import BenchRun
from stableanimator_cli.bench.cost import cached_cost
from stableanimator_cli.bench.frontier_cases import FIGURES, LOWER_IS_BETTER, FrontierCase, open_cases
from stableanimator_cli.bench.harness import Interval
from stableanimator_cli.bench.networks import FULL
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.rows import ResumableRows, Row, short_digests
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.parse import dump_size
from stableanimator_cli.config.refine import PRESETS
from stableanimator_cli.engine.denoiser_calls import denoiser_calls
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.files import locked_output
from stableanimator_cli.metrics.paired import bca_interval
from stableanimator_cli.records import NETWORKS, ModelFolder

STEPS = (4, 5, 6, 8)
SCHEDULES = ("karras", "ays")
SAMPLERS = ("euler", "dpmpp_2m")
INTERVALS = ("0.3:200", "10:200", "0.3:5", "off")
"""The first is that of the first round: without the highest level, which is noise alone, and the lowest ones."""
TOLERANCE = {"face": 0.2, "sharpness": 0.03, "identity": 0.01, "keypoints": 0.003, "frame": 0.2, "gradients": 0.005}
"""Losses at which the first two rounds, whose few videos have wide intervals, no longer count a setting as good."""
SURVIVORS = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """Options of ``sa animate`` by name."""

    flags: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, **flags: Any) -> Setting:
        return cls(tuple(flags.items()))

    def varied(self, **flags: Any) -> Setting:
        return Setting(tuple({**dict(self.flags), **flags}.items()))

    @property
    def options(self) -> dict[str, Any]:
        """With the preset without face optimisation, unless they name one."""
        return {"preset": "fast", **dict(self.flags)}

    @property
    def name(self) -> str:
        shown = (f"--{name.replace('_', '-')} {value}" for name, value in self.flags)
        return " ".join(shown) or "the model's own"


BASELINE = Setting.of(steps=25, guidance_interval="off", schedule="karras", sampler="euler")
OWN = Setting.of()
QUICK = Setting.of(**{name: PRESETS["quick"][name] for name in ("steps", "schedule", "sampler", "guidance_interval")})


@dataclass(frozen=True, slots=True)
class Cost:
    """Network ``calls`` of a video of one window, how many of them are ``shallow``, and ``full_calls``: as many calls
    of the whole network have the same FLOPs."""

    calls: int
    shallow: int
    full_calls: float


class Frontier:
    """Renders cases in settings, and stores a row of figures for each, so that a run can be resumed."""

    def __init__(
        self, animator: Animator, model: ModelFolder, work: Path, tick: Callable[[], object], plan: DevicePlan
    ) -> None:
        self._animator, self._model, self._tick = animator, model, tick
        header = {"model": model.name, "weights": short_digests(model, NETWORKS), "version": __version__}
        header |= {"card": dict(model.defaults), "device": plan.device.type, "dtype": str(plan.dtype)}
        self._file = ResumableRows(work / "rows.jsonl", header)
        self._rows = {(row["setting"], row["case"]): row for row in self._file.rows}
        self._shallow: dict[int, float] = {}

    def config(self, setting: Setting) -> AnimateConfig:
        """The settings of a rendering, of the model's size."""
        paths = {"reference": Path("reference"), "motion": Path("motion"), "output": Path("output.mp4")}
        return resolve_config({"model": str(self._model.path), **paths, **setting.options}, None)[0]

    def cost(self, setting: Setting) -> Cost:
        config = self.config(setting)
        calls = denoiser_calls(config.sampling)
        shallow = sum(1 + call.guided for call in calls if not call.refresh)
        total = sum(1 + call.guided for call in calls)
        ratio = self._shallow_ratio(config) if shallow else 1.0
        return Cost(total, shallow, total - shallow + ratio * shallow)

    def rows(self, setting: Setting, cases: Sequence[FrontierCase]) -> list[Row]:
        """One row per case. Missing ones are rendered."""
        found = []
        for case in cases:
            row = self._rows.get((setting.name, case.key))
            if row is None:
                reference, motion = case.case.reference, case.case.motion
                frames = list(self._animator.frames(reference, motion, size=dump_size(case.size), **setting.options))
                row = {"setting": setting.name, "case": case.key, **case.score(frames)}
                self._file.append(row)
                self._rows[setting.name, case.key] = row
                self._tick()
            found.append({name: math.nan if value is None else value for name, value in row.items()})
        return found

    def losses(self, setting: Setting, against: Setting, cases: Sequence[FrontierCase]) -> dict[str, np.ndarray]:
        """By figure, float64[n] of cases: how much worse than ``against``. Infinite where only ``against`` shows what
        is measured, NaN where neither does, or where a row is of a version that did not measure it."""
        pairs = list(zip(self.rows(setting, cases), self.rows(against, cases), strict=True))
        losses = {}
        for name in FIGURES:
            values = [(a.get(name, math.nan), b.get(name, math.nan)) for a, b in pairs]
            own, other = np.array(values, np.float64).T
            measured = np.array([name in a for a, _ in pairs])
            loss = own - other if name in LOWER_IS_BETTER else other - own
            losses[name] = np.where(measured & np.isnan(own) & np.isfinite(other), np.inf, loss)
        return losses

    def _shallow_ratio(self, config: AnimateConfig) -> float:
        layers = config.sampling.cache_layers
        if layers not in self._shallow:
            import torch

            counted = cached_cost(self._model, config.size, config.windows.length, torch.float32, (layers,))
            self._shallow[layers] = counted.ratio(layers)
        return self._shallow[layers]


def first_round() -> list[Setting]:
    """Every schedule, solver and number of steps, guided where it changes something."""
    return [
        Setting.of(steps=steps, schedule=schedule, sampler=sampler, guidance_interval=INTERVALS[0])
        for steps, schedule, sampler in itertools.product(STEPS, SCHEDULES, SAMPLERS)
    ]


def second_round(best: Iterable[Setting]) -> list[Setting]:
    """Other intervals of guidance, and cached deep features."""
    changes = [*({"guidance_interval": interval} for interval in INTERVALS[1:]), {"cache_features": 2}]
    return [setting.varied(**change) for setting in best for change in changes]


def survivors(frontier: Frontier, settings: Sequence[Setting], cases: Sequence[FrontierCase]) -> list[Setting]:
    """The cheapest settings whose mean losses are within ``TOLERANCE``, then those that come nearest to it."""

    def excess(setting: Setting) -> float:
        losses = frontier.losses(setting, BASELINE, cases)
        shown = ((name, values[~np.isnan(values)]) for name, values in losses.items())
        return max(float(values.mean()) / TOLERANCE[name] for name, values in shown if len(values))

    ranked = sorted(settings, key=lambda setting: (max(1.0, excess(setting)), frontier.cost(setting).full_calls))
    return ranked[:SURVIVORS]


def measure_frontier(bench: BenchRun) -> list[Table]:
    """Search, then measure; see the module."""
    config = bench.config
    if config.plot is not None:
        frontier_plot.check(config.plot)
    if config.networks == FULL:
        raise ConfigError("--networks", FULL, "a model with weights: a name of the catalogue, or a folder")
    model = bench.model()
    work, searched_count = config.value("work"), config.value("search")
    with (
        locked_output(work, "sa bench frontier", folder=True),
        Animator(model=str(model.path), device=config.device, dtype=config.dtype) as animator,
    ):
        frontier = Frontier(animator, model, work, bench.tick, DevicePlan.of(config.device_config))
        size = config.size or frontier.config(OWN).size
        cases = open_cases(
            model, bench=config.value("bench"), data=config.data, count=searched_count + config.value("clips"),
            work=work / "cases", size=size, device=config.device,
        )  # fmt: skip
        trial, rest = cases[:searched_count], cases[searched_count:]
        best = survivors(frontier, first_round(), trial)
        searched = list(dict.fromkeys([*first_round(), *second_round(best)]))
        chosen = survivors(frontier, searched, trial)
        search = table_of(frontier, searched, trial, "Search")
        measured = table_of(frontier, list(dict.fromkeys([BASELINE, OWN, QUICK, *chosen])), rest, "Measured")
    if config.plot is not None:
        frontier_plot.write(config.plot, measured, search)
    return [measured, search]


def table_of(frontier: Frontier, settings: Sequence[Setting], cases: Sequence[FrontierCase], title: str) -> Table:
    """Settings by their cost, with figures and losses against ``BASELINE``."""
    base = frontier.cost(BASELINE).full_calls
    rows = [_row(frontier, setting, cases, base) for setting in settings]
    rows.sort(key=lambda row: -row["full calls"])
    note = (
        f"{len(cases)} videos, paired with `{BASELINE.name}`: losses are above 0 if the setting is worse, with 95 % "
        "BCa intervals over videos from five on. Calls are per window; a full call has the FLOPs of the whole network. "
        "Sharpness is the RMS of the luma's Laplacian in the face over the truth's, at most 1. GMSD: deviation of the "
        "similarity of gradients (Xue et al. 2014), 0 for equal frames. A face that only the setting loses is a loss "
        "that is seen, and its video has no part in the mean."
    )
    return Table(title=f"{title}: calls against quality", rows=rows, note=note)


def _row(frontier: Frontier, setting: Setting, cases: Sequence[FrontierCase], base: float) -> dict[str, Any]:
    cost = frontier.cost(setting)
    row: dict[str, Any] = {
        "setting": setting.name, "calls": cost.calls, "of them shallow": cost.shallow, "full calls": cost.full_calls,
        "times fewer FLOPs": base / cost.full_calls,
    }  # fmt: skip
    rows, losses = frontier.rows(setting, cases), frontier.losses(setting, BASELINE, cases)
    seen = False
    for name, title in FIGURES.items():
        row[title] = _mean(np.array([one.get(name, math.nan) for one in rows]))
        loss = _interval(losses[name])
        row[f"{title}: loss"] = loss
        seen |= (loss is not None and loss.low > 0) or bool(np.isposinf(losses[name]).any())
    row["loss seen"] = None if setting == BASELINE or len(cases) < 5 else seen
    return row


def _interval(values: np.ndarray) -> Interval | None:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    found = bca_interval(finite)
    low, high = (math.nan, math.nan) if found is None else found
    return Interval(float(finite.mean()), low, high)


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
