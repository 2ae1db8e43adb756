"""Seams of long videos: our blends of windows against the reference implementation's, paired over drawn clips.

``python -m tools.bench.blending WORK [--clips N] [--frames T] [--steps S] [--page PAGE.md]`` renders figures of the
test split with their own motions, longer than a window. Each clip is rendered once per blend, with the same noise in
each frame. A border of a good model's windows adds about a thousandth of the change between two frames. The seam score
of one video at its own borders is therefore mostly about its movement. Two paired figures compare the blends instead,
on frames before rounding:

* ``seam score where upstream's windows meet``: the same places in every video.
* ``added change``: the difference from a control whose windows overlap as far as possible. The figure is the change of
  this difference from frame to frame, relative to the control's own change. It needs no borders.

The table also has the seam score at each blend's own borders, PSNR and limb errors. ``WORK/clips.jsonl`` gets one row
per clip. Run the same command to resume; ``--clips`` may grow. Exits with code 8 if a requirement fails, each judged by
the 95 % interval of the paired differences over clips.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from stableanimator_cli import catalogue
from stableanimator_cli.bench.harness import Interval, bootstrap_interval
from stableanimator_cli.bench.results import Table
from stableanimator_cli.bench.rows import ResumableRows, short_digests
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.diffusion.windows import Blend, WindowPlan, plan_windows
from stableanimator_cli.engine.decoder import to_uint8
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, sample
from stableanimator_cli.errors import SaError
from stableanimator_cli.metrics.seams import seam_score, window_borders
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import NETWORKS, ModelFolder
from tools.bench.pages import collect, column, mean_interval, page_section, write_section
from tools.bench.puppet_model import ROLES, OutputDetectors, open_clip, request_of, score_output
from tools.command import exit_code_of, report_error
from tools.puppet_training.heldout import SIZE

BLENDS: tuple[Blend, ...] = get_args(Blend)
UPSTREAM, OURS = BLENDS[0], BLENDS[1:]
FIGURES = {
    "seams": "seam score at its own borders",
    "there": "seam score where upstream's windows meet",
    "added": "added change, thousandths",
    "psnr": "PSNR, dB",
    "limbs": "limb error, fraction of the side",
}
TOLERANCES = {"psnr": 0.01, "limbs": 0.0005}
"""Invisible losses. With the same noise the blends differ so little that even a certain loss may be invisible."""
SECTION = "blending"  # of the page
_FIRST = 300_000  # scenes from here on; the ablations show the same people in other clips


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendingRun:
    """A comparison of ``clips`` clips of ``frames`` each.

    All settings are the ``model``'s own but ``steps``: the more steps, the further windows diverge. ``overlap`` None is
    the model's.
    """

    model: str = "puppet"
    clips: int = 12
    frames: int = 64
    steps: int = 12
    overlap: int | None = None
    seed: int = 0

    def plan(self, model: ModelFolder, blend: Blend | None) -> WindowPlan:
        """Windows of a blend; None is the control."""
        length = int(model.defaults.get("window", 8))
        overlap = int(model.defaults.get("overlap", 2)) if self.overlap is None else self.overlap
        if blend is None:
            return plan_windows(self.frames, length=length, overlap=max(overlap, length - 3))
        return plan_windows(self.frames, length=length, overlap=overlap, blend=blend)

    def header(self, model: ModelFolder) -> dict[str, Any]:
        """The settings that determine a row."""
        settings = {"frames": self.frames, "steps": self.steps, "overlap": self.overlap, "seed": self.seed}
        weights = short_digests(model, (*NETWORKS, "face"))
        return {**settings, "card": dict(model.defaults), "weights": weights}


Clip = dict[str, dict[str, Any]]  # by blend: ``FIGURES``, and ``windows``, the calls per step


def compare_blends(trial: BlendingRun, work: Path) -> Iterator[Clip]:
    """One row per clip, stored ones included. Raises ``SaError``."""
    model = catalogue.open_model(trial.model, ROLES)
    rows = ResumableRows(work / "clips.jsonl", trial.header(model))
    with Engine.open(model, DevicePlan.of(DeviceConfig(device="cpu"))) as engine:
        detectors = OutputDetectors(engine)

        def measure(number: int) -> Clip:
            scene = sample_scene("test", _FIRST + number, framing="portrait", size=SIZE, frames=trial.frames)
            return compare_clip(engine, detectors, trial, scene)

        yield from rows.extend_to(trial.clips, measure)


def compare_clip(engine: Engine, detectors: OutputDetectors, trial: BlendingRun, scene: Scene) -> Clip:
    """Render a clip with every blend and the control, and measure the figures."""
    clip = open_clip(scene, detectors)
    request = request_of(clip, clip.embedding, {**engine.model.defaults, "steps": trial.steps}, trial.seed)
    target = changes(torch.from_numpy(np.stack([frame.image for frame in scene.clip()])).float() / 255)
    control = pixels(engine, replace(request, plan=trial.plan(engine.model, None)))
    upstream_borders = borders_of(trial.plan(engine.model, UPSTREAM))
    rows: Clip = {}
    for blend in BLENDS:
        plan = trial.plan(engine.model, blend)
        output = pixels(engine, replace(request, plan=plan))
        steps = changes(output)
        scores, _ = score_output(list(to_uint8(2 * output - 1)), clip, detectors)
        row = {
            "windows": len(plan),
            "seams": seam_score(steps, borders_of(plan), target).score,
            "there": seam_score(steps, upstream_borders, target).score,
            "added": 1000 * added_change(output, control),
            "psnr": scores["psnr"],
            "limbs": float(np.median(scores["limbs"])) if scores["limbs"] else np.nan,
        }
        rows[blend] = {name: float(value) if np.isfinite(value) else None for name, value in row.items()}
    return rows


def borders_of(plan: WindowPlan) -> list[int]:
    """The frames at which windows meet; none for shifted windows."""
    return [] if plan.shifted else window_borders([window.frames for window in plan])


def pixels(engine: Engine, request: RenderRequest) -> Tensor:
    """A rendering before rounding, float32[t,3,h,w] in 0..1, decoded in one chunk so that only windows have borders."""
    latents = sample(engine, request, Timings())
    with engine.resident("vae"), torch.no_grad():
        return (engine.decoder.pixels(latents).float().clamp(-1, 1) + 1) / 2


def changes(frames: Tensor) -> np.ndarray:
    """Mean absolute difference of neighbouring frames as in ``metrics.flicker.Changes``: float64[t-1]."""
    return (frames[1:] - frames[:-1]).abs().double().flatten(1).mean(1).numpy()


def added_change(frames: Tensor, control: Tensor) -> float:
    """Change of the difference from the control, relative to the control's own change."""
    return float(changes(frames - control).mean() / changes(control).mean())


