"""A training's networks into the model folder that it began from: how ``make puppet`` ends.

``python -m tools.publish RUN FOLDER`` puts UNet, PoseNet and Face Encoder of RUN's best checkpoint
(the last where nothing was validated) into FOLDER as float16, with their configs, the ``[training]`` table and digests.
What else FOLDER holds stays as it is; ``sa train --export`` makes a new folder instead.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import schema
from stableanimator_cli.catalogue.schema import Component, Entry
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import atomic_write, sha256_of, translate_os_errors
from stableanimator_cli.train.base_model import table_text
from stableanimator_cli.train.export import TRAINED, export
from tools.command import exit_code_of
from tools.figure_networks.detectors import write_digests

_KEPT = ("vae", "image_encoder")  # what the three were trained beside


def publish(run: Path, folder: Path) -> list[Path]:
    """Write the three networks; returns their files. All is made ready beside ``folder`` before anything in it changes.

    Raises ``BadInput`` where ``run`` has no checkpoint, or where ``folder`` would not be what its card says: other
    names for the networks, files that are fetched or missing, another VAE or image encoder or ID adapter than ``run``
    was trained with. ``ModelMissing`` and ``ModelDamaged`` where ``folder`` is no model folder.
    """
    head = _head(schema.read(folder))
    with translate_os_errors(folder), tempfile.TemporaryDirectory(prefix=".publish.", dir=folder.parent) as place:
        whole = Path(place) / folder.name
        export(run, "model", whole, "float16")
        _check_fits(run, whole, folder)
        training = schema.read(whole).training
        written = []
        for role in TRAINED:
            for name in (f"{role}.json", f"{role}.safetensors"):
                os.replace(whole / name, folder / name)
                written.append(folder / name)
    card = folder / schema.FILE_NAME
    with atomic_write(card) as part, translate_os_errors(card):
        part.write_text(f"{head}\n\n{table_text('training', training)}", encoding="utf-8")
    files = [*(path for path in written if path.suffix != ".json"), *_others(folder)]
    write_digests(folder, files)
    return written


def _head(entry: Entry) -> str:
    """The card's text above ``[training]`` and ``[[files]]``, which are rewritten. ``BadInput`` where the card would
    not be true then."""
    path = entry.folder / schema.FILE_NAME
    hint = "`sa train --resume RUN --export model -o FOLDER` makes a folder of its own"
    for role in TRAINED:
        expected = Component(file=f"{role}.safetensors", config=f"{role}.json")
        found = entry.components.get(role, Component())
        if found != expected:
            actual = f"{role} in {found.file} with config {found.config}"
            raise BadInput(path, actual, f"{expected.file} with {expected.config}", hint=hint)
    for row in entry.files:
        if row.url is not None or row.archive is not None:
            raise BadInput(path, f"{row.path}, which is fetched", "files of this folder alone", hint=hint)
        if not (entry.folder / row.path).is_file():
            raise BadInput(entry.folder / row.path, "nothing", "a file that the card lists", hint="put it back")
    text = path.read_text(encoding="utf-8")
    head = text.partition("[[files]]")[0].partition("[training]")[0].rstrip()
    lost = tomllib.loads(text).keys() - tomllib.loads(head).keys() - {"training", "files"}
    if lost:
        raise BadInput(path, f"{', '.join(sorted(lost))} below [training]", "[training] and [[files]] last", hint=hint)
    return head


def _check_fits(run: Path, whole: Path, folder: Path) -> None:
    """The networks in ``whole`` are of use with what stays in ``folder``."""
    trained, here = catalogue.open_model(whole), catalogue.open_model(folder, _KEPT)
    for role in _KEPT:
        if sha256_of(trained.files[role]) != sha256_of(here.files[role]):
            hint = "publish into the folder that the run began from, or make one with `sa train --resume RUN --export`"
            raise BadInput(folder, f"another {role} than {run} was trained with", "the same network", hint=hint)
    adapters = [model.defaults.get("id_adapter", "distribution") for model in (trained, here)]
    if adapters[0] != adapters[1]:
        hint = "set id_adapter under [defaults] of its model.toml, or publish a run that was trained so"
        raise BadInput(folder, f"ID adapters that are {adapters[1]!r}", f"{adapters[0]!r} as {run} has them", hint=hint)


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
    sys.exit(exit_code_of(main))
