"""What face optimisation does for the face and to the rest, on drawn people that no training saw.

``python -m tools.bench.refinement_figures WORK [--model FOLDER] [--puppets N] [--seeds S] [--size WxH]
[--minutes M] [--page PAGE.md]`` animates the reference picture of each puppet of the test split after its own motion,
once a seed, without optimisation and in every mode, as ``sa animate`` does, and compares the videos with the drawn
truth. A row a case goes into ``WORK/cases.jsonl``; run the same command to resume. Cheap modes come first
and every puppet's first seed before the second ones: after ``--minutes`` the table is of what there is. Nearly all time
goes into decoding and back, an iteration about a third of a second a frame; ``full`` and ``crop`` make 12 of them at
four steps, ``paper`` 120 at twelve. Prints a Markdown table.

The judge is a face network that no optimisation sees; the recogniser is the one that is optimised against. Both look
where the drawn face is: a face that a detector does not find counts as it is, not as missing. Intervals are bootstraps
over puppets, whose seeds are averaged first; differences are taken case by case. ``paper`` samples by Heun's method
with churn, which few steps turn into noise whatever is optimised, so it has its own number of steps and is compared
with ``paper-off``, the same sampling without optimisation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.animate.run import run
from stableanimator_cli.bench.harness import Interval, bootstrap_interval
from stableanimator_cli.bench.results import environment, page_heading, update_page
from stableanimator_cli.config.parse import parse_size
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.errors import SaError
from stableanimator_cli.files import sha256_of
from stableanimator_cli.media import open_clip, write_picture
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import NETWORKS, ModelFolder
from tools.bench.puppet_figures import embed
from tools.bench.resumable import as_typed, read_rows, refused

MODES: dict[str, dict[str, Any]] = {
    "off": {"preset": "fast"},
    "full": {"preset": "released"},
    "crop": {"preset": "standard", "refine_face": "crop"},
    "paper-off": {"preset": "paper", "refine_face": "off"},
    "paper": {"preset": "paper"},
}
BESIDE = {"full": "off", "crop": "off", "paper": "paper-off"}
"""The mode that differs from another one in its optimisation only."""
FIRST = 200_000  # scenes from here on: no other list of figures looks at them
FIGURES = {
    "judge": "similarity by the judge",
    "recogniser": "similarity by the recogniser",
    "face_psnr": "PSNR of faces, dB",
    "background_psnr": "PSNR of the rest, dB",
}
PAPER_STEPS = 12
PART = "refinement"  # of the page
_LARGER = 4  # sides of the reference picture over those of the video, as photographs are


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One video. Similarities are mean cosines over frames that show a face, PSNR is of all their pixels together."""

    puppet: int
    seed: int
    mode: str
    frames: int
    judge: float
    recogniser: float
    face_psnr: float
    background_psnr: float

    @property
    def key(self) -> tuple[int, int, str]:
        return self.puppet, self.seed, self.mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run: a change of one of these makes other rows."""

    model: str
    size: tuple[int, int]
    frames: int
    steps: int | None
    paper_steps: int = PAPER_STEPS

    def steps_of(self, mode: str) -> int | None:
        return self.paper_steps if mode.startswith("paper") else self.steps

    def header(self, model: ModelFolder) -> dict[str, Any]:
        weights = {role: sha256_of(model.files[role])[:12] for role in (*NETWORKS, "face", "judge")}
        asked = {"size": list(self.size), "frames": self.frames, "steps": self.steps, "paper_steps": self.paper_steps}
        return {**asked, "weights": weights}


def scene_of(puppet: int, plan: Plan) -> Scene:
    """The whole figure where the frame is large, so that there is a background to leave alone; who waves is seen from
    the front."""
    framing = "whole" if min(plan.size) >= 256 else "half"
    return sample_scene(
        "test", FIRST + puppet, framing=framing, size=plan.size, frames=plan.frames, behaviour="wave", clip=6
    )


class Judges:
    """Cosine with the reference's face by two networks, at true landmarks."""

    def __init__(self, model: ModelFolder) -> None:
        self._judge = onnx.session(model.files["judge"], "cpu")
        self._reader = FaceReader(model.files["face"], model.face_channel_order, "cpu")

    def vectors(self, image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Unit vectors by the judge and by the recogniser, None where no face can be aligned."""
        judged, own = embed(self._judge, image, landmarks), self._reader.recognise(image, landmarks)
        if judged is None or own is None:
            return None
        return judged / np.linalg.norm(judged), own / np.linalg.norm(own)


def animate(scene: Scene, plan: Plan, seed: int, mode: str, folder: Path) -> np.ndarray:
    """The video of one case as ``sa animate`` writes it: uint8[t,h,w,3]."""
    reference, motion, output = (folder / name for name in ("reference.png", "motion.npz", "out.mp4"))
    width, height = plan.size
    write_picture(reference, scene.reference((_LARGER * width, _LARGER * height)).image)
    save_motion(motion, scene.motion())
    flags: dict[str, Any] = {
        "reference": reference,
        "motion": motion,
        "output": output,
        "model": plan.model,
        "size": f"{width}x{height}",
        "steps": plan.steps_of(mode),
        "seed": seed,
        **MODES[mode],
    }
    run(flags=flags, restart=True)  # what a broken case has left may be of another mode
    return np.stack([frame for _, frame in open_clip(output).frames()])


def measured(video: np.ndarray, scene: Scene, judges: Judges) -> dict[str, float]:
    """Figures of a video beside the drawn truth."""
    truth = list(scene.clip())
    front = scene.reference((512, 512))
    expected = judges.vectors(front.image, front.landmarks[0])
    if expected is None:
        raise ValueError("a reference picture without a face")
    cosines, inside, outside = [], [], []
    for made, drawn in zip(video, truth, strict=True):
        off = np.square(made.astype(np.float64) - drawn.image)
        face = face_mask(drawn)
        inside.append(off[face].ravel())
        outside.append(off[~face].ravel())
        found = judges.vectors(made, drawn.landmarks[0]) if face.any() else None
        if found is not None:
            cosines.append([float(a @ b) for a, b in zip(found, expected, strict=True)])
    judge, recogniser = np.mean(cosines, axis=0) if cosines else (float("nan"), float("nan"))
    return {
        "judge": float(judge),
        "recogniser": float(recogniser),
        "face_psnr": _decibels(np.concatenate(inside)),
        "background_psnr": _decibels(np.concatenate(outside)),
    }


def face_mask(frame: PuppetFrame) -> np.ndarray:
    """bool[h,w]: pixels of the first person's face box; none where no face can be seen."""
    mask = np.zeros(frame.image.shape[:2], bool)
    box = frame.face_boxes[0]
    if np.isfinite(box).all():
        x0, y0, x1, y1 = box.astype(int)
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def _decibels(squares: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(float(squares.mean()), 1e-9))) if len(squares) else float("nan")


