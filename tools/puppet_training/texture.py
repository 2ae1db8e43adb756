"""The texture error of drawn images under the small model's VAE: the limit that its card records.

``python -m tools.puppet_training.texture [FOLDER]`` measures figures of the validation split, also as JPEG files of low
quality, and writes ``max_texture_error`` of FOLDER (default ``models/puppet``): 1.25 times the greatest.
``sa animate`` refuses references above it, photographs for instance.
"""

from __future__ import annotations

import argparse
import re
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import FILE_NAME
from stableanimator_cli.engine.conditioning import texture_error
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.files import atomic_write
from stableanimator_cli.puppets.scene import sample_scene
from tools.command import exit_code_of
from tools.puppet_training.figures import FRAMINGS
from tools.puppet_training.heldout import SIZE
from tools.puppet_training.model import BASE

_FIRST, _MARGIN, _QUALITY = 50_000, 1.25, 50


def texture_limit(folder: Path, count: int = 60) -> float:
    """1.25 times the greatest texture error of ``count`` references, drawn and as JPEG."""
    vae: Any = loaders(catalogue.open_model(folder, ("vae",)), torch.float32, "distribution")["vae"]()
    errors = []
    for n in range(count):
        scene = sample_scene("val", _FIRST + n, framing=FRAMINGS[n % len(FRAMINGS)], size=SIZE, clip=n)
        image = scene.reference().image
        with torch.no_grad():
            errors += [texture_error(vae, each) for each in (image, _jpeg(image))]
    return round(_MARGIN * max(errors), 2)


def _jpeg(image: np.ndarray) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=_QUALITY)
    return np.asarray(Image.open(stream))


def record_limit(folder: Path, limit: float) -> None:
    """Set ``max_texture_error`` in the card of ``folder``, below its channel order."""
    card = folder / FILE_NAME
    text = re.sub(r"^max_texture_error = .*\n", "", card.read_text(encoding="utf-8"), flags=re.MULTILINE)
    line = f"max_texture_error = {limit:g}\n"
    text, changed = re.subn(r"^(face_channel_order = .*\n)", rf"\g<1>{line}", text, count=1, flags=re.MULTILINE)
    if not changed:
        raise SystemExit(f"{card}: no line face_channel_order to write below")
    with atomic_write(card) as temp:
        temp.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=BASE)
    options = parser.parse_args(arguments)
    limit = texture_limit(options.folder)
    record_limit(options.folder, limit)
    sys.stdout.write(f"{limit:g}\n")


if __name__ == "__main__":
    sys.exit(exit_code_of(main, resumes=False))
