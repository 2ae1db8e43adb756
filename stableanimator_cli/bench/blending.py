"""Do windows show less with our blending than with the reference implementation's? Paired over drawn clips.

``python -m stableanimator_cli.bench.blending WORK [--clips N] [--frames T] [--page PAGE.md]`` animates figures of the
test split after their own movements, longer than a window, once with each blend and otherwise alike, and scores the
videos as ``sa evaluate`` does: seams, flicker, PSNR against the drawn truth, key points. Videos lie in ``WORK``; what
is there is kept, so the same command goes on where it was cut, and more clips may be asked for later. Leaves with 8
where a mark is missed: seams lower than upstream's, PSNR and key points no worse, each by the 95 % interval of the
paired differences over clips.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.animate.run import run
from stableanimator_cli.bench.harness import Interval, interval
from stableanimator_cli.bench.ongoing import as_typed, refused
from stableanimator_cli.bench.results import Table, environment, made_by, put_on_page
from stableanimator_cli.config_evaluate import EvaluateConfig
from stableanimator_cli.errors import SaError
from stableanimator_cli.evaluate.animated import Animator
from stableanimator_cli.evaluate.cases import PUPPET_FPS, PUPPET_SIZE, Case
from stableanimator_cli.evaluate.compare import measuring
from stableanimator_cli.evaluate.scoring import VideoScore
from stableanimator_cli.metrics.result import METRICS
from stableanimator_cli.puppets.dataset import PuppetPlan, write_puppets
from stableanimator_cli.talk import Silent

THEIRS, OURS = "upstream", "smooth"
WAYS: Mapping[str, Mapping[str, Any]] = {blend: {"blend": blend} for blend in (THEIRS, OURS)}
FIGURES = ("seam_score", "seam_worst", "flicker_excess", "psnr", "keypoint_error")
SEED = 3  # of the drawn clips: no other list of figures has these people
PART = "blending"  # of the page


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is animated: ``clips`` of ``frames`` each, at the ``model``'s own settings but for ``steps`` where given."""

    model: str = "puppet"
    clips: int = 12
    frames: int = 64
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is asked of the paired difference of one figure, and whether its interval says so."""

    figure: str
    wanted: str
    difference: Interval
    holds: bool


Scored = dict[str, list[VideoScore]]  # by way, clip by clip


def measure(trial: Trial, work: Path) -> Scored:
    """Animate what is not there yet and score every clip in each way; each clip is told on stderr. Raises
    ``SaError``."""
    model = catalogue.open_model(trial.model)
    plan = PuppetPlan(
        folder=work / "puppets", videos=trial.clips, frames=trial.frames, size=PUPPET_SIZE, fps=PUPPET_FPS,
        split="test", seed=SEED,
    )  # fmt: skip
    folder, talk = write_puppets(plan).folder, Silent()
    bench = measuring(EvaluateConfig(bench="puppet", output=work), talk, networks=(), model=model)
    flags = {"preset": "fast", "seed": trial.seed} | ({} if trial.steps is None else {"steps": trial.steps})
    animators = {
        way: Animator(model=model, name=trial.model, animate=_animate, settings=None, flags=flags | more, talk=talk)
        for way, more in WAYS.items()
    }
    found: Scored = {way: [] for way in WAYS}
    for name in (f"{n:05d}" for n in range(trial.clips)):
        motion = folder / "truth" / f"{name}.npz"
        case = Case(
            name=name, reference=folder / "references" / f"{name}.png", motion=motion,
            truth=folder / "videos" / f"{name}.mp4", poses=motion,
        )  # fmt: skip
        for way, animator in animators.items():
            found[way] += bench.measure(animator.animated([case], work / way)).videos
        told = "; ".join(f"{way} {found[way][-1].values['seam_score']:.3f}" for way in WAYS)
        sys.stderr.write(f"clip {name}: seams {told}\n")
        sys.stderr.flush()
    return found


def _animate(flags: Mapping[str, Any], settings: Path | None) -> None:
    run(flags=flags, config_file=settings)


def values(found: Scored, way: str, figure: str) -> np.ndarray:
    """A figure by clip, NaN where a clip has none."""
    return np.array([video.values.get(figure, np.nan) for video in found[way]], np.float64)


def difference(found: Scored, figure: str) -> Interval:
    """Ours minus theirs, clip by clip, over the clips that have both: the mean and its interval."""
    apart = values(found, OURS, figure) - values(found, THEIRS, figure)
    return interval(apart[np.isfinite(apart)], np.mean)


def marks(found: Scored) -> list[Mark]:
    """Seams must be lower for certain; quality must not be worse for certain."""
    asked = {figure: difference(found, figure) for figure in ("seam_score", "psnr", "keypoint_error")}
    seams, psnr, points = asked.values()
    return [
        Mark(figure="seam_score", wanted="below 0", difference=seams, holds=seams.high < 0),
        Mark(figure="psnr", wanted="not below 0", difference=psnr, holds=psnr.high >= 0),
        Mark(figure="keypoint_error", wanted="not above 0", difference=points, holds=points.low <= 0),
    ]


def tables(found: Scored, trial: Trial) -> tuple[Table, Table]:
    """Means of each way with their differences, and the marks."""
    rows = []
    for figure in FIGURES:
        spec = METRICS[figure]
        row: dict[str, Any] = {"figure": f"{spec.title} ({spec.better} is better)"}
        for way in WAYS:
            one = values(found, way, figure)
            row[way] = interval(one[np.isfinite(one)], np.mean)
        apart = values(found, OURS, figure) - values(found, THEIRS, figure)
        row[f"{OURS} - {THEIRS}"] = difference(found, figure)
        row["clips lower"] = f"{int((apart < 0).sum())} of {int(np.isfinite(apart).sum())}"
        rows.append(row)
    asked = [
        {"figure": METRICS[m.figure].title, "difference": m.difference, "wanted": m.wanted, "holds": m.holds}
        for m in marks(found)
    ]
    width, height = PUPPET_SIZE
    steps = "the model's steps" if trial.steps is None else f"{trial.steps} steps"
    note = (
        f"{trial.clips} clips of {trial.frames} frames of {width}x{height}, {steps}, `--preset fast`; means and 95 % "
        "intervals over clips. A seam score of 1 is a border that does not show; each blend has its own borders."
    )
    return (
        Table(title="Seams by blend", rows=rows, note=note),
        Table(title="What is asked", rows=asked, note="Of the differences, by their intervals."),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m stableanimator_cli.bench.blending", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the videos")
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--clips", type=int, default=Trial().clips)
    parser.add_argument("--frames", type=int, default=Trial().frames, help="of a clip, more than a window has")
    parser.add_argument("--steps", type=int, help="the model's own unless given")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--page", type=Path, help="also write the tables into a Markdown page")
    options = parser.parse_args(words)
    trial = Trial(
        model=options.model, clips=options.clips, frames=options.frames, steps=options.steps, seed=options.seed
    )
    try:
        found = measure(trial, options.work)
        made = tables(found, trial)
        text = "\n\n".join(table.markdown() for table in made)
        if options.page is not None:
            command = as_typed("stableanimator_cli.bench.blending", words)
            head = made_by("Seams of long videos", command, environment(torch.device("cpu")))
            put_on_page(options.page, {PART: f"{head}\n\n{text}"})
    except SaError as error:
        return refused(error)
    sys.stdout.write(f"{text}\n")
    return 0 if all(mark.holds for mark in marks(found)) else 8


if __name__ == "__main__":
    sys.exit(main())
