"""Registering weights that are here already: the reference download, loose files, trained checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue import pipelines, store
from stableanimator_cli.catalogue.place import SOURCE_SHA256, Convert
from stableanimator_cli.catalogue.register import import_folder
from stableanimator_cli.cli.models import app
from stableanimator_cli.engine.weights import convert_to_safetensors
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing
from stableanimator_cli.files import sha256_of
from tests.catalogue.test_catalogue import ROLES, fake_sizes, home, model_toml, reference_download, write
from tests.conftest import largest_file

__all__ = ["home"]  # a fixture that pytest uses by name


def write_safe(source: Path, target: Path) -> None:
    """A conversion that, like the true one, records what it was made from."""
    header = json.dumps({"__metadata__": {SOURCE_SHA256: sha256_of(source)}}).encode()
    target.write_bytes(len(header).to_bytes(8, "little") + header + b"safe " + source.read_bytes())


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
    with pytest.raises(BadInput, match=r"holds other weights than .* \(3 bytes, not 5\)"):
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
        write_safe(source, target)

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
    assert model.files["unet"].read_bytes().endswith(b"safe pickle")
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
    with pytest.raises(BadInput, match="holds other weights than"):
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


@pytest.mark.parametrize("name", ["wan-animate", "wan-animate-2", "wan-animate-2-distilled"])
def test_a_pipeline_is_registered_as_its_own_entry_alone(tmp_path: Path, home: Path, name: str) -> None:
    """Its vae and image encoder have the names of Stable Video Diffusion's, and the entries share names of files."""
    kind = next(kind for kind, pipeline in pipelines.KINDS.items() if pipeline.entry == name)
    small = [file for file in catalogue.entry(name).files if (file.bytes or 0) < 10_000]
    for file in small:
        text = json.dumps({"_class_name": kind} if file.path in pipelines.INDICES else {})
        write(tmp_path / "download" / file.path, text.ljust(file.bytes or 0))
    write(tmp_path / "download" / "vae" / "diffusion_pytorch_model.safetensors")
    report = import_folder(tmp_path / "download")
    assert {(t.name, t.path) for t in report.taken} == {(name, file.path) for file in small}
    assert not catalogue.model_cache_dir("svd-xt").exists()


def test_another_pipeline_is_not_taken_for_stable_video_diffusion(tmp_path: Path, home: Path) -> None:
    """A folder of Stable Diffusion has a vae and a unet of the same names."""
    folder = tmp_path / "sd"
    for part in ("vae", "unet"):
        write(folder / part / "diffusion_pytorch_model.safetensors")
    for kind, taken in (("StableDiffusionPipeline", False), (pipelines.SVD, True)):
        write(folder / "model_index.json", json.dumps({"_class_name": kind}))
        if taken:
            assert {one.name for one in import_folder(folder).taken} == {"svd-xt"}
        else:
            for use in (import_folder, catalogue.open_model):
                with pytest.raises(ModelDamaged, match="found 'StableDiffusionPipeline', expected WanAnimatePipeline"):
                    use(folder)
            assert not catalogue.model_cache_dir("svd-xt").exists()


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


def test_the_state_of_a_training_is_no_network_to_convert(tmp_path: Path, home: Path) -> None:
    folder = model_toml(tmp_path / "c", 'name = "mine"\n[components.unet]\nfile = "unet.pth"\n')
    torch.save({"a": torch.zeros(3)}, folder / "unet.pth")
    (folder / "state").mkdir()
    torch.save({"optimizer": {"param_groups": [{"lr": 1.0}]}, "scaler": {}}, folder / "state" / "optimizer.pt")
    taken = {row.path: row.how for row in import_folder(folder, convert=convert_to_safetensors).taken}
    assert (taken["unet.safetensors"], taken["state/optimizer.pt"]) == ("converted", "linked")
    assert catalogue.open_model("mine", ("unet",)).files["unet"].suffix == ".safetensors"


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


# What is there already