def case_of(row: Mapping[str, Any]) -> Case:
    """A row of the file: what is null there was no number."""
    given: dict[str, Any] = {name: float("nan") if value is None else value for name, value in row.items()}
    return Case(**given)


def cases(
    plan: Plan, puppets: int, seeds: int, modes: Sequence[str], work: Path, minutes: float | None = None
) -> Iterator[Case]:
    """Every case, mode by mode, those of earlier runs as they were recorded; each new one is a line of the file at
    once. After ``minutes`` no new case starts, and only recorded ones follow."""
    model = catalogue.open_model(plan.model, (*NETWORKS, "face", "judge"))
    header, path = plan.header(model), work / "cases.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    known = {case.key: case for case in map(case_of, read_rows(path, header))}
    judges = Judges(model)
    scenes = [scene_of(puppet, plan) for puppet in range(puppets)]
    limit = None if minutes is None else time.monotonic() + 60 * minutes
    with path.open("a", encoding="utf-8") as file:
        if not path.stat().st_size:
            file.write(json.dumps(header) + "\n")
        for mode, seed, (puppet, scene) in product(modes, range(seeds), enumerate(scenes)):
            case = known.get((puppet, seed, mode))
            if case is None and (limit is None or time.monotonic() < limit):
                found = measured(animate(scene, plan, seed, mode, work), scene, judges)
                case = Case(puppet=puppet, seed=seed, mode=mode, frames=plan.frames, **found)
                file.write(json.dumps(_without_nan(asdict(case))) + "\n")
                file.flush()
            if case is not None:
                yield case


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}


