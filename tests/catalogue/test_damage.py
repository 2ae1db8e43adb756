"""Damaged weights are found before they are used, and the hint mends the folder that holds them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import download, register
from stableanimator_cli.catalogue.damage import check_size, fetch_again
from stableanimator_cli.catalogue.download import weight_digests
from stableanimator_cli.errors import BadInput, ModelDamaged
from stableanimator_cli.files import sha256_of
from tests.conftest import Run
from tests.train.clip_folders import write_clip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder of one's own with the files of the small model."""
    return Path(shutil.copytree(catalogue.builtin_dir() / "puppet", tmp_path / "mine"))


def damage(path: Path) -> None:
    """Change bytes in the middle, where the numbers are: the size stays, and the file still loads."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(255 - value for value in data[middle : middle + 64])
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["unet.safetensors", "face/arcface_puppet.onnx"])
def test_a_file_with_other_numbers_than_recorded_is_an_error_that_names_it(copied: Path, name: str) -> None:
    whole = weight_digests(catalogue.open_model(str(copied)))
    assert whole == weight_digests(catalogue.open_model("puppet"))
    damage(copied / name)
    with pytest.raises(ModelDamaged, match=f"mine/{name}: found sha256 .*, expected .*, as its model.toml records"):
        weight_digests(catalogue.open_model(str(copied)))
    role = {"unet.safetensors": "vae"}.get(name, "unet")
    assert weight_digests(catalogue.open_model(str(copied)), [role]) == {role: whole[role]}


@pytest.mark.parametrize("name", ["vae.safetensors", "face/arcface_puppet.onnx"])
def test_a_git_lfs_pointer_that_no_model_toml_lists_is_named_by_a_plan(
    copied: Path, sa: Run, tmp_path: Path, name: str
) -> None:
    record = (copied / "model.toml").read_text().split("\n[")
    (copied / "model.toml").write_text("\n[".join(row for row in record if not row.startswith("[files]]")))
    (copied / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    write_clip(tmp_path / "clips/one", 2)
    words = ("--model", copied, "--frames", "2", "--steps", "1", "--plan")
    result = sa("train", tmp_path / "clips", "-o", tmp_path / "run", *words)
    assert result.returncode == 5, result.stderr
    assert f"mine/{name}: found a git-lfs pointer, expected the weights" in result.stderr
    assert "hint: run `git lfs pull` in its folder, or copy it again" in result.stderr


@pytest.mark.parametrize(
    ("pulled", "pointers"),
    [
        ("model.safetensors", ("pytorch_model.bin", "model.fp16.safetensors", "pytorch_model.fp16.bin")),
        ("diffusion_pytorch_model-00001-of-00001.safetensors", ("diffusion_pytorch_model.fp16.safetensors",)),
        ("q8.gguf", ("diffusion_pytorch_model-00001-of-00002.safetensors",)),
    ],
)
def test_pointers_of_git_lfs_beside_the_file_that_is_read_are_left(
    tmp_path: Path, pulled: str, pointers: tuple[str, ...]
) -> None:
    """`git lfs pull --include` downloads one of several forms of a network."""
    for name in pointers:
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelDamaged, match="git-lfs pointer"):
        check_size(tmp_path, None)
    (tmp_path / pulled).write_bytes(b"weights")
    check_size(tmp_path, None)
    (tmp_path / pulled).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelDamaged, match=f"{pulled}: found a git-lfs pointer"):
        check_size(tmp_path, None)


def test_files_of_a_folder_are_read_once_too(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = catalogue.open_model(str(copied)), list[Path]()
    (folder,) = (path for path in model.files.values() if path.is_dir())
    real = download._sha256
    monkeypatch.setattr(download, "_sha256", lambda path, *rest: read.append(path) or real(path, *rest))
    first = weight_digests(model)
    assert sha256_of(folder) in first.values()
    assert {path.parent for path in read} >= {folder}
    read.clear()
    assert weight_digests(model) == first
    assert not read


def test_sa_animate_and_preprocess_refuse_it(copied: Path, sa: Run, tmp_path: Path) -> None:
    damage(copied / "person_detector.onnx")
    made = sa("puppets", tmp_path / "figures", "--videos", "1", "--frames", "2", "--size", "64x64")
    assert made.returncode == 0, made.stderr
    reference, video = tmp_path / "figures/references/00000.png", tmp_path / "figures/videos/00000.mp4"
    for words in (
        ("animate", reference, tmp_path / "figures/truth/00000.npz", "-o", tmp_path / "out.mp4", "--size", "64x64"),
        ("preprocess", video, "-o", tmp_path / "clips"),
    ):
        result = sa(*words, "--model", copied)
        assert result.returncode == 5, result.stderr
        assert "person_detector.onnx: found sha256" in result.stderr
        assert "hint: copy it again from where its folder comes from" in result.stderr
    assert not (tmp_path / "out.mp4").exists()


def test_the_hint_is_a_download_for_files_of_the_cache_only(home: Path, tmp_path: Path) -> None:
    assert fetch_again(home / "models/dwpose/yolox_l.onnx") == "download it again: `sa models pull dwpose`"
    assert "pull" not in fetch_again(tmp_path / "mine/a.onnx")
    assert "install sa again" in fetch_again(catalogue.builtin_dir() / "puppet/unet.safetensors")
    mine = tmp_path / "mine.onnx"
    mine.write_bytes(b"")
    with pytest.raises(ModelDamaged) as empty:
        check_size(mine, 5)
    assert empty.value.hint == fetch_again(mine)


def test_the_hint_of_a_file_that_a_download_would_leave_deletes_it_first(home: Path) -> None:
    """``sa models pull`` compares digests: it says that all is installed where none is recorded."""
    assert fetch_again(home / "models/vjepa-vith16/vith16.pth.tar") == (
        "delete it, and `sa models pull vjepa-vith16` downloads it again"
    )
    assert fetch_again(home / "models/stableanimator/unet.safetensors").startswith("delete it, and `sa models pull")
    optional = home / "models/svd-xt/unet/diffusion_pytorch_model.fp16.safetensors"
    assert fetch_again(optional) == "download it again: `sa models pull svd-xt --all`"
    assert fetch_again(home / "models/lpips/vgg.pth") == "download it again: `sa models pull lpips`"


def test_the_hint_of_a_file_that_the_catalogue_does_not_list_promises_no_download_of_it(home: Path) -> None:
    file = home / "models/wan-animate/transformer/q4.gguf"
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(ModelDamaged, match=r"q4\.gguf: found 0 bytes, expected weights") as caught:
        check_size(file.parent, None)
    assert caught.value.hint == (
        "copy it again from where its folder comes from, or delete it: it is no file of the catalogue, whose own files "
        "`sa models pull wan-animate` downloads"
    )
    assert fetch_again(home / "models/wan-animate/transformer") == "download it again: `sa models pull wan-animate`"


def test_the_hint_of_an_imported_model_names_no_download(home: Path, copied: Path) -> None:
    toml = copied / "model.toml"
    toml.write_text(toml.read_text(encoding="utf-8").replace('name = "puppet"', 'name = "mine"', 1), encoding="utf-8")
    register.import_folder(copied)
    assert fetch_again(home / "models/mine/unet.safetensors") == "copy it again from where its folder comes from"
    shutil.rmtree(home)
    register.import_folder(copied, copy=True)
    assert fetch_again(home / "models/mine/unet.safetensors") == (
        "delete it, then import its folder again: `sa models import FOLDER`"
    )


@pytest.mark.parametrize("relative", [False, True])
def test_a_model_in_a_folder_whose_name_is_not_utf_8_is_refused_before_libraries_call_it_damaged(
    copied: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    try:
        folder = copied.rename(copied.with_name(os.fsdecode(b"\xff")))
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    monkeypatch.chdir(folder)
    with pytest.raises(BadInput, match=r"/\\xff/unet\.safetensors: its path is not UTF-8") as caught:
        catalogue.open_model("." if relative else str(folder))
    assert caught.value.hint == "rename the folder, or copy the model to another one"
