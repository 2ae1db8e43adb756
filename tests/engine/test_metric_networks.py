"""Metric networks are opened from files as they are published; missing ones are values, damaged ones errors."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stableanimator_cli.catalogue import download
from stableanimator_cli.engine.metric_networks import NETWORKS, Features, _function, features
from stableanimator_cli.errors import ModelDamaged
from stableanimator_cli.metrics.perceptual import Perceptual, lpips
from stableanimator_cli.metrics.result import METRICS, Missing
from stableanimator_cli.metrics.video import STYLES, ClipFeatures, set_distance
from stableanimator_cli.puppets.scene import sample_scene
from tests.nets import metric_nets
from tests.tiny import CPU


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))


def entry(folder: Path, files: dict[str, tuple[str, object]], *, digests: bool = True, old: bool = False) -> Path:
    """A model folder of role -> (file name, what torch saves there)."""
    folder.mkdir()
    lines = ['name = "mine"', 'summary = "for a test"', 'task = "metric"', 'licence = "unknown"', 'source = "here"']
    rows = []
    for role, (name, content) in files.items():
        path = folder / name
        if isinstance(content, torch.jit.ScriptModule):
            content.save(str(path))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=not old)
        lines += ["", f"[components.{role}]", f'file = "{name}"']
        rows += ["", "[[files]]", f'path = "{name}"', f"bytes = {path.stat().st_size}"]
        if digests:
            rows.append(f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"')
    (folder / "model.toml").write_text("\n".join([*lines, *rows, ""]))
    return folder


def pictures(count: int, side: int = 32, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def opened(name: str, folder: Path | None = None) -> Features:
    found = features(name, CPU, model=folder)
    assert isinstance(found, Features)
    return found


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_of_published_files_is_the_forward_pass_by_hand(tmp_path, kind):
    trunk, heads = metric_nets.trunk(kind), metric_nets.linears(kind)
    folder = entry(
        tmp_path / "lpips",
        {f"lpips_{kind}_trunk": ("trunk.pth", trunk), f"lpips_{kind}_linear": (f"{kind}.pth", heads)},
        old=True,
    )
    network = opened(f"lpips_{kind}", folder)
    (a,), (b,) = pictures(1), pictures(1, seed=1)
    planes = [torch.from_numpy(frame.transpose(2, 0, 1)[None]).float() for frame in (a, b)]
    for metric in (name for name, spec in METRICS.items() if spec.network == f"lpips_{kind}"):
        x, y = (p / 255 if metric == "lpips_vgg_disco" else p / 127.5 - 1 for p in planes)
        expected = metric_nets.lpips_by_hand(kind, trunk, heads, x, y)
        assert lpips(metric, network, a, b) == pytest.approx(float(expected), rel=1e-5)
    assert network.about["network"] == f"lpips_{kind}"
    assert network.about["files"][f"{kind}.pth"] == {
        "sha256": hashlib.sha256((folder / f"{kind}.pth").read_bytes()).hexdigest(),
        "compared_with": "recorded digest",
    }


def test_i3d_of_a_published_file_is_the_forward_pass_by_hand(tmp_path):
    tensors = metric_nets.i3d()
    old = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    network = opened("i3d", entry(tmp_path / "i3d", {"i3d": ("i3d_pretrained_400.pt", old)}, old=True))
    clips = np.stack([STYLES["fvd_disco"].prepare(frame) for frame in pictures(2)])[None]
    told = network(clips)
    expected = metric_nets.i3d_by_hand(tensors, torch.from_numpy(clips).transpose(1, 2))
    assert told.shape == (1, 400)
    assert np.allclose(told, expected.numpy(), rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_the_3d_resnet_of_a_checkpoint_is_the_forward_pass_by_hand(tmp_path):
    tensors = metric_nets.resnet3d()
    checkpoint = {"epoch": 9, "arch": "resnet-50", "state_dict": tensors, "optimizer": {"state": {}, "lr": 0.1}}
    network = opened("resnet3d", entry(tmp_path / "r", {"resnet3d": ("resnet-50-kinetics.pth", checkpoint)}))
    clips = np.random.default_rng(0).standard_normal((1, 4, 3, 32, 32)).astype(np.float32) * 60
    expected = metric_nets.resnet3d_by_hand(tensors, torch.from_numpy(clips).transpose(1, 2))
    assert np.allclose(network(clips), expected.numpy(), rtol=1e-4, atol=1e-4 * float(expected.std()))


class Program(nn.Module):
    """Has the signature of StyleGAN-V's file."""

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        if not (rescale and resize and return_features):
            return torch.zeros(1)
        return torch.stack([x.mean(dim=(1, 2, 3, 4)), x[:, 0, 0, 0, 0], x[:, 2, 1, 0, 0]], dim=1)


