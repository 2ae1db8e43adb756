"""The effect of face optimisation on faces and background, on drawn people that no training saw.

``python -m tools.bench.refinement_figures WORK [--model FOLDER] [--puppets N] [--seeds S] [--size WxH] [--minutes M]
[--page PAGE.md]`` animates the reference of each puppet of the test split with its own motion, as ``sa animate`` does.
It does so once per seed, without optimisation and in every mode, and compares the videos with the drawn truth.
``WORK/cases.jsonl`` gets one row per case; run the same command to resume. Cheap modes come first, and every puppet's
first seed before the second ones: after ``--minutes`` the table shows the cases measured so far. Nearly all time is
decoding and its backward pass, about a third of a second per frame and iteration. ``full`` and ``crop`` take 12
iterations at four steps, ``paper`` 120 at twelve. Prints a Markdown table.

The judge is a face network that no optimisation uses; the recogniser is the one that is optimised. Both look at the
drawn face's position, so a face that a detector misses still counts. Intervals are bootstraps over puppets, whose seeds
are averaged first; differences are paired by case. ``paper`` samples by Heun's method with churn, which with few steps
produces noise, with or without optimisation. So it has its own number of steps, and is compared with ``paper-off``, the
same sampling without optimisation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate.run import run
from stableanimator_cli.bench.frontier_cases import face_slice, sharpness
from stableanimator_cli.bench.harness import Interval, bootstrap_interval
from stableanimator_cli.bench.rows import ResumableRows, short_digests
from stableanimator_cli.config.parse import parse_size
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.errors import SaError
from stableanimator_cli.media import open_clip, write_image
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import NETWORKS, ModelFolder
from tools.bench.pages import collect, page_section, write_section
from tools.bench.puppet_decoder import psnr
from tools.bench.puppet_figures import embed
from tools.command import exit_code_of, positive, report_error

MODES: dict[str, dict[str, Any]] = {
    "off": {"preset": "fast"},
    "full": {"preset": "released"},
    "crop": {"preset": "standard", "refine_face": "crop"},
    "paper-off": {"preset": "paper", "refine_face": "off"},
    "paper": {"preset": "paper"},
}
BASELINES = {"full": "off", "crop": "off", "paper": "paper-off"}
"""Mode -> the same sampling without optimisation."""
FIRST = 200_000  # scenes from here on; no other list of figures uses them
FIGURES = {
    "judge": "similarity by the judge",
    "recogniser": "similarity by the recogniser",
    "face_psnr": "PSNR of faces, dB",
    "sharpness": "sharpness of faces",
    "background_psnr": "PSNR of the rest, dB",
}
PAPER_STEPS = 12
SECTION = "refinement"  # of the page
_LARGER = 4  # sides of the reference relative to the video's, as for photographs


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One video. Similarities and sharpness are means over frames that show a face; PSNR is over all their pixels."""

    puppet: int
    seed: int
    mode: str
    frames: int
    judge: float
    recogniser: float
    face_psnr: float
    sharpness: float
    background_psnr: float

    @property
    def key(self) -> tuple[int, int, str]:
        return self.puppet, self.seed, self.mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings that determine a row."""

    model: str
    size: tuple[int, int]
    frames: int
    steps: int | None
    paper_steps: int = PAPER_STEPS

    def steps_of(self, mode: str) -> int | None:
        return self.paper_steps if mode.startswith("paper") else self.steps

    def header(self, model: ModelFolder) -> dict[str, Any]:
        settings = {
            "size": list(self.size),
            "frames": self.frames,
            "steps": self.steps,
            "paper_steps": self.paper_steps,
            "figures": list(FIGURES),
        }
        weights = short_digests(model, (*NETWORKS, "face", "judge"))
        return {**settings, "card": dict(model.defaults), "weights": weights}


def scene_of(puppet: int, plan: Plan) -> Scene:
    """A waving figure from the front; above 256 pixels its full body, so that the face is a small part of the frame."""
    framing = "whole" if min(plan.size) > 256 else "portrait"
    return sample_scene(
        "test", FIRST + puppet, framing=framing, size=plan.size, frames=plan.frames, behaviour="wave", clip=6
    )


class Judges:
    """The judge and the recogniser, at given landmarks."""

    def __init__(self, model: ModelFolder) -> None:
        self._judge = onnx.session(model.files["judge"], "cpu")
        self._recogniser = FaceReader(model.files["face"], model.face_channel_order, "cpu")

    def vectors(self, image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Unit vectors by the judge and by the recogniser; None if the face cannot be aligned."""
        judged, own = embed(self._judge, image, landmarks), self._recogniser.recognise(image, landmarks)
        if judged is None or own is None:
            return None
        return judged / np.linalg.norm(judged), own / np.linalg.norm(own)


