"""Do windows show less with our blends than with the reference implementation's? Paired over drawn clips.

``python -m tools.bench.blending WORK [--clips N] [--frames T] [--steps S] [--page PAGE.md]`` renders
figures of the test split after their own movements, longer than a window, once with each blend and otherwise alike: the
same noise, frame by frame. Two windows of a good model say nearly the same: what a border adds to the change from one
frame to the next is a thousandth of it, and ``evaluate``'s seam score of one video, at its own borders, is mostly about
what else happens there. What blends do is seen only where everything else is the same, and before pixels are rounded:

* ``seams where upstream's windows meet``: the same score, at the same places in every video. Windows that move meet
  everywhere a little, so that these places are as good as any other for them.
* ``added change``: each clip is rendered once more with windows that overlap as far as they can, the control; how much
  the difference from it changes from frame to frame, as a share of the control's own change. It asks for no borders.

Told beside these: seams at each blend's own borders, PSNR and how far limbs are off. A row a clip goes into
``WORK/clips.jsonl``; run the same command to resume, and more clips may be asked for later. Leaves with 8
where a mark is missed, each by the 95 % interval of the paired differences over clips.
"""

from __future__ import annotations

import argparse
import json
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
from stableanimator_cli.bench.results import Table, environment, page_heading, update_page
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.diffusion.windows import Blend, WindowPlan, plan_windows
from stableanimator_cli.engine.decoder import to_uint8
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import Callbacks, RenderRequest, Timings, sample
from stableanimator_cli.errors import SaError
from stableanimator_cli.files import sha256_of
from stableanimator_cli.metrics.seams import seam_score, window_borders
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import NETWORKS, ModelFolder
from tools.bench.puppet_model import SMALL, Reader, looked_at, request_of, subject_of
from tools.bench.resumable import as_typed, read_rows, refused

WAYS: tuple[Blend, ...] = get_args(Blend)
THEIRS, OURS = WAYS[0], WAYS[1:]
FIGURES = {
    "seams": "seam score at its own borders",
    "there": "seam score where upstream's windows meet",
    "added": "added change, thousandths",
    "psnr": "PSNR, dB",
    "limbs": "limb error, fraction of the side",
}
ALLOWED = {"psnr": 0.01, "limbs": 0.0005}
"""Losses that are invisible: with the same noise, blends differ by so little that a certain loss may be no loss."""
PART = "blending"  # of the page
_FIRST = 300_000  # scenes from here on: no other list of figures looks at them


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendingRun:
    """What is rendered: ``clips`` of ``frames`` each, at the ``model``'s own settings but for ``steps``: the more steps
    there are, the further windows part. ``overlap`` None is the model's."""

    model: str = "puppet"
    clips: int = 12
    frames: int = 64
    steps: int = 12
    overlap: int | None = None
    seed: int = 0

    def plan(self, model: ModelFolder, way: Blend | None) -> WindowPlan:
        """Windows of a way, None the control's."""
        length = int(model.defaults.get("window", 8))
        overlap = int(model.defaults.get("overlap", 2)) if self.overlap is None else self.overlap
        if way is None:
            return plan_windows(self.frames, length=length, overlap=max(overlap, length - 3))
        return plan_windows(self.frames, length=length, overlap=overlap, blend=way)

    def header(self, model: ModelFolder) -> dict[str, Any]:
        """What other rows would come of."""
        weights = {role: sha256_of(model.files[role])[:12] for role in (*NETWORKS, "face")}
        asked = {"frames": self.frames, "steps": self.steps, "overlap": self.overlap, "seed": self.seed}
        return {**asked, "weights": weights}


Clip = dict[str, dict[str, float | None]]  # of one clip by way: ``FIGURES`` and ``windows``, the calls of a step


