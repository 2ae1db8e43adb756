"""Quality losses of approximate speed on held-out clips: cached deep features, and guidance on an interval.

``python -m tools.bench.approximations WORK [--count N] [--steps S] [--cache-features 2,3] [--layers 1,2]
[--guidance G] [--guidance-interval LO:HI,...] [--page PAGE.md]`` renders the held-out clips in each
setting and on the exact path. The exact path has the same seed, and for intervals the same guidance in all steps.

The tables hold paired differences over clips with bootstrap intervals: PSNR against the drawn truth, limb errors, and
the judge's similarity of faces. They also hold the PSNR against the frames of the exact path. Nothing is timed: calls
and FLOPs are counted. ``WORK/clips.jsonl`` gets one row per clip. Run the same command to resume; ``--count`` may grow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.bench.cost import CachedCost, cached_cost
from stableanimator_cli.bench.networks import FULL, open_bench_model
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.rows import ResumableRows, short_digests
from stableanimator_cli.config.animate import DeviceConfig, SamplingConfig
from stableanimator_cli.config.parse import Guidance, parse_cache_interval, parse_interval
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import Timings, render
from stableanimator_cli.errors import SaError
from stableanimator_cli.records import NETWORKS, ModelFolder
from tools.bench.pages import collect, column, mean_interval, page_section, write_section
from tools.bench.puppet_decoder import psnr
from tools.bench.puppet_model import (
    ROLES,
    OutputDetectors,
    open_clip,
    request_of,
    score_output,
)
from tools.command import exit_code_of, positive, report_error
from tools.puppet_training.heldout import SIZE, open_scene, read_list

PLAIN, GUIDED = "plain", "guided"
SECTION = "approximations"  # of the page
FIGURES = {"psnr": "dB to the truth", "limbs": "limb error, fraction of the side", "own": "similarity of faces"}
RELEASED = ((576, 1024), 16)  # size and frames for the counts of the released shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A sampling setting: changes of ``SamplingConfig``, and the exact setting to compare with (None: it is exact)."""

    name: str
    changes: Mapping[str, Any]
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproximationRun:
    """A comparison of ``count`` clips at ``steps``.

    ``features`` (intervals of steps) by ``layers`` are rendered at the model's own guidance, ``intervals`` of noise
    levels at ``guidance``.
    """

    model: str = "puppet"
    count: int = 50
    steps: int = 12
    seed: int = 0
    features: tuple[int, ...] = (2, 3)
    layers: tuple[int, ...] = (1, 2)
    guidance: float = 2.0
    intervals: tuple[Guidance, ...] = ((0.5, 50.0),)

    def settings(self) -> list[Setting]:
        """All settings; exact ones come before those that are compared with them."""
        settings = [Setting(name=PLAIN, changes={})]
        for every in self.features:
            for layers in self.layers:
                default = layers == SamplingConfig().cache_layers
                name = f"--cache-features {every}" + ("" if default else f", cache_layers {layers}")
                changes = {"cache_features": every, "cache_layers": layers}
                settings.append(Setting(name=name, changes=changes, against=PLAIN))
        if self.intervals:
            guided = {"guidance": (self.guidance, self.guidance)}
            settings.append(Setting(name=GUIDED, changes=guided))
            for low, high in self.intervals:
                name = f"--guidance {self.guidance:g} --guidance-interval {low:g}:{high:g}"
                changes = guided | {"guidance_interval": (low, high)}
                settings.append(Setting(name=name, changes=changes, against=GUIDED))
        return settings

    def header(self, model: ModelFolder) -> dict[str, Any]:
        """The settings that determine a row."""
        weights = short_digests(model, (*NETWORKS, "face", "judge"))
        settings = {"steps": self.steps, "seed": self.seed, "settings": [s.name for s in self.settings()]}
        return {**settings, "card": dict(model.defaults), "weights": weights}


Clip = dict[str, dict[str, Any]]  # by setting: ``FIGURES``, ``near``, ``unet`` and ``shallow`` calls


def compare_settings(trial: ApproximationRun, work: Path) -> Iterator[Clip]:
    """One row per clip, stored ones included. Raises ``SaError``."""
    model = catalogue.open_model(trial.model, ROLES)
    rows = ResumableRows(work / "clips.jsonl", trial.header(model))
    entries = read_list()
    with Engine.open(model, DevicePlan.of(DeviceConfig(device="cpu"))) as engine:
        detectors = OutputDetectors(engine)

        def measure(number: int) -> Clip:
            return compare_clip(engine, detectors, trial, entries[number])

        yield from rows.extend_to(min(trial.count, len(entries)), measure)


def compare_clip(engine: Engine, detectors: OutputDetectors, trial: ApproximationRun, entry: dict[str, int]) -> Clip:
    """Render a clip of the list in every setting, and measure the figures."""
    clip = open_clip(open_scene(entry), detectors)
    request = request_of(clip, clip.embedding, {**engine.model.defaults, "steps": trial.steps}, trial.seed)
    exact: dict[str, np.ndarray] = {}
    rows: Clip = {}
    for setting in trial.settings():
        changed = replace(request, sampling=replace(request.sampling, **setting.changes))
        engine.calls.clear()
        frames = np.stack(list(render(engine, changed, Timings())))
        row, _ = score_output(list(frames), clip, detectors)
        row["limbs"] = float(np.median(row["limbs"])) if row["limbs"] else None
        row["near"] = None
        if setting.against is None:
            exact[setting.name] = frames
        else:
            row["near"] = psnr(frames.astype(float) - exact[setting.against])
        rows[setting.name] = row | {"unet": engine.calls["unet"], "shallow": engine.calls["unet_shallow"]}
    return rows