def animate(scene: Scene, plan: Plan, seed: int, mode: str, folder: Path) -> np.ndarray:
    """The video of one case as ``sa animate`` writes it: uint8[t,h,w,3]."""
    reference, motion, output = (folder / name for name in ("reference.png", "motion.npz", "out.mp4"))
    width, height = plan.size
    write_image(reference, scene.reference((_LARGER * width, _LARGER * height)).image)
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
    run(flags=flags, restart=True)  # an interrupted case may have left a state of another mode
    return np.stack([frame for _, frame in open_clip(output).frames()])


def score_video(video: np.ndarray, scene: Scene, judges: Judges) -> dict[str, float]:
    """Figures of a video against the drawn truth."""
    front = scene.reference((512, 512))
    expected = judges.vectors(front.image, front.landmarks[0])
    if expected is None:
        raise ValueError("a reference image without a face")
    cosines, inside, outside, sharp = [], [], [], []
    for image, target in zip(video, scene.clip(), strict=True):
        error = image.astype(np.float64) - target.image
        face = face_mask(target)
        inside.append(error[face].ravel())
        outside.append(error[~face].ravel())
        if face.any():
            region = face_slice(target.face_boxes[0], (target.image.shape[1], target.image.shape[0]))
            sharp.append(sharpness(image, target.image, region))
        actual = judges.vectors(image, target.landmarks[0]) if face.any() else None
        if actual is not None:
            cosines.append([float(a @ b) for a, b in zip(actual, expected, strict=True)])
    judge, recogniser = np.mean(cosines, axis=0) if cosines else (float("nan"), float("nan"))
    return {
        "judge": float(judge),
        "recogniser": float(recogniser),
        "face_psnr": _psnr(np.concatenate(inside)),
        "sharpness": float(np.mean(sharp)) if sharp else float("nan"),
        "background_psnr": _psnr(np.concatenate(outside)),
    }


def face_mask(frame: PuppetFrame) -> np.ndarray:
    """bool[h,w]: pixels of the first person's face box; none if no face is visible."""
    mask = np.zeros(frame.image.shape[:2], bool)
    box = frame.face_boxes[0]
    if np.isfinite(box).all():
        x0, y0, x1, y1 = box.astype(int)
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def _psnr(error: np.ndarray) -> float:
    return psnr(error) if len(error) else float("nan")


def case_of(row: Mapping[str, Any]) -> Case:
    """A stored row; null is NaN."""
    fields: dict[str, Any] = {name: float("nan") if value is None else value for name, value in row.items()}
    return Case(**fields)


def cases(
    plan: Plan, puppets: int, seeds: int, modes: Sequence[str], work: Path, minutes: float | None = None
) -> Iterator[Case]:
    """Every case, mode by mode; new ones are stored at once. After ``minutes`` only stored cases follow."""
    model = catalogue.open_model(plan.model, (*NETWORKS, "face", "judge"))
    rows = ResumableRows(work / "cases.jsonl", plan.header(model))
    stored = {case.key: case for case in map(case_of, rows.rows)}
    judges = Judges(model)
    scenes = [scene_of(puppet, plan) for puppet in range(puppets)]
    limit = None if minutes is None else time.monotonic() + 60 * minutes
    for mode, seed, (puppet, scene) in product(modes, range(seeds), enumerate(scenes)):
        case = stored.get((puppet, seed, mode))
        if case is None and (limit is None or time.monotonic() < limit):
            scores = score_video(animate(scene, plan, seed, mode, work), scene, judges)
            case = Case(puppet=puppet, seed=seed, mode=mode, frames=plan.frames, **scores)
            rows.append(asdict(case))
        if case is not None:
            yield case