def compare_blends(trial: BlendingRun, work: Path) -> Iterator[Clip]:
    """Clip by clip, those of earlier runs as they were recorded. Raises ``SaError``."""
    model = catalogue.open_model(trial.model, (*NETWORKS, "face", "judge", "person_detector", "pose_detector"))
    header, path = trial.header(model), work / "clips.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    known = read_rows(path, header)[: trial.clips]
    yield from known
    with Engine.open(model, DevicePlan.of(DeviceConfig(device="cpu"))) as engine, path.open("a", encoding="utf-8") as f:
        if not path.stat().st_size:
            f.write(json.dumps(header) + "\n")
        reader = Reader(engine)
        for number in range(len(known), trial.clips):
            scene = sample_scene("test", _FIRST + number, framing="half", size=SMALL, frames=trial.frames)
            clip = compared(engine, reader, trial, scene)
            f.write(json.dumps(clip) + "\n")
            f.flush()
            yield clip


def compared(engine: Engine, reader: Reader, trial: BlendingRun, scene: Scene) -> Clip:
    """The figures of one clip."""
    subject = subject_of(scene, reader)
    request = request_of(subject, subject.vector, {**engine.model.defaults, "steps": trial.steps}, trial.seed)
    truth = changes(torch.from_numpy(np.stack([frame.image for frame in scene.clip()])).float() / 255)
    control = pixels(engine, replace(request, plan=trial.plan(engine.model, None)))
    there = borders_of(trial.plan(engine.model, THEIRS))
    clip: Clip = {}
    for way in WAYS:
        plan = trial.plan(engine.model, way)
        made = pixels(engine, replace(request, plan=plan))
        steps = changes(made)
        seen, _ = looked_at(list(to_uint8(2 * made - 1)), subject, reader)
        row = {
            "windows": len(plan),
            "seams": seam_score(steps, borders_of(plan), truth).score,
            "there": seam_score(steps, there, truth).score,
            "added": 1000 * added_change(made, control),
            "psnr": seen["psnr"],
            "limbs": float(np.median(seen["limbs"])) if seen["limbs"] else np.nan,
        }
        clip[way] = {name: float(value) if np.isfinite(value) else None for name, value in row.items()}
    return clip


def borders_of(plan: WindowPlan) -> list[int]:
    """Where windows meet; windows that move have no such places."""
    return [] if plan.shifted else window_borders([window.frames for window in plan])


def pixels(engine: Engine, request: RenderRequest) -> Tensor:
    """A rendering before it is rounded, float32[t,3,h,w] in 0..1; decoded as one chunk, so that only windows have
    borders."""
    latents = sample(engine, request, Timings(), Callbacks())
    with engine.resident("vae"), torch.no_grad():
        return (engine.decoder.pixels(latents).float().clamp(-1, 1) + 1) / 2


def changes(frames: Tensor) -> np.ndarray:
    """Mean absolute difference of neighbours, as ``metrics.flicker.Changes`` has it: float64[t-1]."""
    return (frames[1:] - frames[:-1]).abs().double().flatten(1).mean(1).numpy()


def added_change(frames: Tensor, control: Tensor) -> float:
    """How much the difference of two videos changes from frame to frame, over how much the second does."""
    return float(changes(frames - control).mean() / changes(control).mean())


def column(clips: Sequence[Clip], way: str, figure: str) -> np.ndarray:
    """A figure by clip, NaN where a clip has none."""
    return np.array([np.nan if (value := clip[way][figure]) is None else value for clip in clips], np.float64)


