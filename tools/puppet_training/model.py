"""The initial model folder of a training at 256x256: ``models/puppet`` with other weights and another size.

``python -m tools.puppet_training.model OUT --vae FILE [--denoiser FOLDER]``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.figure_networks.detectors import write_digests

BASE = Path("models/puppet")
SIZE, STEPS = "256x256", 10


def write_model(out: Path, vae: Path, denoiser: Path | None = None) -> Path:
    """Copy ``models/puppet`` to ``out`` with the VAE ``vae`` and the denoiser's files of ``denoiser``."""
    shutil.copytree(BASE, out, ignore=shutil.ignore_patterns("training", "CARD.md"))
    shutil.copyfile(vae, out / "vae.safetensors")
    (out / "vae.safetensors").chmod(0o644)
    if denoiser is not None:
        for role in ("unet", "pose_net", "face_encoder"):
            for suffix in ("safetensors", "json"):
                shutil.copyfile(denoiser / f"{role}.{suffix}", out / f"{role}.{suffix}")
    card = out / "model.toml"
    text = card.read_text(encoding="utf-8").replace('size = "128x128"\nsteps = 3', f'size = "{SIZE}"\nsteps = {STEPS}')
    card.write_text(text.partition("[training]")[0] + "[[files]]" + text.partition("[[files]]")[2], encoding="utf-8")
    write_digests(out, [])
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.puppet_training.model", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--denoiser", type=Path, help="a model folder whose UNet, PoseNet and Face Encoder to take")
    options = parser.parse_args(arguments)
    write_model(options.out, options.vae, options.denoiser)


if __name__ == "__main__":
    sys.exit(main())
