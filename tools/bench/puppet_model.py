"""What the puppet model makes of figures and motions that it never saw: limbs, identity, pictures.

``python -m tools.bench.puppet_model [--model FOLDER] [--count N] [--out FILE.jsonl]`` animates the fixed
list of 50 clips in ``puppet_heldout.json`` (made by ``--list`` from a seed, before any training) and prints a row a
clip and the marks below them. Leaves with 8 where a mark is missed.

A clip's reference is drawn at 256x256, as a user's picture is larger than the model's frames: the face recogniser sees
it at that size, the denoiser at 128x128. Limbs are read from the output by the shipped detectors; faces are compared by
the judge, which no training and no optimisation sees. ``--swap`` gives each figure another's face vector as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stableanimator_cli import catalogue
from stableanimator_cli.animate.pose_frames import PoseFrames
from stableanimator_cli.config.animate import DecodeConfig, DeviceConfig, SamplingConfig
from stableanimator_cli.config.parse import parse_guidance
from stableanimator_cli.detect import onnx
from stableanimator_cli.detect.pose import PersonDetector, PoseEstimator
from stableanimator_cli.diffusion.windows import plan_windows
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import RenderRequest, Timings, render
from stableanimator_cli.errors import NoFace
from stableanimator_cli.media import write_picture
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.motion.skeleton import draw_skeleton
from stableanimator_cli.puppets.sample import derive_rng
from stableanimator_cli.puppets.scene import Scene, sample_scene
from stableanimator_cli.records import Motion
from tools.bench.puppet_decoder import psnr
from tools.bench.puppet_figures import Figure, at_least, at_most, embed

LIST = Path(__file__).with_name("puppet_heldout.json")
LARGE, SMALL = (256, 256), (128, 128)
OTHERS = 20  # figures that a face must be less like than its own reference
LIMBS = (3, 4, 6, 7, 9, 10, 12, 13)  # elbows, wrists, knees, ankles
_FIRST = 70_000  # scenes from here on: no other list looks at them


def held_out(seed: int = 2026, count: int = 50) -> list[dict[str, int]]:
    """The list: scenes of the test split and which clip of each. Some frame of each shows a face."""
    rng = derive_rng("held out", seed)
    chosen: list[dict[str, int]] = []
    for index in rng.permutation(20_000):
        entry = {"index": _FIRST + int(index), "clip": int(rng.integers(1000)), "frames": 8}
        seen = sum(np.isfinite(frame.face_boxes).all() for frame in scene_of(entry).clip())
        if seen >= 4:
            chosen.append(entry)
        if len(chosen) == count:
            break
    return chosen


def scene_of(entry: dict[str, int], split: str = "test") -> Scene:
    return sample_scene(split, entry["index"], clip=entry["clip"], frames=entry["frames"], size=SMALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A figure of the list: its reference uint8[256,256,3], the recogniser's vector of it, and the judge's."""

    scene: Scene
    reference: np.ndarray
    vector: np.ndarray
    judged: np.ndarray


