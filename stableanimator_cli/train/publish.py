"""A training's networks into the model folder that it began from: how ``make puppet`` ends.

``python -m stableanimator_cli.train.publish RUN FOLDER`` puts UNet, PoseNet and Face Encoder of RUN's best checkpoint
(the last where nothing was validated) into FOLDER as float16, with their configs, the ``[training]`` table and digests.
What else FOLDER holds stays as it is; ``sa train --export`` makes a new folder instead.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stableanimator_cli import catalogue_schema
from stableanimator_cli.motion.interchange import appearing
from stableanimator_cli.puppets.train_detectors import guarded, write_digests
from stableanimator_cli.train.base import table_text
from stableanimator_cli.train.export import TRAINED, export


def publish(run: Path, folder: Path) -> list[Path]:
    """Write the three networks; returns their files. Raises ``BadInput`` where ``run`` has no checkpoint or ``folder``
    no ``model.toml``."""
    catalogue_schema.read(folder)  # nothing is written beside a card that does not read
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        whole = Path(place) / folder.name
        export(run, "model", whole, "float16")
        training = catalogue_schema.read(whole).training
        written = []
        for role in TRAINED:
            for name in (f"{role}.json", f"{role}.safetensors"):
                shutil.move(whole / name, folder / name)
                written.append(folder / name)
    card = folder / catalogue_schema.FILE_NAME
    head = card.read_text(encoding="utf-8").partition("[[files]]")[0].partition("[training]")[0].rstrip()
    with appearing(card) as part:
        part.write_text(f"{head}\n\n{table_text('training', training)}", encoding="utf-8")
    files = [*(path for path in written if path.suffix != ".json"), *_others(folder)]
    write_digests(folder, files)
    return written


def _others(folder: Path) -> list[Path]:
    """All files of the folder that are held by digest: networks, in any depth."""
    return [path for kind in ("*.onnx", "*.safetensors") for path in sorted(folder.rglob(kind))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run of `sa train`")
    parser.add_argument("folder", type=Path, help="the model folder whose networks are replaced")
    options = parser.parse_args(arguments)
    for path in publish(options.run, options.folder):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