def test_other_bytes_of_the_same_size_are_not_taken_for_those_that_are_there(tmp_path: Path, home: Path) -> None:
    source = write(tmp_path / "w/unet.pth", b"one")
    import_folder(tmp_path / "w", copy=True)
    assert import_folder(tmp_path / "w", copy=True).taken[0].how == "already there"
    write(source, b"two")
    with pytest.raises(BadInput, match=r"holds other weights than .* \(sha256 .*, not ") as caught:
        import_folder(tmp_path / "w", copy=True)
    target = home / "models/stableanimator/unet.pth"
    assert f"rm -r {target}" in str(caught.value.hint)
    assert target.read_bytes() == b"one"


def test_another_model_under_a_known_name_is_refused_and_nothing_is_changed(tmp_path: Path, home: Path) -> None:
    text = 'name = "mine"\n[components.unet]\nfile = "unet.bin"\n'
    first = model_toml(tmp_path / "a", text)
    write(first / "unet.bin", b"first")
    assert {t.how for t in import_folder(first, copy=True).taken} == {"copied"}
    assert {t.how for t in import_folder(first, copy=True).taken} == {"already there"}
    second = model_toml(tmp_path / "b", text)
    write(second / "unet.bin", b"other")
    with pytest.raises(BadInput, match=r"unet\.bin: it holds other weights than"):
        import_folder(second, copy=True)
    with pytest.raises(BadInput, match=r"unet\.bin: it holds other weights than"):
        import_folder(second)
    write(second / "unet.bin", b"first")
    (first / "more.txt").write_text("x")
    (home / "models/mine/note.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"note\.txt: it belongs to another model"):
        import_folder(first, copy=True)
    assert (home / "models/mine/note.txt").read_text() == "mine"
    assert (home / "models/mine/unet.bin").read_bytes() == b"first"
    assert not list((home / "models").glob(".*"))


def test_links_of_a_model_give_way_all_at_once(tmp_path: Path, home: Path) -> None:
    text = 'name = "mine"\n[components.unet]\nfile = "unet.bin"\n'
    first = model_toml(tmp_path / "a", text)
    write(first / "unet.bin", b"first")
    write(first / "old.json", b"{}")
    import_folder(first)
    assert {t.how for t in import_folder(first).taken} == {"already there"}
    second = model_toml(tmp_path / "b", text)
    write(second / "unet.bin", b"other")
    import_folder(second)
    here = home / "models/mine"
    assert sorted(p.name for p in here.iterdir()) == ["model.toml", "unet.bin"]
    assert here.joinpath("unet.bin").samefile(second / "unet.bin")
    assert {t.how for t in import_folder(second, copy=True).taken} == {"copied"}  # what was asked for, not links
    assert not here.joinpath("unet.bin").is_symlink()


def test_two_forms_of_one_network_are_the_same_weights_or_one_is_refused(tmp_path: Path, home: Path) -> None:
    write(tmp_path / "a/unet.pth", b"a")
    write(tmp_path / "b/unet.pth", b"b")
    store = home / "models/stableanimator"
    import_folder(tmp_path / "a", convert=write_safe)
    assert import_folder(tmp_path / "a").taken[0].how == "linked"  # beside the conversion of the same weights
    with pytest.raises(BadInput, match=r"unet\.safetensors: it holds other weights than .*would open only one"):
        import_folder(tmp_path / "b")
    (store / "unet.safetensors").unlink()
    import_folder(tmp_path / "b", convert=write_safe)  # the link to a's gives way
    assert sorted(p.name for p in store.iterdir()) == ["unet.safetensors"]
    assert (store / "unet.safetensors").read_bytes().endswith(b"safe b")


def test_a_conversion_knows_its_source_whatever_its_time(tmp_path: Path, home: Path) -> None:
    source = write(tmp_path / "w/unet.pth", b"one")
    os.utime(source, ns=(1, 1))
    import_folder(tmp_path / "w", convert=write_safe)
    os.utime(source, ns=(2, 2))
    assert import_folder(tmp_path / "w", convert=write_safe).taken[0].how == "already there"
    write(source, b"two")
    os.utime(source, ns=(1, 1))
    with pytest.raises(BadInput, match="holds other weights than"):
        import_folder(tmp_path / "w", convert=write_safe)
    # one of an older version, which recorded nothing: it is converted again and compared
    target = home / "models/stableanimator/unet.safetensors"
    target.write_bytes(b"made of two")
    assert import_folder(tmp_path / "w", convert=lambda a, b: b.write_bytes(b"made of two") and None).taken
    with pytest.raises(BadInput, match="holds other weights than"):
        import_folder(tmp_path / "w", convert=write_safe)


def test_a_conversion_of_an_older_version_with_the_same_tensors_is_already_there(tmp_path: Path, home: Path) -> None:
    def convert(values: list[float], metadata: dict[str, str] | None) -> Convert:
        tensor = np.asarray(values, np.float32)
        return lambda source, target: save_file({"w": tensor}, target, metadata)

    write(tmp_path / "w/unet.pth", b"one")
    target = home / "models/stableanimator/unet.safetensors"
    target.parent.mkdir(parents=True)
    convert([1, 2], None)(tmp_path, target)
    newer = {"source_sha256": "0" * 64}
    assert import_folder(tmp_path / "w", convert=convert([1, 2], newer)).taken[0].how == "already there"
    with pytest.raises(BadInput, match="holds other weights than"):
        import_folder(tmp_path / "w", convert=convert([1, 3], newer))


# Links


@pytest.mark.parametrize("writes", [{"copy": True}, {"convert": write_safe}])
def test_a_link_out_of_the_folder_is_not_copied(tmp_path: Path, home: Path, writes: dict[str, Any]) -> None:
    secret = write(tmp_path / "secret.pth", b"private")
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "unet.pth").symlink_to(secret)
    with pytest.raises(BadInput, match=r"unet\.pth: it is or is behind a link that leads out of .*secret\.pth"):
        import_folder(folder, **writes)
    model_toml(tmp_path / "c", 'name = "mine"\n').joinpath("notes.bin").symlink_to(secret)
    with pytest.raises(BadInput, match=r"notes\.bin: it is or is behind a link"):
        import_folder(tmp_path / "c", **writes)
    assert not list(home.rglob("*.*"))
    assert import_folder(folder).taken[0].how == "linked"  # nothing is written then, and the name leads where it did