class Reader:
    """The shipped networks that look at outputs."""

    def __init__(self, engine: Engine) -> None:
        files = engine.model.files
        self.faces = engine.faces()
        self.people = PersonDetector(files["person_detector"], "cpu")
        self.points = PoseEstimator(files["pose_detector"], "cpu")
        self._judge = onnx.session(files["judge"], "cpu")

    def judged(self, picture: np.ndarray) -> np.ndarray | None:
        """The judge's unit vector of the largest face, None where none is found."""
        found = self.faces.boxes(picture)
        vector = embed(self._judge, picture, found[0].landmarks) if found else None
        return None if vector is None else vector / np.linalg.norm(vector)

    def limbs(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Limb points float[t,8,2] of the largest person of each picture, infinite if no person is found."""
        boxes = self.people.detect(pictures)
        out = np.full((len(pictures), len(LIMBS), 2), np.inf)
        for t, (picture, found) in enumerate(zip(pictures, boxes, strict=True)):
            if len(found):
                largest = found[(found[:, 2:4] - found[:, :2]).prod(axis=1).argmax()][None]
                out[t] = self.points.estimate([picture], [largest])[0][0][LIMBS, :2]
        return out


def subjects(entries: list[dict[str, int]], reader: Reader, split: str = "test") -> list[Subject]:
    return [subject_of(scene_of(entry, split), reader) for entry in entries]


def subject_of(scene: Scene, reader: Reader) -> Subject:
    """Raises ``NoFace`` where the reference shows none to the shipped networks."""
    picture = scene.reference(LARGE).image
    found, judged = reader.faces.faces(picture), reader.judged(picture)
    if not found or found[0].embedding is None or judged is None:
        raise NoFace(f"held-out scene {scene.seed}: no face in its reference", hint="recreate the list with --list")
    return Subject(scene=scene, reference=picture, vector=found[0].embedding, judged=judged)


def request_of(subject: Subject, vector: np.ndarray, defaults: dict[str, Any], seed: int) -> RenderRequest:
    """One rendering with the settings of the model's card."""
    fitted = resize_transform(LARGE, SMALL, "crop").apply_image(subject.reference, resample="lanczos")
    return card_request(subject.reference, fitted, vector, subject.scene.motion(), {"steps": 4, **defaults}, seed)


def card_request(
    picture: np.ndarray, fitted: np.ndarray, vector: np.ndarray, motion: Motion, defaults: dict[str, Any], seed: int
) -> RenderRequest:
    """A rendering of the reference ``picture``, ``fitted`` uint8[h,w,3] to the output, with the settings of a model's
    card, which names ``steps``."""
    height, width = fitted.shape[:2]
    skeletons = PoseFrames((width, height), (draw_skeleton(people, (width, height)) for people in motion.keypoints))
    guidance, window = defaults.get("guidance", 1.0), int(defaults.get("window", 8))
    sampling = SamplingConfig(
        steps=int(defaults["steps"]),
        guidance=parse_guidance(str(guidance)) if not isinstance(guidance, int | float) else (guidance, guidance),
        noise_aug=float(defaults.get("noise_aug", 0.02)),
        motion_bucket=float(defaults.get("motion_bucket", 127)),
        conditioning_fps=int(defaults.get("conditioning_fps", 7)),
        seed=seed,
    )
    return RenderRequest(
        picture=picture,
        fitted=fitted,
        face=vector,
        poses=skeletons,
        plan=plan_windows(len(skeletons), length=window, overlap=0),
        sampling=sampling,
        decode=DecodeConfig(chunk=8),
        noise_period=window,
    )


def swap_scores(
    frames: Iterable[np.ndarray], mean: np.ndarray, own: np.ndarray, other: np.ndarray, reader: Reader
) -> dict[str, float]:
    """Similarity by the judge of ``frames``, made with another's face vector, to both; ``mean`` is the judge's vector
    of the clip made with its own. Empty if no frame shows a face."""
    vectors = [vector for frame in frames if (vector := reader.judged(frame)) is not None]
    if not vectors:
        return {}
    swapped = np.mean(vectors, axis=0)
    return {
        "swapped_own": float(swapped @ own),
        "swapped_other": float(swapped @ other),
        "own_to_other": float(mean @ other),
    }


def looked_at(output: list[np.ndarray], subject: Subject, reader: Reader) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of a clip beside its truth: errors of limbs that are in the picture, similarity of faces to the
    reference's, PSNR; and the mean of the judge's vectors, zeros where no face is found."""
    truth = list(subject.scene.clip())
    drawn = np.stack([frame.image for frame in truth]).astype(float)
    driven = np.stack([frame.keypoints[0, LIMBS] for frame in truth])
    inside = (driven[..., 2] > 0) & (driven[..., :2] >= 0).all(axis=-1) & (driven[..., :2] < SMALL).all(axis=-1)
    error = np.linalg.norm(reader.limbs(output) - driven[..., :2], axis=-1) / SMALL[0]
    vectors = [vector for frame in output if (vector := reader.judged(frame)) is not None]
    mean = np.mean(vectors, axis=0) if vectors else np.zeros_like(subject.judged)
    row: dict[str, Any] = {
        "limbs": [round(float(value), 4) for value in error[inside]],
        "own": float(mean @ subject.judged) if vectors else None,
        "faces": len(vectors),
        "psnr": psnr(np.stack(output) - drawn),
    }
    return row, mean


def measured(
    engine: Engine, reader: Reader, everybody: list[Subject], n: int, defaults: dict[str, Any], seed: int, swap: bool
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of clip ``n`` and its sheet uint8 of truth over output."""
    subject = everybody[n]
    request = request_of(subject, subject.vector, defaults, seed)
    output = [frame.copy() for frame in render(engine, request, Timings())]
    drawn = np.stack([frame.image for frame in subject.scene.clip()])
    found, mean = looked_at(output, subject, reader)
    own = found["own"]
    others = [everybody[(n + k) % len(everybody)].judged for k in range(1, OTHERS + 1)]
    row: dict[str, Any] = {
        "scene": subject.scene.seed,
        **found,
        "best_other": float(max(mean @ other for other in others)) if own is not None else None,
        "psnr_copy": psnr(request.fitted - drawn.astype(float)),
    }
    if swap:
        other = everybody[(n + 1) % len(everybody)]
        swapped = render(engine, request_of(subject, other.vector, defaults, seed), Timings())
        scores = swap_scores(swapped, mean, subject.judged, other.judged, reader)
        row |= scores if own is not None else {}
    sheet = np.concatenate([np.concatenate(list(rows), axis=1) for rows in (drawn, output)])
    return row, np.concatenate([np.concatenate([request.fitted] * 2), sheet], axis=1)


def marks(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """What the rows say together, beside what is asked for."""
    limbs = np.concatenate([row["limbs"] for row in rows])
    yield at_most("limb error, fraction of the side, median", float(np.median(limbs)), 0.04, len(limbs))
    best = [row["own"] is not None and row["own"] > row["best_other"] for row in rows]
    yield at_least(f"clips nearest to their own of {OTHERS + 1} faces", float(np.mean(best)), 0.9, len(best))
    gain = [row["psnr"] - row["psnr_copy"] for row in rows]
    yield at_least("dB above copying the reference", float(np.mean(gain)), 6.0, len(gain))
    yield at_least("dB", float(np.mean([row["psnr"] for row in rows])), None, len(rows))
    seen = [row["own"] for row in rows if row["own"] is not None]
    yield at_least("judge's similarity to the reference", float(np.mean(seen)) if seen else -1.0, None, len(seen))
    swapped = [row for row in rows if "swapped_own" in row]
    if swapped:
        fall = [row["own"] - row["swapped_own"] for row in swapped]
        rise = [row["swapped_other"] - row["own_to_other"] for row in swapped]
        yield at_least("fall of it with another's face vector", float(np.mean(fall)), 0.1, len(fall))
        yield at_least("rise towards that other", float(np.mean(rise)), 0.0, len(rise))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.puppet_model", description=__doc__)
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--count", type=int, default=50, help="clips, from the list's first on")
    parser.add_argument("--steps", type=int, help="instead of the card's")
    parser.add_argument("--guidance", type=float, help="instead of the card's")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose settings on")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--swap", action="store_true", help="with another's face vector too")
    parser.add_argument("--out", type=Path, help="a row a clip as JSON lines, and sheets beside it")
    parser.add_argument("--list", action="store_true", help="write the list and stop")
    options = parser.parse_args(arguments)
    if options.list:
        LIST.write_text(json.dumps(held_out(), indent=0) + "\n", encoding="utf-8")
        return 0
    entries = json.loads(LIST.read_text(encoding="utf-8"))
    model = catalogue.open_model(options.model)
    chosen = {"steps": options.steps, "guidance": options.guidance}
    defaults = {**model.defaults, **{key: value for key, value in chosen.items() if value is not None}}
    rows, sheets = [], []
    with Engine.open(model, DevicePlan.of(DeviceConfig(device="cpu"))) as engine:
        reader = Reader(engine)
        everybody = subjects(entries, reader, options.split)
        for n in range(min(options.count, len(entries))):
            row, sheet = measured(engine, reader, everybody, n, defaults, options.seed, options.swap)
            rows.append(row)
            sheets.append(sheet)
            own, other = (float("nan") if row[key] is None else row[key] for key in ("own", "best_other"))
            limbs = np.median(row["limbs"]) if row["limbs"] else float("nan")
            sys.stdout.write(
                f"clip {n:3d}  {row['psnr']:5.2f} dB, copying {row['psnr_copy']:5.2f}; limbs {limbs:.4f}; "
                f"own {own:.3f}, best other {other:.3f} in {row['faces']} frames\n"
            )
            sys.stdout.flush()
    figures = list(marks(rows))
    sys.stdout.writelines(figure.row() + "\n" for figure in figures)
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        write_picture(options.out.with_suffix(".png"), np.concatenate(sheets[:12]))
    return 0 if all(figure.holds for figure in figures) else 8


if __name__ == "__main__":
    sys.exit(main())