def losses(clips: Sequence[Clip], trial: ApproximationRun, cost: CachedCost) -> Table:
    """One row per setting: its savings, and its figures with their differences from the exact path."""
    settings = {setting.name: setting for setting in trial.settings()}

    def flops(setting: Setting) -> float:
        """In full calls."""
        row = clips[0][setting.name]
        ratio = cost.ratio(setting.changes["cache_layers"]) if row["shallow"] else 0.0
        return row["unet"] - row["shallow"] + ratio * row["shallow"]

    rows = []
    for setting in settings.values():
        first = clips[0][setting.name]
        row: dict[str, Any] = {
            "setting": setting.name,
            "UNet calls": first["unet"],
            "of them shallow": first["shallow"],
        }
        against = None if setting.against is None else settings[setting.against]
        row["UNet FLOPs relative to the exact path"] = None if against is None else flops(setting) / flops(against)
        for figure, title in FIGURES.items():
            values = column(clips, setting.name, figure)
            row[title] = mean_interval(values)
            row[f"{title}: loss"] = None
            if against is not None:
                gain = values - column(clips, against.name, figure)
                row[f"{title}: loss"] = mean_interval(gain if figure == "limbs" else -gain)
        row["dB to the exact path"] = mean_interval(column(clips, setting.name, "near"))
        rows.append(row)
    note = (
        f"{len(clips)} held-out clips of 8 frames of {SIZE[0]}x{SIZE[1]}, model {trial.model}, {trial.steps} steps "
        f"(more than on its card: with few steps there is little to reuse), seed {trial.seed}; means and 95 % "
        f"intervals over clips. Losses are paired by clip and above 0 if the approximate path is worse. `{PLAIN}` is "
        f"the exact path at the model's own guidance, `{GUIDED}` at {trial.guidance:g}. Similarity is the judge's."
    )
    return Table(title="Quality loss", rows=rows, note=note)


def savings(layers: Sequence[int]) -> Table:
    """FLOPs of shallow calls of the released shapes, and bytes cached for them."""
    size, frames = RELEASED
    counted = cached_cost(open_bench_model(FULL), size, frames, torch.bfloat16, layers)
    rows = []
    for count in layers:
        ratio = counted.ratio(count)
        row: dict[str, Any] = {"sampling.cache_layers": count, "FLOPs relative to a full call": ratio}
        row |= {f"times fewer FLOPs, N = {every}": every / (1 + (every - 1) * ratio) for every in (2, 3)}
        row["MiB cached per window and branch"] = counted.layers[count][1] / 2**20
        rows.append(row)
    note = f"{frames} frames of {size[0]}x{size[1]}, bfloat16; counted, not computed."
    return Table(title="Savings with the released shapes", rows=rows, note=note)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = ApproximationRun()
    parser = argparse.ArgumentParser(prog="python -m tools.bench.approximations", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the rows")
    parser.add_argument("--model", default=default.model, help="catalogue name or folder")
    parser.add_argument("--count", type=int, default=default.count, help="clips, from the start of the list")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--seed", type=int, default=default.seed, help="of the sampling")
    parser.add_argument("--cache-features", default="2,3", help="intervals of steps, separated by commas; '' for none")
    parser.add_argument("--layers", type=_layers, default="1,2", help="layers always computed, separated by commas")
    parser.add_argument("--guidance", type=float, default=default.guidance, help="for intervals, more than 1")
    parser.add_argument("--guidance-interval", default="0.5:50", help="LO:HI, separated by commas; '' for none")
    parser.add_argument("--page", type=Path, help="also write the tables into a Markdown page")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count: expected 1 clip or more")
    try:
        trial = ApproximationRun(
            model=options.model,
            count=options.count,
            steps=options.steps,
            seed=options.seed,
            features=tuple(parse_cache_interval(item) for item in _split(options.cache_features)),
            layers=options.layers,
            guidance=options.guidance,
            intervals=tuple(filter(None, map(parse_interval, _split(options.guidance_interval)))),
        )
        own = cached_cost(catalogue.open_model(trial.model), SIZE, 8, torch.float32, trial.layers)
        clips = collect(
            compare_settings(trial, options.work),
            lambda clip: "; ".join(f"{name} {row['psnr']:.2f} dB" for name, row in clip.items()),
        )
        tables = losses(clips, trial, own), savings(trial.layers)
        text = "\n\n".join(table.markdown() for table in tables)
        section = page_section("Approximate speed and its loss", "tools.bench.approximations", arguments, text)
        write_section(options.page, SECTION, section)
    except SaError as error:
        return report_error(error)
    sys.stdout.write(f"{text}\n")
    return 0


def _split(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


def _layers(text: str) -> tuple[int, ...]:
    """The type of ``--layers``."""
    return tuple(positive(item) for item in _split(text))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
