"""The catalogue: the shipped entries, the strict reading of model.toml, and how names and folders become models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.schema import Entry, read
from stableanimator_cli.config.animate import AnimateConfig
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.errors import BadInput, ModelDamaged, ModelMissing

ROLES = ("unet", "pose_net", "face_encoder", "vae", "image_encoder", "face", "person_detector", "pose_detector")
GIVEN = {"reference": Path("a.png"), "motion": Path("b.mp4"), "output": Path("c.mp4")}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("SA_HOME", str(folder))
    monkeypatch.delenv("SA_MODEL", raising=False)
    return folder


def write(path: Path, content: str | bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def model_toml(folder: Path, text: str) -> Path:
    write(folder / "model.toml", text)
    return folder


def fake_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small files pass for the shipped entries' weights: sizes are tested by themselves."""
    monkeypatch.setattr(catalogue, "check_size", lambda path, expected: None)


def reference_download(root: Path) -> Path:
    """The reference implementation's repository folder with everything in the places that its README tells."""
    top = root / "checkpoints"
    for name in ("unet", "pose_net", "face_encoder"):
        write(top / "Animation" / f"{name}.pth")
    svd = top / "SVD"
    write(svd / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    write(
        svd / "vae" / "config.json", json.dumps({"_class_name": "AutoencoderKLTemporalDecoder", "latent_channels": 4})
    )
    write(svd / "image_encoder" / "model.safetensors")
    write(svd / "unet" / "config.json", json.dumps({"num_frames": 14, "_diffusers_version": "0.24"}))
    write(svd / "scheduler" / "scheduler_config.json", json.dumps({"sigma_max": 700.0}))
    write(top / "DWPose" / "yolox_l.onnx")
    write(top / "DWPose" / "dw-ll_ucoco_384.onnx")
    for name in ("glintr100.onnx", "scrfd_10g_bnkps.onnx"):
        write(root / "models" / "antelopev2" / name)
    return root


# The shipped entries


@pytest.mark.parametrize("name", catalogue.names())
def test_every_shipped_entry_reads_and_carries_a_card(name: str) -> None:
    entry = catalogue.entry(name)
    assert entry.summary
    assert entry.licence
    assert (entry.folder / "CARD.md").read_text(encoding="utf-8").startswith("# ")
    assert entry.components
    for component in entry.components.values():
        if component.config is not None:
            assert catalogue.read_config(entry.folder / component.config)


def test_no_shipped_figure_is_made_up_of_halves() -> None:
    rows = [row for name in catalogue.names() for row in catalogue.entry(name).files]
    assert len({row.sha256 for row in rows if row.sha256}) > 10
    assert all(row.sha256 is None or row.sha256 != "0" * 64 for row in rows)
    assert catalogue.entry("resnet3d").file("resnet-50-kinetics.pth").sha256 is None  # type: ignore[union-attr]
    assert catalogue.entry("resnet3d").bytes is None
    assert catalogue.entry("stableanimator").bytes == 6_201_376_518 + 829_269 + 228_754_558


@pytest.mark.parametrize("name", catalogue.names())
def test_recommended_settings_are_settings_that_animate_takes(name: str) -> None:
    config = resolve(AnimateConfig, GIVEN, defaults=catalogue.entry(name).defaults)
    assert config.windows.length > config.windows.overlap


def test_released_weights_see_rgb_and_run_as_the_authors_scripts_do() -> None:
    entry = catalogue.entry("stableanimator")
    assert entry.face_channel_order == "rgb"
    assert entry.needs == ("svd-xt", "antelopev2", "dwpose")
    assert entry.defaults["guidance"] == 3.0
    assert entry.defaults["noise_aug"] == 0.02
    assert (entry.defaults["window"], entry.defaults["overlap"], entry.defaults["decode_chunk"]) == (16, 4, 4)


def test_names_cost_no_numpy() -> None:
    code = (
        "import sys; from stableanimator_cli import catalogue; assert catalogue.names();"
        "print([m for m in ('numpy', 'torch', 'av', 'requests') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert out.stdout.strip() == "[]"


# model.toml


def test_a_misspelt_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    text = 'name = "m"\n[[files]]\npath = "a.bin"\nsha265 = "00"\n'
    with pytest.raises(ModelDamaged, match=r"\[\[files\]\] a\.bin: unknown key 'sha265'") as caught:
        read(model_toml(tmp_path, text))
    assert caught.value.hint == "did you mean sha256?"


@pytest.mark.parametrize("path", ["../secret.pth", "/etc/passwd", "a/../../b", "C:\\\\w.pth", "a\\\\b.pth", "", "c:x"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelDamaged, match="inside the model folder"):
        read(model_toml(tmp_path, f'name = "m"\n[components.unet]\nfile = "{path}"\n'))
    with pytest.raises(ModelDamaged, match="inside the model folder"):
        read(model_toml(tmp_path, f'name = "m"\n[[files]]\npath = "{path}"\n'))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = 3", "name is 3"),
        ('name = "../m"', "name is '../m'"),
        ('name = "m"\nface_channel_order = "gbr"', "face_channel_order is 'gbr'"),
        ('name = "m"\n[defaults]\nsteps = "25"', "steps: found '25', expected a whole number"),
        ('name = "m"\n[defaults]\nsize = "512"', "WxH in pixels"),
        ('name = "m"\n[defaults]\nstepz = 2', "unknown key 'stepz'"),
        ('name = "m"\n[components.unet]\n', "file, config or both"),
        ('name = "m"\n[[files]]\npath = "a"\nurl = "file:///etc/passwd"', "an http"),
        ('name = "m"\n[[files]]\npath = "a"\nsha256 = "7be5be79"', "64 hexadecimal"),
        ('name = "m"\n[[files]]\npath = "a"\nbytes = -1', "bytes is -1"),
        ('name = "m"\n[[files]]\npath = "a"\narchive = "x.zip"', "one of the"),
        ('name = "m"\n[[files]]\npath = "a"\n[[files]]\npath = "a"', "each path once"),
        ("name = ", "no valid TOML"),
    ],
)
def test_what_model_toml_must_not_hold(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ModelDamaged, match=r"model\.toml") as caught:
        read(model_toml(tmp_path, text))
    assert told in caught.value.message


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ModelMissing, match="stabelanimator") as caught:
        catalogue.open_model("stabelanimator")
    assert caught.value.hint == "did you mean stableanimator?"