def test_links_within_the_folder_and_the_hubs_cache_are_copied(tmp_path: Path, home: Path) -> None:
    write(tmp_path / "w/real.pth", b"w")
    (tmp_path / "w/unet.pth").symlink_to("real.pth")
    assert [t.how for t in import_folder(tmp_path / "w", copy=True).taken] == ["copied"]
    assert not (home / "models/stableanimator/unet.pth").is_symlink()
    hub = tmp_path / "models--a--b"
    write(hub / "blobs/123", b"p")
    snapshot = hub / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "pose_net.pth").symlink_to("../../blobs/123")
    assert [t.how for t in import_folder(snapshot, copy=True).taken] == ["copied"]


def test_links_that_lead_nowhere_are_reported_and_circles_end(tmp_path: Path) -> None:
    folder = model_toml(tmp_path / "c", 'name = "mine"\n')
    (folder / "gone.bin").symlink_to("nowhere")
    (folder / "self").symlink_to(".")
    (folder / "round").symlink_to("round")
    os.mkfifo(folder / "pipe.bin")
    (folder / ".git").mkdir()
    write(folder / ".git/x.bin")
    report = import_folder(folder, copy=True)
    assert [t.target.name for t in report.taken] == ["model.toml"]
    assert sum("leads nowhere" in remark for remark in report.remarks) == 2


def test_the_folder_of_imports_is_no_source(tmp_path: Path, home: Path) -> None:
    import_folder(model_toml(tmp_path / "c", 'name = "mine"\n'), copy=True)
    with pytest.raises(BadInput, match="in the folder of imported models"):
        import_folder(home / "models/mine", copy=True)
    around = model_toml(tmp_path, 'name = "all"\n')
    with pytest.raises(BadInput, match="it holds the folder of imported models"):
        import_folder(around, copy=True)


# Interrupted and refused