def program() -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(Program())
    assert isinstance(made, torch.jit.ScriptModule)
    return made


def test_the_torchscript_is_given_raw_clips_and_told_to_resize(tmp_path):
    network = opened("i3d_torchscript", entry(tmp_path / "i3d", {"i3d_torchscript": ("i3d_torchscript.pt", program())}))
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4, 3), dtype=np.uint8)
    expected = np.stack([clips.mean(axis=(1, 2, 3, 4)), clips[:, 0, 0, 0, 0], clips[:, 1, 0, 0, 2]], axis=1)
    assert np.allclose(network(clips), expected, rtol=1e-5)


def test_a_program_without_its_recorded_digest_is_not_run(tmp_path):
    given: dict[str, tuple[str, object]] = {"i3d_torchscript": ("i3d_torchscript.pt", program())}
    with pytest.raises(ModelDamaged, match="is a program, and no digest of it is recorded: not opened"):
        features("i3d_torchscript", CPU, model=entry(tmp_path / "i3d", given, digests=False))


def test_a_program_that_was_swapped_under_a_remembered_digest_is_not_run(tmp_path):
    """Same size, same time: the digest that was remembered of the first file says nothing of the second."""
    folder = entry(tmp_path / "i3d", {"i3d_torchscript": ("i3d_torchscript.pt", program())})
    path = folder / "i3d_torchscript.pt"
    opened("i3d_torchscript", folder)
    download.digest(path)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(ModelDamaged, match="a program, so it was not run") as caught:
        features("i3d_torchscript", CPU, model=folder)
    assert "sa models pull i3d --all" in str(caught.value.hint)


def test_the_bytes_that_were_hashed_are_the_bytes_that_run(tmp_path, monkeypatch):
    """The file may change after it was read: what runs is what was hashed."""
    folder = entry(tmp_path / "i3d", {"i3d_torchscript": ("i3d_torchscript.pt", program())})
    path = folder / "i3d_torchscript.pt"
    real = torch.jit.load

    def swapping(source: object, **rest: object) -> object:
        path.write_bytes(b"something else")
        return real(source, **rest)

    monkeypatch.setattr(torch.jit, "load", swapping)
    clips = np.zeros((1, 2, 4, 4, 3), np.uint8)
    assert opened("i3d_torchscript", folder)(clips).shape == (1, 3)


def test_programs_are_opened_at_one_place_alone():
    package = Path(__file__).parents[2] / "stableanimator_cli"
    callers = [file.name for file in package.rglob("*.py") if "jit.load(" in file.read_text(encoding="utf-8")]
    assert callers == ["programs.py"]


def test_weights_that_are_a_program_are_not_run(tmp_path):
    folder = entry(tmp_path / "m", {"i3d": ("a.pt", program())})
    with pytest.raises(ModelDamaged, match="cannot be read as weights"):
        features("i3d", CPU, model=folder)


@pytest.mark.parametrize("name", ["lpips_alex", "lpips_vgg", "i3d", "i3d_torchscript", "resnet3d"])
def test_a_network_that_is_not_here_is_a_value_with_its_command(name):
    missing = features(name, CPU, metric="the_metric")
    assert isinstance(missing, Missing)
    assert missing.metric == "the_metric"
    assert "lacks" in missing.reason
    assert missing.command.startswith("sa models ")


def test_every_metric_of_networks_names_one_that_exists():
    assert {spec.network for spec in METRICS.values() if spec.network} <= set(NETWORKS)
    with pytest.raises(ValueError, match="no metric network is named 'alex'"):
        features("alex", CPU)


def spoil_digest(folder: Path) -> None:
    path = folder / "a.pt"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def spoil_size(folder: Path) -> None:
    path = folder / "a.pt"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "words"), [(spoil_digest, "found sha256 .* expected"), (spoil_size, "found .* bytes, expected")]
)
def test_damaged_weights_are_an_error_that_names_the_file(tmp_path, spoil: Callable[[Path], None], words):
    folder = entry(tmp_path / "i3d", {"i3d": ("a.pt", {"logits.conv3d.bias": torch.zeros(400)})})
    spoil(folder)
    with pytest.raises(ModelDamaged, match=f"a.pt: {words}") as caught:
        features("i3d", CPU, model=folder)
    assert caught.value.hint


def test_a_digest_in_the_name_is_held_to(tmp_path):
    given = {"lpips_alex_trunk": ("alexnet-owt-7be5be79.pth", metric_nets.trunk("alex"))}
    given["lpips_alex_linear"] = ("alex.pth", metric_nets.linears("alex"))
    with pytest.raises(ModelDamaged, match=r"found sha256 .* expected 7be5be79\.\.\."):
        features("lpips_alex", CPU, model=entry(tmp_path / "lpips", given, digests=False))


