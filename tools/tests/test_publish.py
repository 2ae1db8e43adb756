"""Publishing a training in a copy of the shipped model: it opens, and its card is true; otherwise it is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import schema
from stableanimator_cli.catalogue.download import verify
from stableanimator_cli.errors import BadInput, ModelMissing
from stableanimator_cli.records import NETWORKS
from stableanimator_cli.train import run
from tests.train.clip_folders import write_clip
from tools import publish as module
from tools.publish import publish
from tools.puppet_training.texture import texture_limit

STEPS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that started from ``models/puppet``."""
    place = tmp_path_factory.mktemp("trained")
    write_clip(place / "data" / "clip", 4)
    torch.set_num_threads(1)
    run.run(
        flags={
            "dataset": [place / "data"], "model": "puppet", "output": place / "run", "steps": STEPS, "frames": 1,
            "sizes": "64x64", "warmup": 0, "rate": 1e-3, "train": "adapters", "save_every": STEPS, "workers": 0,
            "device": "cpu", "checkpointing": "off", "seed": 7,
        }
    )  # fmt: skip
    return place / "run"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("copied") / "puppet"
    shutil.copytree(catalogue.entry("puppet").folder, target)
    return target


@pytest.fixture
def folder(copied: Path, tmp_path: Path) -> Path:
    """A copy of ``models/puppet`` made of links: publishing replaces files and never writes into one."""
    target = tmp_path / "puppet"
    shutil.copytree(copied, target, copy_function=os.link)
    return target


def test_a_run_is_published_in_the_folder_that_it_started_from(trained: Path, copied: Path, folder: Path) -> None:
    original = catalogue.entry("puppet")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written = publish(trained, folder)
    assert [path.name for path in written if path.suffix == ".safetensors"] == [
        "unet.safetensors", "pose_net.safetensors", "face_encoder.safetensors",
    ]  # fmt: skip

    after = schema.read(folder)
    checks = verify(after)
    assert [check.status for check in checks] == ["ok"] * len(original.files)
    assert {row.path for row in after.files} == {row.path for row in original.files}
    assert (after.name, after.licence_note, after.components) == (
        original.name,
        original.licence_note,
        original.components,
    )
    assert after.defaults == original.defaults
    assert dict(after.training) == {
        "recipe": "own", "steps": STEPS, "samples": STEPS, "stage": "train", "train": "adapters", "seed": 7,
        "face_mask": "released", "face_encoder": "on", "id_adapter": "distribution", "face": "on", "ema": 0.0,
    }  # fmt: skip

    model = catalogue.open_model(folder, NETWORKS)
    mine, theirs = load_file(model.files["unet"]), load_file(trained / "model" / "unet.safetensors")
    assert {tensor.dtype for tensor in mine.values()} == {torch.float16}
    assert all(torch.equal(mine[name], theirs[name].half()) for name in theirs)
    assert any(
        not torch.equal(mine[name], old) for name, old in load_file(original.folder / "unet.safetensors").items()
    )
    changed = {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.read_bytes() != before[path.relative_to(folder)]
    }
    assert {"unet.safetensors", "model.toml"} <= changed <= {path.name for path in written} | {"model.toml"}
    assert all(check.status == "ok" for check in verify(schema.read(copied)))  # the links led nowhere
    assert [path.name for path in folder.parent.iterdir()] == ["puppet"]

    publish(trained, folder)  # again: the same
    assert schema.read(folder) == after


def _renamed(folder: Path) -> None:
    _edit(folder, 'file = "unet.safetensors"', 'file = "other.safetensors"')


def _downloaded(folder: Path) -> None:
    _edit(folder, 'path = "judge.onnx"', 'path = "judge.onnx"\nurl = "https://example.com/judge.onnx"')


def _missing_file(folder: Path) -> None:
    (folder / "judge.onnx").unlink()


def _other_vae(folder: Path) -> None:
    (folder / "vae.safetensors").unlink()
    shutil.copyfile(folder / "pose_net.safetensors", folder / "vae.safetensors")
    _edit(
        folder,
        f"bytes = {catalogue.entry('puppet').file('vae.safetensors').bytes}",
        f"bytes = {(folder / 'vae.safetensors').stat().st_size}",
    )


def _other_adapters(folder: Path) -> None:
    _edit(folder, 'id_adapter = "distribution"\npreset', 'id_adapter = "addition"\npreset')


def _training_first(folder: Path) -> None:
    _edit(folder, "[[files]]", '[[archives]]\npath = "a.zip"\nurl = "https://example.com/a.zip"\n\n[[files]]')


def _edit(folder: Path, old: str, new: str) -> None:
    card = folder / "model.toml"
    text = card.read_text()
    assert old in text
    card.unlink()  # other tests link to it too
    card.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_renamed, r"model.toml: found unet in other.safetensors with config unet.json, expected unet.safetensors"),
        (_downloaded, r"model.toml: found judge.onnx, which is downloaded, expected files of this folder alone"),
        (_missing_file, r"judge.onnx: found nothing, expected a file that the card lists"),
        (_other_vae, r"puppet: found another vae than \S+ was trained with, expected the same network"),
        (_other_adapters, r"puppet: found ID adapters of kind 'addition', expected 'distribution'"),
        (_training_first, r"model.toml: found archives below \[training\]"),
    ],
)
def test_a_folder_whose_card_would_be_false_is_refused(
    spoil: Callable[[Path], None], expected: str, trained: Path, folder: Path
) -> None:
    spoil(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(BadInput, match=expected) as caught:
        publish(trained, folder)
    assert caught.value.hint
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir()] == ["puppet"]


def test_an_invalid_run_or_folder_is_refused(
    trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelMissing, match=r"model.toml: not found"):
        publish(trained, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no checkpoint"):
        publish(tmp_path / "empty", folder)
    assert module.exit_code_of(lambda: module.main([str(tmp_path / "empty"), str(folder)])) == 3
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'empty'}: found no checkpoint")


def test_a_new_decoder_is_published_and_another_encoder_is_refused(
    copied: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "texture_limit", lambda folder: texture_limit(folder, 2))
    tensors = load_file(copied / "vae.safetensors")
    decoder = {name: tensor + name.startswith("decoder.") for name, tensor in tensors.items()}
    save_file(decoder, tmp_path / "decoder.safetensors")
    assert module.publish_decoder(tmp_path / "decoder.safetensors", folder) == folder / "vae.safetensors"
    verify(schema.read(folder))
    assert torch.equal(
        load_file(folder / "vae.safetensors")["decoder.conv_in.bias"], tensors["decoder.conv_in.bias"] + 1
    )

    save_file({**decoder, "quant_conv.bias": tensors["quant_conv.bias"] + 1}, tmp_path / "other.safetensors")
    published = (folder / "vae.safetensors").read_bytes()
    with pytest.raises(BadInput, match=r"another quant_conv\.bias"):
        module.publish_decoder(tmp_path / "other.safetensors", folder)
    del decoder["decoder.conv_in.bias"]
    save_file(decoder, tmp_path / "fewer.safetensors")
    with pytest.raises(BadInput, match=r"another decoder\.conv_in\.bias"):
        module.publish_decoder(tmp_path / "fewer.safetensors", folder)
    assert (folder / "vae.safetensors").read_bytes() == published
