"""Registering weights that are here already: the reference download, loose files, trained checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue_import import import_folder
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing
from tests.test_catalogue import ROLES, fake_sizes, home, model_toml, reference_download, write

__all__ = ["home"]  # a fixture that pytest uses by name


def test_a_reference_download_becomes_the_catalogue_entries(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sizes(monkeypatch)
    root = reference_download(tmp_path / "r")
    write(root / "checkpoints/Animation/glintr100_torch.pth")
    before = sorted(p for p in root.rglob("*"))
    report = import_folder(root)
    assert {(t.name, t.role, t.how) for t in report.taken} == {
        ("stableanimator", "unet", "linked"),
        ("stableanimator", "pose_net", "linked"),
        ("stableanimator", "face_encoder", "linked"),
        ("svd-xt", "vae", "linked"),
        ("svd-xt", "image_encoder", "linked"),
        ("antelopev2", "face", "linked"),
        ("dwpose", "person_detector", "linked"),
        ("dwpose", "pose_detector", "linked"),
    }
    assert [p.name for p in report.left] == ["glintr100_torch.pth"]
    assert any("num_frames = 14 (not 25)" in remark for remark in report.remarks)
    assert sorted(p for p in root.rglob("*")) == before
    model = catalogue.open_model("stableanimator", ROLES)
    assert model.files["unet"].is_symlink()
    assert model.files["unet"].samefile(root / "checkpoints/Animation/unet.pth")
    assert catalogue.default_model(ROLES) == "stableanimator"
    assert {t.how for t in import_folder(root).taken} == {"already there"}
    assert not list(home.rglob("*.part"))


def test_copies_do_not_depend_on_the_folder(tmp_path: Path, home: Path) -> None:
    source = write(tmp_path / "w/unet.pth", b"old")
    assert import_folder(tmp_path / "w", copy=True).taken[0].how == "copied"
    source.unlink()
    target = home / "models/stableanimator/unet.pth"
    assert target.read_bytes() == b"old"
    assert not target.is_symlink()
    write(tmp_path / "w/unet.pth", b"newer")
    with pytest.raises(BadInput, match="a file of 3 bytes"):
        import_folder(tmp_path / "w")
    assert target.read_bytes() == b"old"


def test_a_link_gives_way_to_a_newer_link(tmp_path: Path, home: Path) -> None:
    write(tmp_path / "a/unet.pth", b"one")
    write(tmp_path / "b/unet.pth", b"other")
    import_folder(tmp_path / "a")
    import_folder(tmp_path / "b")
    assert (home / "models/stableanimator/unet.pth").read_bytes() == b"other"


def test_convert_writes_safetensors_once(tmp_path: Path, home: Path) -> None:
    calls: list[tuple[Path, Path]] = []

    def convert(source: Path, target: Path) -> None:
        calls.append((source, target))
        target.write_bytes(b"safe " + source.read_bytes())

    write(tmp_path / "w/Animation/unet.pth", b"pickle")
    write(tmp_path / "w/SVD/vae/diffusion_pytorch_model.bin", b"pickle")
    write(tmp_path / "w/SVD/image_encoder/model.safetensors", b"tensors")
    report = import_folder(tmp_path / "w", convert=convert)
    assert {(t.role, t.how) for t in report.taken} == {
        ("unet", "converted"),
        ("vae", "converted"),
        ("image_encoder", "linked"),
    }
    model = catalogue.open_model("stableanimator", ("unet", "vae"))
    assert model.files["unet"] == home / "models/stableanimator/unet.safetensors"
    assert model.files["unet"].read_bytes() == b"safe pickle"
    assert len(calls) == 2
    import_folder(tmp_path / "w", convert=convert)
    assert len(calls) == 2
    assert not list(home.rglob("*part*"))


def test_another_folders_weights_are_not_taken_for_those_converted_before(tmp_path: Path, home: Path) -> None:
    def convert(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())

    mine, other = write(tmp_path / "mine/unet.pth", b"mine"), write(tmp_path / "other/unet.pth", b"other")
    os.utime(mine, ns=(0, 2_000_000_000))
    os.utime(other, ns=(0, 1_000_000_000))  # older, so that age alone would pass it
    import_folder(mine.parent, convert=convert)
    with pytest.raises(BadInput, match="weights from another file"):
        import_folder(other.parent, convert=convert)
    assert (home / "models/stableanimator/unet.safetensors").read_bytes() == b"mine"


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, home: Path) -> None:
    def convert(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise ModelDamaged(f"{source}: holds code")

    write(tmp_path / "w/unet.pth")
    with pytest.raises(ModelDamaged, match="holds code"):
        import_folder(tmp_path / "w", convert=convert)
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_files_fetched_by_hand_are_known_by_name_and_size(tmp_path: Path, home: Path) -> None:
    write(tmp_path / "w/i3d_pretrained_400.pt", b"any size: none is recorded")
    write(tmp_path / "w/alex.pth", bytes(6009))
    write(tmp_path / "w/vgg.pth", b"another vgg")
    report = import_folder(tmp_path / "w")
    assert {(t.name, t.role) for t in report.taken} == {("i3d", "i3d"), ("lpips", "lpips_alex_linear")}
    assert [p.name for p in report.left] == ["vgg.pth"]
    assert catalogue.open_model("i3d", ("i3d",)).files["i3d"].exists()


def test_a_trained_model_becomes_a_name(tmp_path: Path, home: Path) -> None:
    folder = model_toml(tmp_path / "c", 'name = "mine"\n[components.unet]\nfile = "unet.bin"\nconfig = "unet.json"\n')
    write(folder / "unet.bin")
    write(folder / "unet.json", json.dumps({"in_channels": 8}))
    import_folder(folder)
    assert "mine" in catalogue.names()
    assert catalogue.open_model("mine", ("unet",)).configs["unet"] == {"in_channels": 8}
    write(folder / "model.toml", 'name = "svd-xt"\n')
    with pytest.raises(BadInput, match="name = 'svd-xt'"):
        import_folder(folder)


def test_nothing_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="no file of a catalogue entry"):
        import_folder(tmp_path)
    with pytest.raises(BadInput, match="no folder"):
        import_folder(tmp_path / "gone")


def test_a_git_lfs_pointer_is_not_imported(tmp_path: Path) -> None:
    write(tmp_path / "w/unet.pth", b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelDamaged, match="git-lfs pointer"):
        import_folder(tmp_path / "w")


def test_what_would_open_as_something_else_is_refused(tmp_path: Path, home: Path) -> None:
    write(tmp_path / "steps/unet-1000.pth")
    with pytest.raises(BadInput, match="faces are bgr") as caught:
        import_folder(tmp_path / "steps")
    assert "--model FOLDER" in str(caught.value.hint)
    with pytest.raises(BadInput, match=r"needs = '\.\./base'"):
        import_folder(model_toml(tmp_path / "top", 'name = "top"\nneeds = ["../base"]\n'))
    assert not (home / "models").exists()


def test_a_link_to_a_checkpoint_that_is_gone_is_no_name(tmp_path: Path) -> None:
    folder = model_toml(tmp_path / "c", 'name = "mine"\n')
    import_folder(folder)
    assert "mine" in catalogue.names()
    (folder / "model.toml").unlink()
    assert "mine" not in catalogue.names()
