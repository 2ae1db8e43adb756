"""CLIP, DINO and V-JEPA are read from files as they are published, and compute what a forward pass by hand does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from stableanimator_cli import catalogue
from stableanimator_cli.engine.metric_networks import Features, _vit_name, features
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.metrics.result import Missing
from stableanimator_cli.nets.vjepa import VJepaConfig, VJepaEncoder, VJepaPooler, encoder_tensors, pooler_tensors
from tests.nets import vit_nets
from tests.tiny import CPU


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))


def model_folder(folder: Path, files: dict[str, tuple[str, Any]], configs: dict[str, vit_nets.Config]) -> Path:
    """A model folder of role -> (file name, what torch saves there), with a config for some roles."""
    folder.mkdir()
    lines = ['name = "mine"', 'task = "metric"']
    for role, (name, content) in files.items():
        torch.save(content, folder / name)
        lines += ["", f"[components.{role}]", f'file = "{name}"']
        if role in configs:
            (folder / f"{role}.json").write_text(json.dumps(dict(configs[role])))
            lines.append(f'config = "{role}.json"')
    (folder / "model.toml").write_text("\n".join([*lines, ""]))
    return folder


def clip_folder(folder: Path, tensors: vit_nets.Tensors) -> Path:
    content = tensors | vit_nets.clip_rest()
    return model_folder(folder, {"clip_image": ("pytorch_model.bin", content)}, {"clip_image": vit_nets.CLIP})


def dino_folder(folder: Path, tensors: vit_nets.Tensors) -> Path:
    return model_folder(folder, {"dino": ("pytorch_model.bin", tensors)}, {"dino": vit_nets.DINO})


def vjepa_folder(folder: Path, encoder: Any, probe: Any) -> Path:
    state = {"epoch": 9, "opt": {"state": {0: {"step": 3.0}}}, "scaler": None, "loss": 0.1}
    files = {
        "vjepa_encoder": ("vith16.pth.tar", {"encoder": {"x": torch.ones(1)}, "target_encoder": encoder, **state}),
        "vjepa_probe": ("ssv2-probe.pth.tar", {"classifier": probe, **state}),
    }
    return model_folder(folder, files, {"vjepa_encoder": vit_nets.VJEPA})


def opened(name: str, folder: Path) -> Features:
    found = features(name, CPU, model=folder)
    assert isinstance(found, Features)
    return found


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 224, 224)).astype(np.float32)


def assert_equal(actual: np.ndarray, expected: torch.Tensor) -> None:
    assert expected.std() > 0.05
    np.testing.assert_allclose(actual, expected.numpy(), rtol=2e-4, atol=2e-5)


def test_clip_of_the_hubs_file_is_the_forward_pass_by_hand(tmp_path):
    tensors = vit_nets.random(vit_nets.clip_shapes(vit_nets.CLIP))
    network = opened("clip_image", clip_folder(tmp_path / "clip", tensors))
    assert_equal(network(images(3)), vit_nets.clip_by_hand(tensors, vit_nets.CLIP, torch.from_numpy(images(3))))
    assert list(network.about["files"]) == ["pytorch_model.bin"]


def test_dino_of_the_hubs_file_is_the_forward_pass_by_hand(tmp_path):
    tensors = vit_nets.random(vit_nets.dino_shapes(vit_nets.DINO), seed=1)
    network = opened("dino", dino_folder(tmp_path / "dino", tensors))
    assert_equal(network(images(3)), vit_nets.dino_by_hand(tensors, vit_nets.DINO, torch.from_numpy(images(3))))


def test_vjepa_of_two_checkpoints_is_the_forward_pass_by_hand(tmp_path):
    encoder = vit_nets.random(vit_nets.vjepa_shapes(vit_nets.VJEPA), seed=2)
    probe = vit_nets.random(vit_nets.probe_shapes(vit_nets.VJEPA), seed=3)
    network = opened("vjepa", vjepa_folder(tmp_path / "vjepa", encoder, probe))
    clips = np.random.default_rng(1).standard_normal((2, 16, 3, 224, 224)).astype(np.float32)
    expected = vit_nets.vjepa_by_hand(encoder, probe, vit_nets.VJEPA, torch.from_numpy(clips).transpose(1, 2))
    assert_equal(network(clips), expected)
    assert sorted(network.about["files"]) == ["ssv2-probe.pth.tar", "vith16.pth.tar"]


def test_networks_of_the_real_size_have_the_published_names_and_shapes():
    clip, dino, vjepa = (
        json.loads((catalogue.entry(name).folder / file).read_text())
        for name, file in (("clip-vit-base-patch32", "image_encoder.json"), ("dino-vits16", "vit.json"),
                           ("vjepa-vith16", "encoder.json"))
    )  # fmt: skip
    with torch.device("meta"):
        networks = {
            "clip": CLIPVisionModelWithProjection(CLIPVisionConfig(**clip)),
            "dino": ViTModel(ViTConfig(**dino), add_pooling_layer=False),
            "encoder": VJepaEncoder(VJepaConfig(**vjepa)),
            "pooler": VJepaPooler(VJepaConfig(**vjepa)),
        }
        dino_tensors = {_vit_name(name): torch.empty(shape) for name, shape in vit_nets.dino_shapes(dino).items()}
        published = {
            "clip": {name: torch.empty(shape) for name, shape in vit_nets.clip_shapes(clip).items()},
            "dino": dino_tensors,
            "encoder": encoder_tensors({n: torch.empty(s) for n, s in vit_nets.vjepa_shapes(vjepa).items()}),
            "pooler": pooler_tensors({n: torch.empty(s) for n, s in vit_nets.probe_shapes(vjepa).items()}),
        }
    for name, network in networks.items():
        actual = {key: tensor.shape for key, tensor in network.state_dict().items()}
        assert actual == {key: tensor.shape for key, tensor in published[name].items()}
    # the counts that the authors give: 86.7 MB of DINO, 87.8 million weights of CLIP, 630 million of ViT-H
    sizes = {
        name: sum(tensor.numel() for tensor in network.state_dict().values()) for name, network in networks.items()
    }
    assert sizes["clip"] == 87_849_216
    assert sizes["dino"] == 21_665_664
    assert 630e6 < sizes["encoder"] < 640e6


@pytest.mark.parametrize(
    ("name", "metric", "entry"),
    [
        ("clip_image", "clip_i", "clip-vit-base-patch32"),
        ("dino", "dino", "dino-vits16"),
        ("vjepa", "jedi", "vjepa-vith16"),
    ],
)
def test_absent_weights_are_a_value_that_names_the_download(name, metric, entry):
    missing = features(name, CPU, metric=metric)
    assert isinstance(missing, Missing)
    assert (missing.metric, missing.command) == (metric, f"sa models pull {entry}")
    assert f"model {entry!r} lacks" in missing.reason


def test_files_of_something_else_are_one_line_that_names_them(tmp_path):
    clip = vit_nets.random(vit_nets.clip_shapes(vit_nets.CLIP))
    encoder = vit_nets.random(vit_nets.vjepa_shapes(vit_nets.VJEPA))
    probe = vit_nets.random(vit_nets.probe_shapes(vit_nets.VJEPA))
    dino = vit_nets.random(vit_nets.dino_shapes(vit_nets.DINO))
    short = {name: tensor for name, tensor in probe.items() if not name.endswith("query_tokens")}
    cut = dino_folder(tmp_path / "cut", dino)
    weights = cut / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-300])
    bare = dino_folder(tmp_path / "bare", dino)
    (bare / "model.toml").write_text('name = "mine"\n[components.dino]\nfile = "pytorch_model.bin"\n')
    cases = (
        ("clip_image", clip_folder(tmp_path / "a", clip | {"odd": torch.zeros(1)}), "too many, first odd"),
        ("clip_image", clip_folder(tmp_path / "b", dino), "missing tensor"),
        ("dino", dino_folder(tmp_path / "c", dino | {"pooler.dense.bias": torch.zeros(12)}), "first pooler.dense.bias"),
        ("dino", cut, "cannot be read as weights"),
        ("dino", bare, "no config for dino"),
        ("vjepa", vjepa_folder(tmp_path / "d", [1], probe), "vith16.pth.tar holds no tensors under 'target_encoder'"),
        ("vjepa", vjepa_folder(tmp_path / "e", encoder, Path("x")), "ssv2-probe.pth.tar cannot be read"),
        ("vjepa", vjepa_folder(tmp_path / "f", encoder, short), "1 missing tensor(s), first query_tokens"),
    )
    for name, folder, words in cases:
        with pytest.raises(ModelDamaged) as caught:
            features(name, CPU, model=folder)
        assert words in caught.value.message
        assert str(folder) in caught.value.message
        assert "\n" not in caught.value.message