def mean_over_puppets(cases: Sequence[Case], figure: str, mode: str, baseline: str | None = None) -> Interval:
    """Mean over puppets of a figure, or of its paired difference from ``baseline``; seeds are averaged first."""
    by_puppet: dict[int, list[float]] = {}
    by_key = {case.key: getattr(case, figure) for case in cases}
    for (puppet, seed, case_mode), value in by_key.items():
        if case_mode == mode:
            value -= by_key.get((puppet, seed, baseline), float("nan")) if baseline else 0.0
            if np.isfinite(value):
                by_puppet.setdefault(puppet, []).append(value)
    return bootstrap_interval([float(np.mean(values)) for values in by_puppet.values()], np.mean)


def table(cases: Sequence[Case]) -> str:
    """One row per mode: each figure with its interval, and its difference from the same mode without optimisation."""
    modes = list(dict.fromkeys(case.mode for case in cases))
    lines = [f"| mode | cases | {' | '.join(FIGURES.values())} |", f"|{'---|' * (2 + len(FIGURES))}"]
    for mode in modes:
        cells = [mode, str(sum(case.mode == mode for case in cases))]
        for figure in FIGURES:
            cell = _cell(mean_over_puppets(cases, figure, mode))
            baseline = BASELINES.get(mode)
            if baseline in modes:
                difference = mean_over_puppets(cases, figure, mode, baseline)
                cell += f"; {_cell(difference, signed=True)} over {baseline}"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(cases: Sequence[Case], plan: Plan) -> str:
    """The note above the table."""
    puppets, seeds = (len({getattr(case, name) for case in cases}) for name in ("puppet", "seed"))
    width, height = plan.size
    steps = "the model's" if plan.steps is None else str(plan.steps)
    return (
        f"Up to {puppets} puppets of the test split, {seeds} seed(s), {plan.frames} frames of {width}x{height}, "
        f"{steps} steps (`paper`: {plan.paper_steps}). Cosines with the reference at the drawn face, PSNR and "
        "sharpness (RMS of the luma's Laplacian in the face over the truth's) against the drawn truth; means with 95 % "
        "bootstrap intervals over puppets, paired differences."
    )


def _cell(value: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.value:{sign}.3f} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.refinement_figures", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the rows")
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--puppets", type=positive, default=20)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--size", default="256x256", help="WxH; a crop is cheaper only if faces are small in it")
    parser.add_argument("--frames", type=positive, default=2)
    parser.add_argument("--steps", type=int, default=None, help="default: the model's own")
    parser.add_argument("--paper-steps", type=int, default=PAPER_STEPS, help="of the paper's sampler")
    parser.add_argument("--modes", default=",".join(MODES), help="modes, separated by commas")
    parser.add_argument("--minutes", type=float, help="start no new case after this time")
    parser.add_argument("--page", type=Path, help="also write the table into a Markdown page")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(arguments)
    modes = options.modes.split(",")
    if not set(modes) <= set(MODES):
        parser.error(f"--modes: expected some of {', '.join(MODES)}")
    try:
        plan = Plan(
            model=options.model, size=parse_size(options.size), frames=options.frames, steps=options.steps,
            paper_steps=options.paper_steps,
        )  # fmt: skip
        measured = collect(
            cases(plan, options.puppets, options.seeds, modes, options.work, options.minutes),
            lambda case: f"{case.mode}, puppet {case.puppet}, seed {case.seed}: judge {case.judge:.3f}",
        )
        text = f"{describe(measured, plan)}\n\n{table(measured)}"
        title = "What face optimisation does"
        write_section(options.page, SECTION, page_section(title, "tools.bench.refinement_figures", arguments, text))
    except SaError as error:
        return report_error(error)
    sys.stdout.write(table(measured) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
