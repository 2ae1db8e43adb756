"""Measure the reconstruction by the puppet model's VAE on unseen figures, as stills and as clips.

``python -m tools.bench.puppet_decoder [--model FOLDER] [--count N]`` encodes frames of the test split at 128x128 and
decodes the posterior's mean, singly and in clips of eight. Exits with code 8 below 29 dB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from stableanimator_cli import catalogue
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.puppets.scene import sample_scene
from tools.bench.puppet_figures import Figure, at_least
from tools.command import exit_code_of, positive
from tools.figure_networks.data import CLIP_FRAMES, CLIP_SIDE

MARK = 29.0
_FIRST = 50_000


def psnr(error: np.ndarray) -> float:
    """PSNR in decibels of an error in 0..255, over all its pixels."""
    return float(10 * np.log10(255**2 / max(float(np.square(error, dtype=np.float64).mean()), 1e-9)))


def clips(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames uint8[8,128,128,3] and face boxes [8,4] of unseen people: half bodies, and every third a full one."""
    for n in range(count):
        framing = ("half", "whole")[n % 3 == 2]
        scene = sample_scene("test", _FIRST + n, framing=framing, size=(CLIP_SIDE, CLIP_SIDE), clip=5)
        frames = [scene.frame(17.0 * n + t) for t in range(CLIP_FRAMES)]
        yield np.stack([frame.image for frame in frames]), np.stack([frame.face_boxes[0] for frame in frames])


def load(folder: str) -> nn.Module:
    """The VAE of a catalogue entry or a model folder, in float32."""
    return loaders(catalogue.open_model(folder), torch.float32, "distribution")["vae"]()


def figures(vae: Any, count: int) -> Iterator[Figure]:
    """PSNR of frames and of faces for stills and clips, and the deviation of the scaled latents."""
    errors: dict[str, list[np.ndarray]] = {"stills": [], "clips of 8": []}
    faces: dict[str, list[np.ndarray]] = {name: [] for name in errors}
    latents = []
    for images, boxes in clips(count):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        mean = vae.encode(pixels).latent_dist.mean
        latents.append(mean * vae.config["scaling_factor"])
        for name, length in (("stills", 1), ("clips of 8", CLIP_FRAMES)):
            decoded = vae.decode(mean, num_frames=length).sample.permute(0, 2, 3, 1).numpy()
            error = (decoded.clip(-1, 1) + 1) * 127.5 - images
            errors[name].append(error)
            for one, box in zip(error, boxes, strict=True):
                if not np.isnan(box).any():
                    x0, y0, x1, y1 = box.astype(int)
                    faces[name].append(one[y0 : y1 + 1, x0 : x1 + 1].reshape(-1))
    for name, frames in errors.items():
        yield at_least(f"{name}, dB", psnr(np.stack(frames)), MARK, count * CLIP_FRAMES)
        yield at_least(f"{name}, dB within faces", psnr(np.concatenate(faces[name])), None, len(faces[name]))
    stacked = torch.cat(latents)
    deviation = stacked.std(dim=(0, 2, 3))
    yield at_least("latents, deviation of all", float(stacked.square().mean().sqrt()), 0.8, stacked.numel())
    yield at_least("latents, minimum deviation of a channel", float(deviation.min()), None, len(deviation))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.puppet_decoder", description=__doc__)
    parser.add_argument("--model", default="puppet", help="catalogue name or folder")
    parser.add_argument("--count", type=positive, default=24, help="clips")
    options = parser.parse_args(arguments)
    missed = False
    for figure in figures(load(options.model), options.count):
        missed |= not figure.holds
        sys.stdout.write(figure.row() + "\n")
    return 8 if missed else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main, resumes=False))
