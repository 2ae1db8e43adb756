"""What face optimisation does for the face and to the rest, on drawn people that no training saw.

``python -m stableanimator_cli.bench.refinement_figures WORK [--model FOLDER] [--puppets N] [--seeds S] [--size WxH]``
animates the reference picture of each puppet of the test split after its own motion, once a seed, without optimisation
and in every mode, as ``sa animate`` does, and compares the videos with the drawn truth. A row a case goes into
``WORK/cases.jsonl``; the same command goes on where it was cut. Prints a Markdown table.

The judge is a face network that no optimisation sees; the recogniser is the one that is optimised against. Both look
where the drawn face is: a face that a detector does not find counts as it is, not as missing. Intervals are bootstraps
over puppets, whose seeds are averaged first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate.run import run
from stableanimator_cli.bench.harness import Interval, interval
from stableanimator_cli.bench.puppet_figures import embed
from stableanimator_cli.config import parse_size
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.face import FaceReader
from stableanimator_cli.engine.weights import NETWORKS
from stableanimator_cli.errors import BadInput, SaError
from stableanimator_cli.media import open_clip, write_picture
from stableanimator_cli.media_files import digest_of
from stableanimator_cli.motion.interchange import save_motion
from stableanimator_cli.puppets.render import PuppetFrame
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import ModelFolder

MODES: dict[str, dict[str, Any]] = {
    "off": {"preset": "fast"},
    "full": {"preset": "released"},
    "crop": {"preset": "standard", "refine_face": "crop"},
    "paper": {"preset": "paper"},
}
FIRST = 200_000  # scenes from here on: no other list of figures looks at them
FIGURES = {
    "judge": "similarity by the judge",
    "recogniser": "similarity by the recogniser",
    "face_psnr": "PSNR of faces, dB",
    "background_psnr": "PSNR of the rest, dB",
}
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

    def header(self, model: ModelFolder) -> dict[str, Any]:
        weights = {role: digest_of(model.files[role])[:12] for role in (*NETWORKS, "face", "judge")}
        return {"size": list(self.size), "frames": self.frames, "steps": self.steps, "weights": weights}


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
        "steps": plan.steps,
        "seed": seed,
        **MODES[mode],
    }
    run(flags=flags)
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


def read_cases(path: Path, header: dict[str, Any]) -> list[Case]:
    """Rows that are there already. A last line that was cut is dropped; other settings are refused (``BadInput``)."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        path.write_bytes(b"".join(lines[:-1]))
        lines = lines[:-1]
    rows = [json.loads(line) for line in lines]
    if rows and rows[0] != header:
        changed = [name for name in header if rows[0].get(name) != header[name]]
        raise BadInput(path, f"cases of other settings ({', '.join(changed)})", "the same", hint="name another folder")
    return [Case(**{name: float("nan") if value is None else value for name, value in row.items()}) for row in rows[1:]]


def cases(plan: Plan, puppets: int, seeds: int, modes: Sequence[str], work: Path) -> Iterator[Case]:
    """Every case, those of earlier runs as they were recorded; each new one is a line of the file at once."""
    model = catalogue.open_model(plan.model, (*NETWORKS, "face", "judge"))
    header, path = plan.header(model), work / "cases.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    known = {case.key: case for case in read_cases(path, header)}
    judges = Judges(model)
    with path.open("a", encoding="utf-8") as file:
        if not path.stat().st_size:
            file.write(json.dumps(header) + "\n")
        for puppet in range(puppets):
            scene = scene_of(puppet, plan)
            for seed in range(seeds):
                for mode in modes:
                    case = known.get((puppet, seed, mode))
                    if case is None:
                        found = measured(animate(scene, plan, seed, mode, work), scene, judges)
                        case = Case(puppet=puppet, seed=seed, mode=mode, frames=plan.frames, **found)
                        file.write(json.dumps(_without_nan(asdict(case))) + "\n")
                        file.flush()
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
    return interval([float(np.mean(seeds)) for seeds in values.values()], np.mean)


def table(found: Sequence[Case]) -> str:
    """A row a mode: each figure with its interval, and in brackets beside it the difference from no optimisation."""
    modes = list(dict.fromkeys(case.mode for case in found))
    lines = [f"| mode | cases | {' | '.join(FIGURES.values())} |", f"|{'---|' * (2 + len(FIGURES))}"]
    for mode in modes:
        cells = [mode, str(sum(case.mode == mode for case in found))]
        for figure in FIGURES:
            cell = _cell(summed(found, figure, mode))
            if mode != "off" and "off" in modes:
                cell += f"; {_cell(summed(found, figure, mode, 'off'), signed=True)} over off"
            cells.append(cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.value:{sign}.3f} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stableanimator_cli.bench.refinement_figures", description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the cases")
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--puppets", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="128x128", help="WxH; a crop is cheaper only where faces are small in it")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=None, help="the model's own unless given")
    parser.add_argument("--modes", default=",".join(MODES), help="which, separated by commas")
    options = parser.parse_args(arguments)
    modes = options.modes.split(",")
    if not set(modes) <= set(MODES):
        parser.error(f"--modes: expected some of {', '.join(MODES)}")
    try:
        size = parse_size(options.size)
        plan = Plan(model=options.model, size=size, frames=options.frames, steps=options.steps)
        found = []
        for case in cases(plan, options.puppets, options.seeds, modes, options.work):
            found.append(case)
            sys.stderr.write(f"puppet {case.puppet}, seed {case.seed}, {case.mode}: judge {case.judge:.3f}\n")
    except SaError as error:
        sys.stderr.write(f"{error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    sys.stdout.write(table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