def paired_differences(clips: Sequence[Clip], blend: str, figure: str) -> np.ndarray:
    """A blend's figure minus upstream's, by clip; NaN for a clip that lacks one."""
    return column(clips, blend, figure) - column(clips, UPSTREAM, figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A requirement on the paired difference of one figure. ``holds`` if its interval meets it."""

    blend: str
    figure: str
    required: str
    difference: Interval
    holds: bool


def check_requirements(clips: Sequence[Clip]) -> list[Requirement]:
    """Seams must certainly improve, and no other figure may certainly get worse."""
    checked = []
    for blend in OURS:
        for figure in ("there", "added", "psnr", "limbs"):
            paired = paired_differences(clips, blend, figure)
            difference, tolerance = bootstrap_interval(paired[np.isfinite(paired)], np.mean), TOLERANCES.get(figure)
            if tolerance is None:
                required, holds = "below 0", difference.high < 0
            elif figure == "psnr":
                required, holds = f"no loss of {tolerance:g} or more", difference.high > -tolerance
            else:
                required, holds = f"no gain of {tolerance:g} or more", difference.low < tolerance
            checked.append(
                Requirement(blend=blend, figure=figure, required=required, difference=difference, holds=holds)
            )
    return checked


def tables(clips: Sequence[Clip], trial: BlendingRun) -> tuple[Table, Table]:
    """Means per blend, and the paired differences with their requirements."""
    rows = []
    for blend in BLENDS:
        row: dict[str, Any] = {"blend": blend, "windows per step": clips[0][blend]["windows"]}
        row |= {title: mean_interval(column(clips, blend, figure)) for figure, title in FIGURES.items()}
        rows.append(row)
    requirements = []
    for requirement in check_requirements(clips):
        paired = paired_differences(clips, requirement.blend, requirement.figure)
        requirements.append(
            {
                "blend": requirement.blend,
                "figure": FIGURES[requirement.figure],
                f"difference from {UPSTREAM}": requirement.difference,
                "clips lower": f"{int((paired < 0).sum())} of {int(np.isfinite(paired).sum())}",
                "required": requirement.required,
                "holds": requirement.holds,
            }
        )
    width, height = SIZE
    note = (
        f"{len(clips)} clips of {trial.frames} frames of {width}x{height}, model {trial.model}, {trial.steps} steps, "
        "the same noise by frame, decoded in one chunk; means and 95 % intervals over clips. A seam score of 1 is an "
        "invisible border. Each blend is scored at its own borders; shifted windows have none. The control overlaps as "
        "far as possible."
    )
    return (
        Table(title="Windows by blend", rows=rows, note=note),
        Table(title="Requirements", rows=requirements, note="For the paired differences, by their intervals."),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = BlendingRun()
    parser = argparse.ArgumentParser(prog="python -m tools.bench.blending", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the rows")
    parser.add_argument("--model", default=default.model, help="catalogue name or folder")
    parser.add_argument("--clips", type=int, default=default.clips)
    parser.add_argument("--frames", type=int, default=default.frames, help="per clip, more than a window has")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--overlap", type=int, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the sampling")
    parser.add_argument("--page", type=Path, help="also write the tables into a Markdown page")
    options = parser.parse_args(arguments)
    if options.clips < 1:
        parser.error("--clips: expected 1 clip or more")
    trial = BlendingRun(
        model=options.model, clips=options.clips, frames=options.frames, steps=options.steps, overlap=options.overlap,
        seed=options.seed,
    )  # fmt: skip
    try:
        clips = collect(
            compare_blends(trial, options.work),
            lambda clip: "added change " + "; ".join(f"{blend} {clip[blend]['added']:.2f}" for blend in BLENDS),
        )
        text = "\n\n".join(table.markdown() for table in tables(clips, trial))
        section = page_section("Seams of long videos", "tools.bench.blending", arguments, text)
        write_section(options.page, SECTION, section)
    except SaError as error:
        return report_error(error)
    sys.stdout.write(f"{text}\n")
    return 0 if all(requirement.holds for requirement in check_requirements(clips)) else 8


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