def difference(clips: Sequence[Clip], way: str, figure: str) -> Interval:
    """A way's minus upstream's, clip by clip, over the clips that have both: the mean and its interval."""
    apart = column(clips, way, figure) - column(clips, THEIRS, figure)
    return bootstrap_interval(apart[np.isfinite(apart)], np.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is asked of the paired difference of one figure, and whether its interval says so."""

    way: str
    figure: str
    wanted: str
    difference: Interval
    holds: bool


def marks(clips: Sequence[Clip]) -> list[Mark]:
    """Windows must show less for certain; nothing else may be worse for certain."""
    found = []
    for way in OURS:
        for figure in ("there", "added", "psnr", "limbs"):
            apart, most = difference(clips, way, figure), ALLOWED.get(figure)
            if most is None:
                wanted, holds = "below 0", apart.high < 0
            elif figure == "psnr":
                wanted, holds = f"no loss of {most:g} or more", apart.high > -most
            else:
                wanted, holds = f"no gain of {most:g} or more", apart.low < most
            found.append(Mark(way=way, figure=figure, wanted=wanted, difference=apart, holds=holds))
    return found


def tables(clips: Sequence[Clip], trial: BlendingRun) -> tuple[Table, Table]:
    """Means of each way, and the paired differences with what is asked of them."""
    rows = []
    for way in WAYS:
        row: dict[str, Any] = {"blend": way, "windows per step": clips[0][way]["windows"]}
        for figure, title in FIGURES.items():
            one = column(clips, way, figure)
            row[title] = bootstrap_interval(one[np.isfinite(one)], np.mean) if np.isfinite(one).any() else None
        rows.append(row)
    asked = []
    for mark in marks(clips):
        apart = column(clips, mark.way, mark.figure) - column(clips, THEIRS, mark.figure)
        asked.append(
            {
                "blend": mark.way,
                "figure": FIGURES[mark.figure],
                f"difference from {THEIRS}": mark.difference,
                "clips lower": f"{int((apart < 0).sum())} of {int(np.isfinite(apart).sum())}",
                "required": mark.wanted,
                "holds": mark.holds,
            }
        )
    width, height = SMALL
    note = (
        f"{len(clips)} clips of {trial.frames} frames of {width}x{height}, model {trial.model}, {trial.steps} steps, "
        "the same noise by frame, decoded in one chunk; means and 95 % intervals over clips. A seam score of 1 is an "
        "invisible border. Each blend is scored at its own borders; shifted windows have none. The control overlaps as "
        "far as possible."
    )
    return (
        Table(title="Windows by blend", rows=rows, note=note),
        Table(title="Requirements", rows=asked, note="For the paired differences, by their intervals."),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    usual = BlendingRun()
    parser = argparse.ArgumentParser(prog="python -m tools.bench.blending", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the figures")
    parser.add_argument("--model", default=usual.model, help="catalogue name or folder")
    parser.add_argument("--clips", type=int, default=usual.clips)
    parser.add_argument("--frames", type=int, default=usual.frames, help="of a clip, more than a window has")
    parser.add_argument("--steps", type=int, default=usual.steps)
    parser.add_argument("--overlap", type=int, help="the model's own unless given")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the sampling")
    parser.add_argument("--page", type=Path, help="also write the tables into a Markdown page")
    options = parser.parse_args(words)
    if options.clips < 1:
        parser.error("--clips: expected 1 clip or more")
    trial = BlendingRun(
        model=options.model, clips=options.clips, frames=options.frames, steps=options.steps, overlap=options.overlap,
        seed=options.seed,
    )  # fmt: skip
    try:
        clips = []
        for clip in compare_blends(trial, options.work):
            clips.append(clip)
            summary = "; ".join(f"{way} {clip[way]['added']:.2f}" for way in WAYS)
            sys.stderr.write(f"clip {len(clips) - 1}: added change {summary}\n")
            sys.stderr.flush()
        text = "\n\n".join(table.markdown() for table in tables(clips, trial))
        if options.page is not None:
            command = as_typed("tools.bench.blending", words)
            head = page_heading("Seams of long videos", command, environment(torch.device("cpu")))
            update_page(options.page, {PART: f"{head}\n\n{text}"})
    except SaError as error:
        return refused(error)
    sys.stdout.write(f"{text}\n")
    return 0 if all(mark.holds for mark in marks(clips)) else 8


if __name__ == "__main__":
    sys.exit(main())