def test_one_process_at_a_time_writes_a_model(tmp_path: Path, home: Path) -> None:
    write(tmp_path / "w/unet.pth")
    folder = model_toml(tmp_path / "c", 'name = "mine"\n')
    for name, source in (("stableanimator", tmp_path / "w"), ("mine", folder)):
        with store.locked_model(name), pytest.raises(BadInput, match="another `sa models pull` or") as caught:
            import_folder(source)
        assert "then run the same command again" in str(caught.value.hint)
        assert import_folder(source).taken
    assert not list((home / "models").glob(".*"))


def test_what_a_killed_import_was_building_is_removed_by_the_next(tmp_path: Path, home: Path) -> None:
    models = home / "models"
    for name in ("mine", "other"):
        write(models / f".{name}.part/model.toml", f'name = "{name}"\n')
        write(models / f".{name}.lock", b"")
    write(models / "svd-xt/.sa.part/.tmp123", b"half")
    write(models / "svd-xt/vae.txt", b"not ours")
    assert {"mine", ".mine.part"}.isdisjoint(catalogue.names())
    with store.locked_model("other"):
        write(models / ".other.part/model.toml", b"at work")
        import_folder(model_toml(tmp_path / "c", 'name = "mine"\n'))
        assert (models / ".other.part/model.toml").read_bytes() == b"at work"
    assert not list(models.rglob("*part"))
    assert (models / "svd-xt/vae.txt").read_bytes() == b"not ours"
    assert not list(models.glob(".*.lock"))


@pytest.mark.parametrize("convert", [None, convert_to_safetensors])
def test_a_full_disk_is_blamed_and_not_the_source(tmp_path: Path, home: Path, convert: Any) -> None:
    (tmp_path / "w").mkdir()
    torch.save({"a": torch.zeros(3000)}, tmp_path / "w/unet.pth")
    with largest_file(4000), pytest.raises(ModelMissing, match="no room left to write it") as caught:
        import_folder(tmp_path / "w", copy=True, convert=convert)
    assert caught.value.message.startswith(str(home / "models/stableanimator/unet."))
    assert not list((home / "models").iterdir())


def test_too_little_room_is_known_before(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "w/unet.pth", b"12345")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda place: type("Disk", (), {"free": 4})())
    with pytest.raises(ModelMissing, match="are free"):
        import_folder(tmp_path / "w", copy=True)
    assert not list((home / "models").iterdir())
    assert import_folder(tmp_path / "w").taken  # a link needs none


def test_a_conversion_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3), "b": torch.ones(2, 2)}, tmp_path / "w.pth")
    made = set()
    for index in range(12):
        convert_to_safetensors(tmp_path / "w.pth", tmp_path / f"{index}.safetensors")
        made.add((tmp_path / f"{index}.safetensors").read_bytes())
    assert len(made) == 1
    assert load_file(tmp_path / "0.safetensors")["b"].sum() == 4


def test_an_imported_model_that_lacks_a_file_is_not_sent_to_a_download(tmp_path: Path, home: Path) -> None:
    """Its files have no addresses."""
    digest = "0" * 64
    row = f'[[files]]\npath = "unet.pth"\nbytes = 1\nsha256 = "{digest}"\n'
    folder = model_toml(tmp_path / "mine", f'name = "mine"\n[components.unet]\nfile = "unet.pth"\n{row}')
    write(folder / "unet.pth")
    import_folder(folder)
    (folder / "unet.pth").unlink()
    expected = "get it from its authors, then run `sa models import FOLDER`"
    with pytest.raises(ModelMissing, match=r"lacks unet \(mine/unet.pth\)") as caught:
        catalogue.open_model("mine", ("unet",))
    assert (caught.value.hint, caught.value.downloads) == (expected, ())
    with pytest.raises(ModelMissing) as verified:
        app(["verify", "mine"], standalone_mode=False)
    assert verified.value.hint == expected


def test_a_model_whose_folder_moved_away_is_said_to_have_moved(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "runs/mine"
    model_toml(folder, 'name = "mine"\n')
    import_folder(folder)
    folder.rename(tmp_path / "runs/new")
    with pytest.raises(ModelMissing, match=r"'mine' was imported from .*runs/mine, which no longer exists") as e:
        catalogue.open_model("mine")
    assert "sa models import" in str(e.value.hint)
    import_folder(tmp_path / "runs/new")
    assert catalogue.open_model("mine").name == "mine"
