"""Weight files: read strictly and by name, never by running a pickle's code, and damage is said in one line."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stableanimator_cli.catalogue import open_model
from stableanimator_cli.engine.weights import builders, convert_to_safetensors, load, loaders, read_tensors
from stableanimator_cli.errors import ModelDamaged, ModelMissing
from stableanimator_cli.records import NETWORKS
from tests.random_model import TINY, weights
from tests.tiny import engine_of, rendered, request

POSE_NET = weights("pose_net", TINY, 0, torch.float32)


def pose_net(folder: Path):
    return builders(open_model(folder), "distribution")["pose_net"]


def one_line(error: ModelDamaged, *words: str) -> None:
    assert error.exit_code == 5
    assert "\n" not in error.message
    assert error.hint
    for word in words:
        assert word in error.message


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_holds_the_files_numbers_frozen_and_in_evaluation(tiny_model, name):
    model = open_model(tiny_model)
    network = loaders(model, torch.float32, "distribution")[name]()
    stored = load_file(model.files[name])
    held = network.state_dict()
    assert set(held) == set(stored)
    assert all(torch.equal(held[key], stored[key]) for key in stored)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(t.is_meta for t in (*network.parameters(), *network.buffers()))


def test_weights_are_cast_to_the_plans_type(tiny_model):
    network = loaders(open_model(tiny_model), torch.bfloat16, "distribution")["pose_net"]()
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "1 missing tensor(s), first conv_layers.0.bias"),
        ("extra", "1 tensor(s) too many, first more"),
        ("misshapen", "1 of a wrong shape, first scale: [2], expected [1]"),
        ("quantized", "1 tensor(s) are no floating-point numbers, first scale: int8"),
    ],
)
def test_what_does_not_fit_the_network_names_file_and_first_tensor(tmp_path, tiny_model, change, words):
    tensors = dict(POSE_NET)
    if change == "missing":
        del tensors["conv_layers.0.bias"]
    elif change == "extra":
        tensors["more"] = torch.zeros(1)
    elif change == "quantized":
        tensors["scale"] = torch.ones(1, dtype=torch.int8)
    else:
        tensors["scale"] = torch.zeros(2)
    path = tmp_path / "pose_net.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelDamaged) as caught:
        load(pose_net(tiny_model), path, torch.float32)
    one_line(caught.value, str(path), words)


def test_all_faults_are_counted_together(tmp_path, tiny_model):
    path = tmp_path / "pose_net.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in POSE_NET.items()}, path)
    with pytest.raises(ModelDamaged) as caught:
        load(pose_net(tiny_model), path, torch.float32)
    one_line(caught.value, "19 missing tensor(s)", "19 tensor(s) too many, first module.")


class Trap:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, legacy):
    path, trap = tmp_path / "unet.pth", tmp_path / "sprung"
    torch.save({"weight": torch.zeros(2), "x": Trap(trap)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelDamaged) as caught:
        read_tensors(path)
    one_line(caught.value, str(path), "holds Python objects besides tensors")
    assert not trap.exists()
    with path.open("rb") as file:  # the trap works: it is not the test that is blunt
        torch.load(file, weights_only=False)
    assert trap.is_dir()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "face_encoder.pth"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ModelDamaged):
        read_tensors(path)
    assert not (tmp_path / "sprung").exists()


def test_a_face_encoder_has_the_widths_that_its_neighbours_have(tiny_model):
    """A download in the reference's layout brings no config for it: the catalogue's full size would not fit."""
    model = open_model(tiny_model)
    wide = replace(model, configs={**model.configs, "face_encoder": {"cross_attention_dim": 1024, "num_tokens": 2}})
    config = builders(wide, "distribution")["face_encoder"]().config
    assert (config.cross_attention_dim, config.clip_embeddings_dim, config.num_tokens) == (64, 64, 2)


@pytest.mark.parametrize("form", ["safetensors", "pth", "legacy.pth"])
@pytest.mark.parametrize("kept", [0.0, 0.0005, 0.002, 0.3, 0.99])
def test_a_file_that_is_cut_says_so(tmp_path, form, kept):
    path = tmp_path / f"pose_net.{form}"
    if form == "safetensors":
        save_file(POSE_NET, path)
    else:
        torch.save(POSE_NET, path, _use_new_zipfile_serialization=form == "pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ModelDamaged) as caught:
        read_tensors(path)
    one_line(caught.value, str(path), "cannot be read as weights")


@pytest.mark.parametrize("name", ["unet.pth", "unet.safetensors", "unet.bin"])
def test_a_page_saved_in_place_of_weights_is_not_called_a_pickle_with_code(tmp_path, name):
    path = tmp_path / name
    path.write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    with pytest.raises(ModelDamaged) as caught:
        read_tensors(path)
    one_line(caught.value, str(path), "cannot be read as weights")


def test_a_file_from_before_torch_1_6_whose_table_of_storages_is_damaged(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    (key,) = set(re.findall(rb"\d{10,}", path.read_bytes()))
    path.write_bytes(path.read_bytes().replace(key, b"9" * len(key), 1))  # torch raises an AssertionError
    with pytest.raises(ModelDamaged) as caught:
        read_tensors(path)
    one_line(caught.value, str(path), "cannot be read as weights")


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    path = tmp_path / "unet.pth"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ModelDamaged, match="not a state dict"):
        read_tensors(path)
    torch.save({"unet": {"a": torch.zeros(2)}}, path)
    with pytest.raises(ModelDamaged, match="not a state dict"):
        read_tensors(path)


def test_a_missing_file_is_missing_not_damaged(tmp_path):
    with pytest.raises(ModelMissing, match=r"unet\.pth is missing"):
        read_tensors(tmp_path / "unet.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_conversion_keeps_every_tensor_and_leaves_nothing_else(tmp_path, legacy):
    source, target = tmp_path / "pose_net.pth", tmp_path / "pose_net.safetensors"
    turned = {"turned": torch.arange(6.0).view(2, 3).T, "shared": POSE_NET["scale"], "half": torch.zeros(3).half()}
    tensors = POSE_NET | turned
    torch.save(tensors, source, _use_new_zipfile_serialization=not legacy)
    source.chmod(0o644)
    convert_to_safetensors(source, target)
    back = load_file(target)
    assert set(back) == set(tensors)
    assert all(torch.equal(back[key], tensors[key]) and back[key].dtype == tensors[key].dtype for key in tensors)
    assert target.stat().st_mode & 0o777 == 0o644
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pose_net.pth", "pose_net.safetensors"]


def test_a_conversion_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"a": torch.ones(2)}, source)
    target.write_bytes(b"before")

    def broken(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("stableanimator_cli.engine.weights.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        convert_to_safetensors(source, target)
    assert target.read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]


def test_the_references_layout_gives_the_same_frames_as_the_model_folder(tiny_model, upstream_model):
    with engine_of(tiny_model) as ours, engine_of(upstream_model) as theirs:
        assert theirs.model.files["unet"].suffix == ".pth"
        assert (rendered(ours, request(5)) == rendered(theirs, request(5))).all()


def test_a_config_that_is_not_there_is_named(tmp_path, tiny_model):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    text = (folder / "model.toml").read_text().replace('config = "vae.json"\n', "")
    (folder / "model.toml").write_text(text)
    with pytest.raises(ModelDamaged, match="no config for vae"), engine_of(folder) as engine:
        rendered(engine, request(2))


def test_a_zip_of_something_else_is_no_weights(tmp_path):
    path = tmp_path / "unet.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelDamaged, match="cannot be read as weights"):
        read_tensors(path)