# Names


def test_a_name_opens_from_home_with_what_it_needs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sizes(monkeypatch)
    for name in ("unet", "pose_net", "face_encoder"):
        write(home / f"models/stableanimator/{name}.pth")
    write(home / "models/svd-xt/vae/diffusion_pytorch_model.fp16.safetensors")
    write(home / "models/svd-xt/image_encoder/model.safetensors")  # full precision where half is listed
    for name in ("glintr100.onnx", "scrfd_10g_bnkps.onnx"):
        write(home / "models/antelopev2/antelopev2" / name)  # a zip unpacked by hand
    for name in ("yolox_l.onnx", "dw-ll_ucoco_384.onnx"):
        write(home / "models/dwpose" / name)
    model = catalogue.open_model("stableanimator", ROLES)
    assert model.files["unet"] == home / "models/stableanimator/unet.pth"
    assert model.files["image_encoder"].name == "model.safetensors"
    assert model.files["face"] == home / "models/antelopev2/antelopev2"
    assert model.configs["unet"]["num_attention_heads"] == [5, 10, 20, 20]
    assert model.configs["vae"]["scaling_factor"] == 0.18215
    assert model.configs["scheduler"]["sigma_max"] == 700.0
    assert model.face_channel_order == "rgb"
    assert model.defaults["steps"] == 25
    assert model.digests[model.files["vae"]].startswith("af602cd0")
    assert model.files["image_encoder"] not in model.digests  # the digest of the listed file says nothing of another
    assert catalogue.default_model(ROLES) == "stableanimator"


