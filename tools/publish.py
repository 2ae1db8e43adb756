"""Publish the networks of a training in the model folder that it started from.

This is the last step of ``make puppet``. ``python -m tools.publish RUN FOLDER`` writes UNet, PoseNet and Face Encoder
of RUN's best checkpoint (the last one if none was validated) into FOLDER: float16 weights, configs, the ``[training]``
table and digests. Other files of FOLDER stay as they are. ``sa train --export`` makes a new folder instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import torch

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import schema
from stableanimator_cli.catalogue.schema import Component, Entry
from stableanimator_cli.engine.training.trainable import TRAINED
from stableanimator_cli.engine.weights import read_tensors
from stableanimator_cli.errors import BadInput
from stableanimator_cli.files import atomic_write, sha256_of, translate_os_errors
from stableanimator_cli.progress import NullReporter
from stableanimator_cli.train.base_model import table_text
from stableanimator_cli.train.export import export
from tools.command import exit_code_of
from tools.figure_networks.detectors import write_digests
from tools.puppet_training.texture import record_limit, texture_limit

VAE = "vae.safetensors"
_FROZEN = ("vae", "image_encoder")  # the networks that the three were trained with


def publish(run: Path, folder: Path, vae: Path | None = None) -> list[Path]:
    """Write the three networks, and the weights ``vae`` that they were trained with if these are new.

    Returns the files. Everything is prepared beside ``folder`` before it changes.

    Raises ``BadInput`` if ``run`` has no checkpoint, or if ``folder`` would no longer match its card: other names of
    the networks, files that are downloaded or missing, another VAE, image encoder or ID adapter than in the training.
    Raises ``ModelMissing`` or ``ModelDamaged`` if ``folder`` is no model folder.
    """
    head = _head(schema.read(folder))
    with translate_os_errors(folder), tempfile.TemporaryDirectory(prefix=".publish.", dir=folder.parent) as temp:
        exported = Path(temp) / folder.name
        export(run, "model", exported, "float16", NullReporter())
        _check_fits(run, exported, folder, vae)
        training = schema.read(exported).training
        written = []
        for role in TRAINED:
            for name in (f"{role}.json", f"{role}.safetensors"):
                os.replace(exported / name, folder / name)
                written.append(folder / name)
        if vae is not None:
            shutil.copyfile(vae, exported / VAE)
            os.replace(exported / VAE, folder / VAE)
    card = folder / schema.FILE_NAME
    with atomic_write(card) as temp_card, translate_os_errors(card):
        temp_card.write_text(f"{head}\n\n{table_text('training', training)}", encoding="utf-8")
    if vae is not None:
        record_limit(folder, texture_limit(folder))
    files = [*(path for path in written if path.suffix != ".json"), *_network_files(folder)]
    write_digests(folder, files)
    return written


def publish_decoder(weights: Path, folder: Path) -> Path:
    """Replace the VAE of ``folder`` by ``weights``, whose decoder alone was trained; returns the file.

    Raises ``BadInput`` if ``weights`` has another encoder: latents would no longer be those of the denoiser.
    """
    path = folder / VAE
    new, current = read_tensors(weights), read_tensors(path)
    frozen = [name for name in current if not name.startswith("decoder.")]
    changed = [name for name in frozen if name not in new or not torch.equal(new[name].half(), current[name].half())]
    if changed or new.keys() != current.keys():
        name = min([*changed, *(new.keys() ^ current.keys())])
        hint = "a new VAE needs a denoiser that was trained with it: python -m tools.puppet_training --train-vae"
        raise BadInput(weights, f"another {name}", f"the encoder of {path} and a decoder of the same shapes", hint=hint)
    with atomic_write(path) as temp:
        shutil.copyfile(weights, temp)
    write_digests(folder, [path])
    record_limit(folder, texture_limit(folder))
    return path


def _head(entry: Entry) -> str:
    """The card's text above ``[training]`` and ``[[files]]``, which are rewritten.

    Raises ``BadInput`` if the card would not be true afterwards.
    """
    path = entry.folder / schema.FILE_NAME
    hint = "`sa train --resume RUN --export model -o FOLDER` makes a new folder"
    for role in TRAINED:
        expected = Component(file=f"{role}.safetensors", config=f"{role}.json")
        component = entry.components.get(role, Component())
        if component != expected:
            actual = f"{role} in {component.file} with config {component.config}"
            raise BadInput(path, actual, f"{expected.file} with {expected.config}", hint=hint)
    for row in entry.files:
        if row.url is not None or row.archive is not None:
            raise BadInput(path, f"{row.path}, which is downloaded", "files of this folder alone", hint=hint)
        if not (entry.folder / row.path).is_file():
            raise BadInput(entry.folder / row.path, "nothing", "a file that the card lists", hint="restore it")
    text = path.read_text(encoding="utf-8")
    head = text.partition("[[files]]")[0].partition("[training]")[0].rstrip()
    lost = tomllib.loads(text).keys() - tomllib.loads(head).keys() - {"training", "files"}
    if lost:
        raise BadInput(path, f"{', '.join(sorted(lost))} below [training]", "[training] and [[files]] last", hint=hint)
    return head


def _check_fits(run: Path, exported: Path, folder: Path, vae: Path | None) -> None:
    """Check that the networks in ``exported`` fit the other ones of ``folder``."""
    trained, current = catalogue.open_model(exported), catalogue.open_model(folder, _FROZEN)
    beside = dict(current.files) | ({} if vae is None else {"vae": vae})
    for role in _FROZEN:
        if sha256_of(trained.files[role]) != sha256_of(beside[role]):
            hint = (
                "publish into the folder that the run started from, or make one with `sa train --resume RUN --export`"
            )
            raise BadInput(folder, f"another {role} than {run} was trained with", "the same network", hint=hint)
    adapters = [model.defaults.get("id_adapter", "distribution") for model in (trained, current)]
    if adapters[0] != adapters[1]:
        hint = "set id_adapter under [defaults] of its model.toml, or publish a run with the same adapters"
        raise BadInput(folder, f"ID adapters of kind {adapters[1]!r}", f"{adapters[0]!r} as in {run}", hint=hint)


def _network_files(folder: Path) -> list[Path]:
    """All networks below the folder; the card has their digests."""
    return [path for kind in ("*.onnx", "*.safetensors") for path in sorted(folder.rglob(kind))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", metavar="RUN", type=Path, help="a run of `sa train`")
    parser.add_argument("folder", type=Path, help="the model folder whose networks are replaced")
    parser.add_argument("--decoder", action="store_true", help="RUN is a file of tools.puppet_training.decoder")
    options = parser.parse_args(arguments)
    if options.decoder:
        sys.stdout.write(f"{publish_decoder(options.run, options.folder)}\n")
        return
    for path in publish(options.run, options.folder):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
