"""Score a model on the 50 held-out portraits: image quality of the face, identity, limbs, and a contact sheet.

``python -m tools.puppet_training.score [--model FOLDER] [--count N] [--swap] [--out FILE.jsonl]`` animates the clips of
``heldout.json`` and prints one row per clip and the figures below them. Exits with code 8 if a requirement fails.
``--of vae`` scores the VAE's reconstruction of the true frames instead, ``--of copy`` the reference itself: the upper
and the lower bound. The sheet beside ``--out`` shows per clip the reference, a true frame, the output, and the output
with another person's face.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.device import DTYPES, DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import Timings, render
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.media import write_image
from stableanimator_cli.records import ModelFolder
from tools.bench.puppet_figures import Figure, at_least, at_most
from tools.bench.puppet_model import (
    HeldOutClip,
    OutputDetectors,
    judge_all,
    open_clip,
    request_of,
)
from tools.command import exit_code_of, positive
from tools.puppet_training.heldout import open_scene, read_list
from tools.puppet_training.measure import face_scores, psnr

OTHERS = 20  # other people whose faces must be less similar than the own reference
_CELL = 128  # pixels of an image of the sheet


def animate(
    engine: Engine, clip: HeldOutClip, embedding: np.ndarray, defaults: dict[str, Any], seed: int
) -> list[np.ndarray]:
    """Animate a clip with the settings of the model's card."""
    request = request_of(clip, embedding, defaults, seed)
    return [frame.copy() for frame in render(engine, request, Timings())]