def summed(found: Sequence[Case], figure: str, mode: str, against: str | None = None) -> Interval:
    """Mean over puppets of a figure (seeds averaged first), or of its difference from another mode, case by case."""
    values: dict[int, list[float]] = {}
    by_key = {case.key: getattr(case, figure) for case in found}
    for (puppet, seed, way), value in by_key.items():
        if way == mode:
            value -= by_key.get((puppet, seed, against), float("nan")) if against else 0.0
            if np.isfinite(value):
                values.setdefault(puppet, []).append(value)
    return bootstrap_interval([float(np.mean(seeds)) for seeds in values.values()], np.mean)


def table(found: Sequence[Case]) -> str:
    """A row a mode: each figure with its interval, and beside it the difference from the same without optimisation."""
    modes = list(dict.fromkeys(case.mode for case in found))
    lines = [f"| mode | cases | {' | '.join(FIGURES.values())} |", f"|{'---|' * (2 + len(FIGURES))}"]
    for mode in modes:
        cells = [mode, str(sum(case.mode == mode for case in found))]
        for figure in FIGURES:
            cell = _cell(summed(found, figure, mode))
            beside = BESIDE.get(mode)
            if beside in modes:
                cell += f"; {_cell(summed(found, figure, mode, beside), signed=True)} over {beside}"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page_part(found: Sequence[Case], plan: Plan, command: str) -> str:
    """The table with what it is about, as a part of a Markdown page."""
    puppets, seeds = (len({getattr(case, name) for case in found}) for name in ("puppet", "seed"))
    width, height = plan.size
    steps = "the model's" if plan.steps is None else str(plan.steps)
    note = (
        f"Up to {puppets} puppets of the test split, {seeds} seed(s), {plan.frames} frames of {width}x{height}, "
        f"{steps} steps (`paper`: {plan.paper_steps}). Cosines with the reference at the drawn face, PSNR against "
        "the drawn truth; means with 95 % bootstrap intervals over puppets, paired differences."
    )
    head = page_heading("What face optimisation does", command, environment(torch.device("cpu")))
    return f"{head}\n\n{note}\n\n{table(found)}"


def _cell(value: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.value:{sign}.3f} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.refinement_figures", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the cases")
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--puppets", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="128x128", help="WxH; a crop is cheaper only where faces are small in it")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--steps", type=int, default=None, help="the model's own unless given")
    parser.add_argument("--paper-steps", type=int, default=PAPER_STEPS, help="of the paper's sampler")
    parser.add_argument("--modes", default=",".join(MODES), help="which, separated by commas")
    parser.add_argument("--minutes", type=float, help="begin no new case after so long")
    parser.add_argument("--page", type=Path, help="also write the table into a Markdown page")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    modes = options.modes.split(",")
    if not set(modes) <= set(MODES):
        parser.error(f"--modes: expected some of {', '.join(MODES)}")
    try:
        plan = Plan(
            model=options.model, size=parse_size(options.size), frames=options.frames, steps=options.steps,
            paper_steps=options.paper_steps,
        )  # fmt: skip
        found = []
        for case in cases(plan, options.puppets, options.seeds, modes, options.work, options.minutes):
            found.append(case)
            sys.stderr.write(f"{case.mode}, puppet {case.puppet}, seed {case.seed}: judge {case.judge:.3f}\n")
        if options.page is not None:
            command = as_typed("tools.bench.refinement_figures", words)
            update_page(options.page, {PART: page_part(found, plan, command)})
    except SaError as error:
        return refused(error)
    sys.stdout.write(table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