def test_a_converted_file_is_read_before_the_pickle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sizes(monkeypatch)
    write(home / "models/stableanimator/unet.pth")
    assert catalogue.open_model("stableanimator").files["unet"].name == "unet.pth"
    write(home / "models/stableanimator/unet.safetensors")
    assert catalogue.open_model("stableanimator").files["unet"].name == "unet.safetensors"


def test_own_parts_come_before_needed_ones_even_where_missing(home: Path) -> None:
    write(home / "models/svd-xt/unet/diffusion_pytorch_model.safetensors")
    assert "unet" not in catalogue.open_model("stableanimator").files


def test_missing_roles_are_told_with_places_and_two_ways_on(home: Path) -> None:
    with pytest.raises(ModelMissing) as caught:
        catalogue.open_model("stableanimator", ("unet", "vae", "nose"))
    assert "unet (stableanimator/unet.pth)" in caught.value.message
    assert "vae (svd-xt/vae/diffusion_pytorch_model.fp16.safetensors)" in caught.value.message
    assert "nose (not one of its components)" in caught.value.message
    assert str(home / "models") in caught.value.message
    assert "\n" not in caught.value.message
    assert "sa models pull stableanimator" in str(caught.value.hint)
    assert "--model puppet" in str(caught.value.hint)


def test_a_model_for_other_work_is_not_fetched_in_vain(home: Path) -> None:
    with pytest.raises(ModelMissing, match="model 'antelopev2' is for other work") as caught:
        catalogue.open_model("antelopev2", ("unet", "vae"))
    assert "pull" not in str(caught.value.hint)


