"""Score a model on the 50 held-out portraits: the face as the eye sees it, identity, limbs, and one sheet to look at.

``python -m tools.puppet_training.score [--model FOLDER] [--count N] [--swap] [--out FILE.jsonl]`` animates the clips of
``heldout.json``, prints one row per clip and the figures below them, and exits with code 8 if a mark is missed.
``--of vae`` scores the VAE's reconstruction of the true frames instead, ``--of copy`` the reference itself: the ceiling
and the floor. The sheet beside ``--out`` shows per clip the reference, a true frame, the output, and the output with
another's face vector.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from stableanimator_cli import catalogue
from stableanimator_cli.config.animate import DeviceConfig
from stableanimator_cli.engine.device import DevicePlan
from stableanimator_cli.engine.engine import Engine
from stableanimator_cli.engine.render import Timings, render
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.errors import NoFace
from stableanimator_cli.motion.geometry import resize_transform
from stableanimator_cli.puppets.render import PuppetFrame
from tools.bench.puppet_figures import Figure, at_least, at_most
from tools.bench.puppet_model import LIMBS, OTHERS, Reader, card_request, swap_scores
from tools.puppet_training.heldout import open_scene, read_list
from tools.puppet_training.measure import face_scores, psnr

_CELL = 128  # pixels of an image of the sheet


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip of the list at the model's size: true frames, the reference at twice that size, and its two vectors."""

    truth: tuple[PuppetFrame, ...]
    motion: Any
    large: np.ndarray
    reference: np.ndarray
    vector: np.ndarray
    judged: np.ndarray
    size: tuple[int, int]


def open_clip(entry: dict[str, int], split: str, size: tuple[int, int], reader: Reader) -> Clip:
    """Draw a clip. Raises ``NoFace`` if the detectors find no face in its reference."""
    scene = open_scene(entry, split, size)
    large = scene.reference((2 * size[0], 2 * size[1])).image
    found, judged = reader.faces.faces(large), reader.judged(large)
    if not found or found[0].embedding is None or judged is None:
        raise NoFace(f"held-out scene {entry}: no face in its reference", hint="train the face detector on portraits")
    return Clip(
        truth=tuple(scene.clip()),
        motion=scene.motion(),
        large=large,
        reference=resize_transform((2 * size[0], 2 * size[1]), size, "crop").apply_image(large, resample="lanczos"),
        vector=found[0].embedding,
        judged=judged,
        size=size,
    )


def animate(engine: Engine, clip: Clip, vector: np.ndarray, defaults: dict[str, Any], seed: int) -> list[np.ndarray]:
    """Animate a clip with the settings of the model's card."""
    request = card_request(clip.large, clip.reference, vector, clip.motion, {"steps": 8, **defaults}, seed)
    return [frame.copy() for frame in render(engine, request, Timings())]


@torch.no_grad()
def reconstruct(vae: Any, clip: Clip) -> list[np.ndarray]:
    """Encode and decode the true frames."""
    out = []
    for frame in clip.truth:
        pixels = torch.from_numpy(frame.image.astype(np.float32)).permute(2, 0, 1)[None].div(127.5).sub(1)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode(), num_frames=1).sample[0]
        out.append(decoded.permute(1, 2, 0).add(1).mul(127.5).round().clamp(0, 255).byte().numpy())
    return out


def score_clip(output: Sequence[np.ndarray], clip: Clip, reader: Reader) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of one clip, and the mean of the judge's vectors (zeros if no face is found)."""
    driven = np.stack([frame.keypoints[0, LIMBS] for frame in clip.truth])
    inside = (driven[..., 2] > 0) & (driven[..., :2] >= 0).all(axis=-1) & (driven[..., :2] < clip.size).all(axis=-1)
    error = np.linalg.norm(reader.limbs(list(output)) - driven[..., :2], axis=-1) / clip.size[0]
    faces, copied, near_reference, near_truth = [], [], [], []
    for image, frame in zip(output, clip.truth, strict=True):
        if not np.isfinite(frame.face_boxes).all():
            continue
        faces.append(face_scores(image, frame.image, frame.face_boxes[0]))
        copied.append(face_scores(clip.reference, frame.image, frame.face_boxes[0])[0])
        vector, true = reader.judged(image), reader.judged(frame.image)
        if vector is not None:
            near_reference.append(vector)
            if true is not None:
                near_truth.append(float(vector @ true))
    mean = np.mean(near_reference, axis=0) if near_reference else np.zeros_like(clip.judged)
    row: dict[str, Any] = {
        "face": float(np.mean([value for value, _ in faces])),
        "face_copy": float(np.mean(copied)),
        "sharpness": float(np.mean([value for _, value in faces])),
        "reference": float(mean @ clip.judged) if near_reference else None,
        "truth": float(np.mean(near_truth)) if near_truth else None,
        "faces": len(near_reference),
        "limbs": [round(float(value), 4) for value in error[inside]],
        "psnr": psnr(np.stack(output), np.stack([frame.image for frame in clip.truth])),
        "psnr_copy": psnr(np.stack([clip.reference] * len(output)), np.stack([frame.image for frame in clip.truth])),
    }
    return row, mean