@pytest.mark.parametrize(
    ("name", "role", "content", "words"),
    [
        ("i3d", "i3d", {"logits.conv3d.bias": torch.zeros(400)}, r"does not fit the network: 343 missing"),
        ("i3d", "i3d", [1, 2], "not a state dict"),
        ("resnet3d", "resnet3d", {"state_dict": {"a": 1}}, "no tensors under 'state_dict'"),
        ("resnet3d", "resnet3d", {"state_dict": {}}, "does not fit the network"),
        ("resnet3d", "resnet3d", {"state_dict": {"x": Path("x")}}, "cannot be read as a checkpoint"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, name, role, content, words):
    with pytest.raises(ModelDamaged, match=words):
        features(name, CPU, model=entry(tmp_path / "m", {role: ("a.pt", content)}))


def test_what_is_no_torchscript_is_refused(tmp_path):
    folder = entry(tmp_path / "m", {"i3d_torchscript": ("a.pt", {"x": torch.zeros(1)})})
    with pytest.raises(ModelDamaged, match="does not open as TorchScript"):
        features("i3d_torchscript", CPU, model=folder)


def drawn(index: int, count: int) -> list[np.ndarray]:
    """Frames of a figure that no network was trained on."""
    scene = sample_scene("test", index, frames=count)
    return [scene.frame(t, (128, 128)).image for t in range(count)]


def test_the_shipped_network_tells_puppets_apart():
    network = opened("puppet_frame")
    (one,), (other,) = (drawn(index, 1) for index in (0, 1))
    noise = np.random.default_rng(0).normal(0, 1, one.shape)
    noisy = [(one + sigma * noise).clip(0, 255).astype(np.uint8) for sigma in (5, 40)]
    told = [lpips("lpips_puppet", network, one, frame) for frame in (one, *noisy, other)]
    assert told[0] == 0
    assert 0 < told[1] < told[2]
    assert told[3] > 0.05
    scores = Perceptual("lpips_puppet", network)
    for index, frame in enumerate((one, *noisy, other)):
        scores.add("a", index, one, frame)
    assert [value for *_, value in scores.finish()] == pytest.approx(told, abs=1e-6)


def test_the_shipped_network_measures_videos_of_puppets():
    network, style = opened("puppet_clip"), STYLES["fvd_puppet"]
    clean, noisy, still = (ClipFeatures(style, network) for _ in range(3))
    rng = np.random.default_rng(0)
    for index in range(3):
        frames = drawn(index, 16)
        for t, frame in enumerate(frames):
            clean.add(str(index), t, frame)
            noisy.add(str(index), t, (frame + rng.normal(0, 50, frame.shape)).clip(0, 255).astype(np.uint8))
            still.add(str(index), t, frames[0])
    for side in (clean, noisy, still):
        side.finish()
    told = [set_distance(style, side.videos, clean.videos, network.about) for side in (clean, noisy, still)]
    assert [value.count for value in told] == [9, 9, 9]
    assert told[0].about["dimensions"] == 128
    assert told[0].pooled == pytest.approx(0, abs=1e-6)
    assert told[1].pooled > 1e-3
    assert told[2].pooled > 1e-3
    assert list(told[0].about["files"]) == ["video.onnx"]
    assert told[0].about["files"]["video.onnx"]["compared_with"] == "recorded digest"


def test_another_onnx_file_is_no_video_network(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    shipped = Path(__file__).parents[2] / "models/puppet/judge.onnx"
    (folder / "judge.onnx").write_bytes(shipped.read_bytes())
    (folder / "model.toml").write_text('name = "other"\n[components.video]\nfile = "judge.onnx"\n')
    with pytest.raises(ModelDamaged, match="has no output 'features'"):
        features("puppet_clip", CPU, model=folder)


def test_a_checkpoint_lends_the_network_of_the_model_that_it_needs(tmp_path):
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "model.toml").write_text('name = "trained"\nneeds = ["puppet"]\n')
    assert opened("puppet_clip", folder).about == opened("puppet_clip").about


def test_torch_is_left_as_it_was():
    conv = torch.backends.cudnn.conv
    before = torch.backends.cudnn.allow_tf32, conv.fp32_precision, torch.backends.cudnn.deterministic
    inside = []

    def network(x: Tensor) -> Tensor:
        inside.append((torch.backends.cudnn.allow_tf32, conv.fp32_precision, torch.is_grad_enabled()))
        return x

    _function(network, CPU)(np.zeros((1, 2), np.float32))
    assert inside == [(False, "ieee", False)]
    assert (torch.backends.cudnn.allow_tf32, conv.fp32_precision, torch.backends.cudnn.deterministic) == before