def test_a_base_model_brings_the_detectors_of_its_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sa preprocess`` and the checkpoints find them through the model that is trained."""
    fake_sizes(monkeypatch)
    for name in ("antelopev2/glintr100.onnx", "antelopev2/scrfd_10g_bnkps.onnx", "dwpose/yolox_l.onnx"):
        write(home / "models" / name)
    write(home / "models/dwpose/dw-ll_ucoco_384.onnx")
    assert {"face", "person_detector", "pose_detector"} <= set(catalogue.open_model("svd-xt").files)


def test_a_base_model_is_not_fetched_to_animate(home: Path) -> None:
    """It has some of the networks, and no download adds the others."""
    expected = re.escape("model 'svd-xt' is for other work (base): it has no pose_net, face_encoder")
    for attempt in (catalogue.open_animator, catalogue.plan_model):
        with pytest.raises(ModelMissing, match=expected) as caught:
            attempt("svd-xt")
        assert caught.value.downloads == ()


def test_an_own_folder_that_lacks_a_file_is_not_sent_to_the_catalogue(tmp_path: Path) -> None:
    model_toml(tmp_path / "mine", 'name = "mine"\n[components.unet]\nfile = "unet.pth"\n')
    with pytest.raises(ModelMissing, match=r"lacks unet \(unet.pth\)") as caught:
        catalogue.open_model(tmp_path / "mine", ("unet",))
    assert caught.value.hint == f"copy it to that folder, or name its path in {tmp_path / 'mine' / 'model.toml'}"


def test_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelMissing, match="no --model given") as caught:
        catalogue.default_model(("unet",))
    assert "--model puppet" in str(caught.value.hint)
    monkeypatch.setenv("SA_MODEL", "mine")
    assert catalogue.default_model(("unet",)) == "mine"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"short", "found 5 bytes, expected 216746733 bytes"),
        (b"", "found 0 bytes"),
        (b"version https://git-lfs.x", "lfs"),
    ],
)
def test_files_that_cannot_be_the_weights_are_refused(home: Path, content: bytes, told: str) -> None:
    write(home / "models/dwpose/yolox_l.onnx", content)
    with pytest.raises(ModelDamaged, match=r"yolox_l\.onnx") as caught:
        catalogue.open_model("dwpose")
    assert told in caught.value.message
    assert "sa models pull dwpose" in str(caught.value.hint)


def test_a_folder_of_detectors_may_be_the_model_folder_itself(tmp_path: Path) -> None:
    folder = model_toml(tmp_path / "run-0.5", 'name = "m"\n[components.face]\nfile = "."\n')
    write(folder / "det.onnx")
    assert catalogue.open_model(folder, ("face",)).files["face"] == folder
    folder = model_toml(tmp_path / "s", 'name = "m"\n[components.face]\nfile = "face"\n')
    (folder / "face").mkdir()
    with pytest.raises(ModelMissing, match="face"):  # an empty folder is nothing
        catalogue.open_model(folder, ("face",))


# Folders


def test_a_trained_checkpoint_opens_by_path(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_sizes(monkeypatch)
    write(home / "models/svd-xt/vae/diffusion_pytorch_model.fp16.safetensors")
    folder = model_toml(
        tmp_path / "checkpoint-300",
        'name = "mine"\nlicence = "MIT"\nneeds = ["svd-xt"]\nface_channel_order = "bgr"\n[defaults]\nsteps = 8\n'
        '[components.unet]\nfile = "unet.safetensors"\nconfig = "unet.json"\n[training]\nsteps = 300\n',
    )
    write(folder / "unet.safetensors")
    write(folder / "unet.json", '{"in_channels": 8, "_class_name": "x"}')
    model = catalogue.open_model(str(folder), ("unet", "vae"))
    assert model.files["unet"] == folder / "unet.safetensors"
    assert model.configs["unet"] == {"in_channels": 8}
    assert (model.name, model.licence, model.defaults["steps"]) == ("mine", "MIT", 8)
    assert catalogue.open_model(folder / "model.toml").files == model.files


def test_a_checkpoint_may_need_a_folder_and_circles_end(tmp_path: Path) -> None:
    base = model_toml(tmp_path / "base", 'name = "base"\nneeds = ["../top"]\n[components.vae]\nfile = "v.bin"\n')
    write(base / "v.bin")
    top = model_toml(tmp_path / "top", 'name = "top"\nneeds = ["../base"]\n')
    assert catalogue.open_model(top, ("vae",)).files["vae"].samefile(base / "v.bin")
    model_toml(tmp_path / "top", 'name = "top"\nneeds = ["svd-xl"]\n')
    with pytest.raises(ModelDamaged, match="svd-xl") as caught:
        catalogue.open_model(top)
    assert caught.value.hint == "did you mean svd-xt?"


def test_a_folder_that_bears_a_catalogue_name_owns_its_files_alone(tmp_path: Path, home: Path) -> None:
    write(home / "models/stableanimator/unet.pth")
    folder = model_toml(tmp_path / "w", 'name = "stableanimator"\n[components.unet]\nfile = "unet.pth"\n')
    with pytest.raises(ModelMissing, match=r"unet \(unet\.pth\)"):
        catalogue.open_model(folder, ("unet",))


@pytest.mark.parametrize("at", ["checkpoints", "."])
def test_the_reference_download_opens_as_it_is(tmp_path: Path, at: str) -> None:
    root = reference_download(tmp_path / "StableAnimator")
    model = catalogue.open_model(root / at, ROLES)
    assert model.name == "stableanimator"
    assert (
        model.files["unet"]
        == root / at / ("Animation" if at == "checkpoints" else "checkpoints/Animation") / "unet.pth"
    )
    assert model.files["vae"].name == "diffusion_pytorch_model.fp16.safetensors"
    assert model.files["face"].samefile(root / "models/antelopev2")
    assert model.configs["unet"] == {"num_frames": 14}  # its own config, not the catalogue's
    assert model.configs["vae"] == {"latent_channels": 4}
    assert model.configs["image_encoder"]["hidden_size"] == 1280  # no config there: the catalogue's
    assert model.face_channel_order == "rgb"
    assert model.defaults["guidance"] == 3.0


def test_flat_files_another_svd_name_and_a_nested_face_pack(tmp_path: Path) -> None:
    for name in ("unet", "pose_net", "face_encoder"):
        write(tmp_path / "w" / f"{name}.pth")
    write(tmp_path / "w/unet.safetensors")
    write(tmp_path / "w/stable-video-diffusion-img2vid-xt/vae/diffusion_pytorch_model.bin")
    write(tmp_path / "w/stable-video-diffusion-img2vid-xt/image_encoder/pytorch_model.bin")
    write(tmp_path / "w/antelopev2/antelopev2/glintr100.onnx")
    model = catalogue.open_model(tmp_path / "w", ("unet", "vae", "image_encoder", "face"))
    assert model.files["unet"].name == "unet.safetensors"
    assert model.files["vae"].name == "diffusion_pytorch_model.bin"
    assert model.files["face"] == tmp_path / "w/antelopev2/antelopev2"


def test_a_training_checkpoint_of_the_reference_opens_at_its_last_step_with_bgr(tmp_path: Path) -> None:
    for step in (900, 1000):
        write(tmp_path / "c" / f"unet-{step}.pth")
    model = catalogue.open_model(tmp_path / "c", ("unet",))
    assert model.files["unet"].name == "unet-1000.pth"
    assert model.face_channel_order == "bgr"


def test_a_base_model_folder_opens_for_training(tmp_path: Path) -> None:
    write(tmp_path / "svd/unet/diffusion_pytorch_model.safetensors")
    write(tmp_path / "svd/vae/diffusion_pytorch_model.safetensors")
    model = catalogue.open_model(tmp_path / "svd", ("unet", "vae"))
    assert model.name == "svd-xt"
    assert model.configs["unet"]["block_out_channels"] == [320, 640, 1280, 1280]


def test_a_required_network_without_a_file_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "unet.json", "{}")
    own = model_toml(tmp_path, 'name = "own"\nlicence = "x"\n[components.unet]\nconfig = "unet.json"\n')
    with pytest.raises(ModelMissing, match=r"lacks unet \(without a file in model.toml\)"):
        catalogue.open_model(own, ["unet"])


def test_a_download_that_lacks_a_network_never_takes_another_of_that_role(tmp_path: Path, home: Path) -> None:
    root = reference_download(tmp_path / "r")
    (root / "checkpoints/Animation/pose_net.pth").unlink()
    write(home / "models/stableanimator/pose_net.pth")
    with pytest.raises(ModelMissing) as caught:
        catalogue.open_model(root, ("pose_net",))
    assert str(root / "checkpoints/Animation") in caught.value.message


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"Animation/unet\.pth"):
        catalogue.open_model(tmp_path)
    with pytest.raises(ModelMissing, match="no such model folder"):
        catalogue.open_model(str(tmp_path / "a/b"))
    with pytest.raises(BadInput, match="expected a model folder"):
        catalogue.open_model(write(tmp_path / "unet.pth"))
    write(tmp_path / "m/model.toml", 'name = "m"\n[components.unet]\nconfig = "unet.json"\n')
    with pytest.raises(ModelDamaged, match=r"unet\.json"):
        catalogue.open_model(tmp_path / "m")
    write(tmp_path / "m/unet.json", "[1]")
    with pytest.raises(ModelDamaged, match="JSON object"):
        catalogue.open_model(tmp_path / "m")


def test_the_folder_of_a_training_run_is_answered_with_the_model_in_it(tmp_path: Path) -> None:
    write(tmp_path / "run/model/model.toml", 'name = "m"\n')
    with pytest.raises(ModelMissing) as refused:
        catalogue.open_model(tmp_path / "run")
    assert refused.value.hint == f"name the model folder in it: {tmp_path / 'run/model'}"


def test_a_face_pack_beside_a_folder_does_not_make_it_a_model(tmp_path: Path) -> None:
    write(tmp_path / "models/antelopev2/glintr100.onnx")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ModelMissing):
        catalogue.open_model(tmp_path / "pictures")


def test_sizes_of_an_entry_are_unknown_where_one_file_is() -> None:
    assert isinstance(catalogue.entry("lpips"), Entry)
    assert catalogue.entry("lpips").bytes is None
    assert catalogue.entry("dwpose").bytes == 216746733 + 134399116