def summarise(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Figures over all clips beside their marks."""
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
    swapped = [row for row in rows if "swapped_own" in row]
    if swapped:
        fall = [row["reference"] - row["swapped_own"] for row in swapped]
        rise = [row["swapped_other"] - row["own_to_other"] for row in swapped]
        yield at_least("fall of the judge with another's face vector", float(np.mean(fall)), 0.1, len(fall))
        yield at_least("rise towards that other", float(np.mean(rise)), 0.0, len(rise))


def sheet_of(cells: list[list[np.ndarray]], columns: int = 5) -> np.ndarray:
    """Clips side by side, ``columns`` per row; every clip is a row of equally large images."""
    clips = [np.concatenate([cv2.resize(image, (_CELL, _CELL)) for image in row], axis=1) for row in cells]
    clips += [np.zeros_like(clips[0])] * (-len(clips) % columns)
    rows = [np.concatenate(clips[n : n + columns], axis=1) for n in range(0, len(clips), columns)]
    return np.concatenate(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training.score", description=__doc__)
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--of", choices=("model", "vae", "copy"), default="model", help="what is scored")
    parser.add_argument("--count", type=int, default=50, help="clips, from the first of the list on")
    parser.add_argument("--size", type=int, default=256, help="side of the frames in pixels")
    parser.add_argument("--steps", type=int, help="instead of the card's")
    parser.add_argument("--guidance", type=float, help="instead of the card's")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to choose settings on")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--swap", action="store_true", help="with another's face vector too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="rows as JSON lines, and the sheet beside them")
    options = parser.parse_args(arguments)
    model = catalogue.open_model(options.model)
    chosen = {"steps": options.steps, "guidance": options.guidance}
    defaults = {**model.defaults, **{key: value for key, value in chosen.items() if value is not None}}
    size = (options.size, options.size)
    count = min(options.count, len(read_list()))
    rows, cells = [], []
    with Engine.open(model, DevicePlan.of(DeviceConfig(device=options.device))) as engine:
        reader = Reader(engine)
        others = [open_clip(entry, options.split, size, reader) for entry in read_list()[: max(count, OTHERS + 1)]]
        vae = loaders(model, torch.float32, "distribution")["vae"]() if options.of == "vae" else None
        for n, clip in enumerate(others[:count]):
            if options.of == "model":
                output = animate(engine, clip, clip.vector, defaults, options.seed)
            else:
                output = [clip.reference] * len(clip.truth) if vae is None else reconstruct(vae, clip)
            row, mean = score_clip(output, clip, reader)
            rivals = [others[(n + k) % len(others)].judged for k in range(1, OTHERS + 1)]
            row = {"clip": n, **row, "best_other": float(max(mean @ other for other in rivals))}
            middle = len(output) // 2
            cells.append([clip.reference, clip.truth[middle].image, output[middle]])
            if options.swap and options.of == "model":
                other = others[(n + 1) % len(others)]
                swapped = animate(engine, clip, other.vector, defaults, options.seed)
                cells[-1].append(swapped[middle])
                if row["reference"] is not None:
                    row |= swap_scores(swapped, mean, clip.judged, other.judged, reader)
            rows.append(row)
            near = float("nan") if row["truth"] is None else row["truth"]
            print(
                f"clip {n:2d}  face {row['face']:5.2f} dB, copying {row['face_copy']:5.2f}; sharpness "
                f"{row['sharpness']:.3f}; judge {near:.3f} in {row['faces']} frames",
                flush=True,
            )
    figures = list(summarise(rows))
    print("\n".join(figure.row() for figure in figures))
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        cv2.imwrite(str(options.out.with_suffix(".png")), sheet_of(cells)[:, :, ::-1])
    return 0 if all(figure.holds for figure in figures) else 8


if __name__ == "__main__":
    sys.exit(main())