@torch.no_grad()
def reconstruct(vae: Any, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Encode and decode images uint8[h,w,3]."""
    out = []
    for image in images:
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None].div(127.5).sub(1)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode(), num_frames=1).sample[0]
        out.append(decoded.permute(1, 2, 0).add(1).mul(127.5).round().clamp(0, 255).byte().numpy())
    return out


def score_clip(
    output: Sequence[np.ndarray], clip: HeldOutClip, detectors: OutputDetectors
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of one clip, and the mean of the judge's vectors (zeros if no face is found)."""
    target = list(clip.scene.clip())
    faces, copied, vectors, to_target = [], [], [], []
    for image, frame in zip(output, target, strict=True):
        if not np.isfinite(frame.face_boxes).all():
            continue
        faces.append(face_scores(image, frame.image, frame.face_boxes[0]))
        copied.append(face_scores(clip.fitted, frame.image, frame.face_boxes[0])[0])
        vector, target_vector = detectors.judge(image), detectors.judge(frame.image)
        if vector is not None:
            vectors.append(vector)
            if target_vector is not None:
                to_target.append(float(vector @ target_vector))
    mean = np.mean(vectors, axis=0) if vectors else np.zeros_like(clip.judged)
    images = np.stack([frame.image for frame in target])
    row: dict[str, Any] = {
        "face": float(np.mean([value for value, _ in faces])),
        "face_copy": float(np.mean(copied)),
        "sharpness": float(np.mean([value for _, value in faces])),
        "reference": float(mean @ clip.judged) if vectors else None,
        "truth": float(np.mean(to_target)) if to_target else None,
        "faces": len(vectors),
        "limbs": detectors.limb_errors(output, target),
        "psnr": psnr(np.stack(output), images),
        "psnr_copy": psnr(np.stack([clip.fitted] * len(output)), images),
    }
    return row, mean


def summarise(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Figures over all clips with their requirements."""
    count = len(rows)
    face = np.mean([row["face"] for row in rows])
    yield at_least("face, dB", float(face), 20.0, count)
    yield at_least("face, dB above copying", float(face - np.mean([row["face_copy"] for row in rows])), 6.0, count)
    yield at_least("sharpness of the face", float(np.mean([row["sharpness"] for row in rows])), 0.8, count)
    for key, name, mark in (("truth", "true frame", 0.9), ("reference", "reference", 0.82)):
        known = [row[key] for row in rows if row[key] is not None]
        yield at_least(f"judge, {name}", float(np.mean(known)) if known else -1.0, mark, len(known))
    limbs = np.concatenate([row["limbs"] for row in rows])
    yield at_most("limb error, fraction of the side, median", float(np.median(limbs)), 0.02, len(limbs))
    own = [row["reference"] is not None and row["reference"] > row["best_other"] for row in rows]
    yield at_least(f"clips nearest to their own of {OTHERS + 1} faces", float(np.mean(own)), 1.0, count)
    yield at_least("dB", float(np.mean([row["psnr"] for row in rows])), None, count)
    above = np.mean([row["psnr"] - row["psnr_copy"] for row in rows])
    yield at_least("dB above copying", float(above), None, count)
    yield from summarise_swaps(rows)


def sheet_of(cells: list[list[np.ndarray]], columns: int = 5) -> np.ndarray:
    """Clips side by side, ``columns`` per row; every clip is a row of equally large images."""
    clips = [np.concatenate([cv2.resize(image, (_CELL, _CELL)) for image in row], axis=1) for row in cells]
    clips += [np.zeros_like(clips[0])] * (-len(clips) % columns)
    rows = [np.concatenate(clips[n : n + columns], axis=1) for n in range(0, len(clips), columns)]
    return np.concatenate(rows)


def swap_scores(
    frames: Iterable[np.ndarray], mean: np.ndarray, own: np.ndarray, other: np.ndarray, detectors: OutputDetectors
) -> dict[str, float]:
    """The judge's similarity of ``frames``, rendered with another person's face, to both people.

    ``mean`` is the judge's vector of the clip rendered with its own face. Empty if no frame shows a face.
    """
    vectors = judge_all(frames, detectors)
    if not vectors:
        return {}
    swapped = np.mean(vectors, axis=0)
    return {
        "swapped_own": float(swapped @ own),
        "swapped_other": float(swapped @ other),
        "own_to_other": float(mean @ other),
    }


def best_other(mean: np.ndarray, clips: Sequence[HeldOutClip], n: int) -> float:
    """The greatest similarity of clip ``n``'s output, with the judge's vector ``mean``, to another person's face."""
    return float(max(mean @ clips[(n + k) % len(clips)].judged for k in range(1, OTHERS + 1)))


def summarise_swaps(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Figures of ``--swap``."""
    swapped = [row for row in rows if "swapped_own" in row]
    if swapped:
        fall = [row["reference"] - row["swapped_own"] for row in swapped]
        rise = [row["swapped_other"] - row["own_to_other"] for row in swapped]
        yield at_least("decrease with another person's face", float(np.mean(fall)), 0.1, len(fall))
        yield at_least("increase towards that person", float(np.mean(rise)), 0.0, len(rise))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training.score", description=__doc__)
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--count", type=positive, default=50, help="clips, from the start of the list")
    parser.add_argument("--steps", type=int, help="instead of the card's")
    parser.add_argument("--guidance", type=float, help="instead of the card's")
    parser.add_argument("--guidance-interval", metavar="off|LO:HI", help="instead of the card's")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose settings on")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--swap", action="store_true", help="also render with another person's face")
    parser.add_argument("--out", type=Path, help="write rows as JSON lines, and contact sheets beside them")
    parser.add_argument("--of", choices=("model", "vae", "copy"), default="model", help="what is scored")
    parser.add_argument("--size", type=int, default=256, help="side of the frames in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="of the networks")
    return parser.parse_args(arguments)


def defaults_of(model: ModelFolder, options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the model's card, with ``--steps`` and others if given."""
    chosen = {
        "steps": options.steps, "guidance": options.guidance, "guidance_interval": options.guidance_interval,
    }  # fmt: skip
    return {**model.defaults, **{key: value for key, value in chosen.items() if value is not None}}


def write_results(rows: list[dict[str, Any]], figures: Sequence[Figure], sheet: np.ndarray, out: Path | None) -> int:
    """Print the figures and write rows and contact sheet; returns the exit code."""
    sys.stdout.writelines(figure.row() + "\n" for figure in figures)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        write_image(out.with_suffix(".png"), sheet)
    return 0 if all(figure.holds for figure in figures) else 8


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    model = catalogue.open_model(options.model)
    defaults = defaults_of(model, options)
    entries = read_list()
    count = min(options.count, len(entries))
    rows, cells = [], []
    with Engine.open(model, DevicePlan.of(DeviceConfig(device=options.device, dtype=options.dtype))) as engine:
        detectors = OutputDetectors(engine)
        scenes = [
            open_scene(entry, options.split, (options.size, options.size))
            for entry in entries[: max(count, OTHERS + 1)]
        ]
        clips = [open_clip(scene, detectors) for scene in scenes]
        vae = loaders(model, torch.float32, "distribution")["vae"]() if options.of == "vae" else None
        for n, clip in enumerate(clips[:count]):
            target = [frame.image for frame in clip.scene.clip()]
            if options.of == "model":
                output = animate(engine, clip, clip.embedding, defaults, options.seed)
            else:
                output = [clip.fitted] * len(target) if vae is None else reconstruct(vae, target)
            row, mean = score_clip(output, clip, detectors)
            row = {"clip": n, **row, "best_other": best_other(mean, clips, n)}
            middle = len(output) // 2
            cells.append([clip.fitted, target[middle], output[middle]])
            if options.swap and options.of == "model":
                other = clips[(n + 1) % len(clips)]
                swapped = animate(engine, clip, other.embedding, defaults, options.seed)
                cells[-1].append(swapped[middle])
                if row["reference"] is not None:
                    row |= swap_scores(swapped, mean, clip.judged, other.judged, detectors)
            rows.append(row)
            to_target = float("nan") if row["truth"] is None else row["truth"]
            print(
                f"clip {n:2d}  face {row['face']:5.2f} dB, copying {row['face_copy']:5.2f}; sharpness "
                f"{row['sharpness']:.3f}; judge {to_target:.3f} in {row['faces']} frames",
                flush=True,
            )
    return write_results(rows, list(summarise(rows)), sheet_of(cells), options.out)


if __name__ == "__main__":
    sys.exit(exit_code_of(main, resumes=False))
