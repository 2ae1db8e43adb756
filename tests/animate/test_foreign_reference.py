"""A reference unlike the images of the model's training is refused, and animated with ``--force``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from stableanimator_cli import catalogue
from stableanimator_cli.animate.run import run
from stableanimator_cli.catalogue import schema
from stableanimator_cli.errors import BadInput, ModelDamaged
from stableanimator_cli.motion.motion_file import save_motion
from stableanimator_cli.puppets.scene import sample_scene
from stableanimator_cli.train.base_model import model_toml


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, object]:
    """One frame of ``puppet`` in one step, of a photograph of a person."""
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.jpg")
    scene = sample_scene("val", 3, framing="portrait", size=(256, 256), clip=0, frames=1)
    Image.fromarray(scene.reference((512, 512)).image).save(tmp_path / "drawn.png")
    save_motion(tmp_path / "poses.npz", scene.motion())
    return {
        "reference": tmp_path / "photo.jpg", "motion": tmp_path / "poses.npz", "output": tmp_path / "out.mp4",
        "model": "puppet", "steps": 1, "device": "cpu", "allow_no_face": True,
    }  # fmt: skip


def test_a_photograph_is_foreign_to_puppet(flags, tmp_path):
    with pytest.raises(BadInput, match=r"photo\.jpg: it is unlike the images that model 'puppet'") as caught:
        run(flags=flags)
    assert "--force" in (caught.value.hint or "")
    assert not (tmp_path / "out.mp4").exists()
    report = run(flags={**flags, "force": True})
    assert any("unlike the images" in warning for warning in report.warnings)
    limit = catalogue.open_model("puppet").max_texture_error
    assert json.loads((tmp_path / "out.json").read_text())["texture_error"] > limit


@pytest.mark.parametrize("quality", [None, 60])
def test_a_drawn_figure_is_not_also_as_a_jpeg(flags, tmp_path, quality):
    reference = tmp_path / "drawn.png"
    if quality is not None:
        reference = tmp_path / "drawn.jpg"
        Image.open(tmp_path / "drawn.png").save(reference, quality=quality)
    report = run(flags={**flags, "reference": reference})
    assert not any("unlike" in warning for warning in report.warnings)
    limit = catalogue.open_model("puppet").max_texture_error
    assert 0 < json.loads((tmp_path / "out.json").read_text())["texture_error"] <= limit


def test_a_model_without_a_record_takes_any_image(tiny_model):
    assert catalogue.open_model(tiny_model).max_texture_error is None


def test_the_record_stands_in_the_card_and_is_checked(tmp_path):
    model = catalogue.open_model("puppet")
    text = model_toml(name="mine", summary="", model=model, defaults={}, components={}, training={})
    (tmp_path / "model.toml").write_text(text)
    assert schema.read(tmp_path).max_texture_error == model.max_texture_error
    (tmp_path / "model.toml").write_text(text.replace("max_texture_error = ", "max_texture_error = -"))
    with pytest.raises(ModelDamaged, match="max_texture_error"):
        schema.read(tmp_path)


def test_texture_is_lost_where_there_is_noise():
    model = catalogue.open_model("puppet")
    from stableanimator_cli.config.animate import DeviceConfig
    from stableanimator_cli.engine.device import DevicePlan
    from stableanimator_cli.engine.engine import Engine

    image = sample_scene("val", 3, framing="portrait", size=(256, 256), clip=0).reference().image
    noise = np.random.default_rng(0).normal(0, 20, image.shape)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    with Engine.open(model, DevicePlan.of(DeviceConfig(device="cpu"))) as engine:
        assert engine.texture_error(noisy) > 3 * engine.texture_error(image)
        assert engine.texture_error(np.full_like(image, 128)) < 5  # nothing to lose


def test_an_image_is_checked_once_and_another_one_again(monkeypatch):
    from stableanimator_cli.config.animate import DeviceConfig
    from stableanimator_cli.engine import engine as engine_module
    from stableanimator_cli.engine.device import DevicePlan
    from stableanimator_cli.engine.engine import Engine

    checked = []
    monkeypatch.setattr(engine_module, "texture_error", lambda _, image: checked.append(image.mean()) or image.mean())
    image = np.zeros((64, 64, 3), np.uint8)
    with Engine.open(catalogue.open_model("puppet"), DevicePlan.of(DeviceConfig(device="cpu"))) as engine:
        assert (engine.texture_error(image), engine.texture_error(image)) == (0, 0)
        image += 1  # in place: the remembered one is a copy
        assert engine.texture_error(image) == 1
    assert checked == [0, 1]
