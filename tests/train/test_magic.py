"""``sa train --backbone magic``: from published networks, from scratch beside another model's encoders, resumed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stableanimator_cli import catalogue
from stableanimator_cli.engine.weights import loaders
from stableanimator_cli.errors import BadInput, ConfigError, ModelMissing
from stableanimator_cli.progress import NullReporter, WarningLog
from stableanimator_cli.train import checkpoint, run
from stableanimator_cli.train.metrics_log import read_metrics
from tests.magic_models import write_magic, write_published
from tests.tiny import engine_of, rendered, request

STEPS = 4
SCRATCH = "unet,pose_net,face_encoder"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_published(folder)
    return folder


def train(data: Path, model: Path, out: Path, reporter: Any = None, **more: Any) -> Any:
    flags = {
        "dataset": [data], "model": str(model), "output": out, "backbone": "magic", "steps": STEPS, "frames": 3,
        "batch": 1, "rate": 1e-3, "train": "all", "save_every": 2, "workers": 0, "device": "cpu",
        "checkpointing": "off", "cache": "latents,embeddings", "ema": 0.0, "sizes": "64x64",
    }  # fmt: skip
    return run.run(flags=flags | more, reporter=reporter or NullReporter())


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder)]


@pytest.fixture(scope="module")
def whole(data: Path, published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(data, published, out).steps == STEPS
    return out


class Notes(NullReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("plan_only", [True, False])
@pytest.mark.parametrize("more", [{"frames": 13}, {"validate_frames": 13}])
def test_more_frames_than_the_motion_modules_know_are_refused(data, published, tmp_path, more, plan_only):
    flags = {
        "dataset": [data], "model": str(published), "output": tmp_path / "run", "backbone": "magic", "steps": 1,
        "frames": 12, "validate": [data], "sizes": "64x64",
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match="found 13, expected at most 12, the frames that the motion modules"
    ) as caught:
        run.run(flags=flags | more, plan_only=plan_only, reporter=NullReporter())
    assert str(caught.value).startswith("--" + next(iter(more)).replace("_", "-"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match="all shorter than 12 frames"):  # 12 frames are not refused
        run.run(flags=flags, plan_only=plan_only, reporter=NullReporter())


def test_a_checkpoint_is_a_model_folder_of_its_backbone(whole, published):
    folder = whole / "checkpoints" / f"step-{STEPS}"
    assert tomllib.loads((folder / "model.toml").read_text())["backbone"] == "magic"
    model = catalogue.open_animator(whole / "model")
    assert (model.backbone, model.configs["unet"]["motion_max_seq_length"]) == ("magic", 12)
    assert len(losses(whole)) == STEPS
    base = tomllib.loads((whole / "base" / "model.toml").read_text())
    assert base["needs"] == ["antelopev2", "dwpose"]  # faces and motions of a checkpoint
    before, after = (
        load_file(published / "unet" / "diffusion_pytorch_model.safetensors"),
        load_file(folder / "unet.safetensors"),
    )
    for name in ("conv_in.weight", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v.weight"):
        assert not torch.equal(before[name], after[name])
        assert not torch.equal(before[name], after[f"appearance.{name}"])
    unet: Any = loaders(model, torch.float32, "distribution")["unet"]()
    assert all(torch.equal(tensor, after[name]) for name, tensor in unet.state_dict().items())
    with engine_of(whole / "model") as engine:
        assert rendered(engine, request(4, schedule="ddim")).shape == (4, 64, 64, 3)


def test_resumed_is_bit_for_bit_the_unbroken_run(whole, data, published, tmp_path):
    out = tmp_path / "run"
    train(data, published, out, steps=2)
    run.run(flags={"steps": STEPS}, resumed=out)
    assert losses(out) == losses(whole)
    mine, theirs = (load_file(f / "checkpoints" / f"step-{STEPS}" / "unet.safetensors") for f in (out, whole))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_training_starts_from_scratch_beside_the_encoders_of_another_model(data, tiny_model, tmp_path):
    out, notes = tmp_path / "run", Notes()
    train(data, tiny_model, out, notes, from_scratch=SCRATCH, steps=3)
    assert "--sigma timesteps: the noise levels of the backbone magic" in notes.lines
    model = catalogue.open_animator(out / "model")
    assert model.backbone == "magic"
    assert model.files["vae"].samefile(tiny_model / "vae.safetensors")
    with engine_of(out / "model") as engine:
        assert rendered(engine, request(3, schedule="ddim")).shape == (3, 64, 64, 3)
    exported = tmp_path / "mine"
    run.run(flags={"output": exported}, resumed=out, export="model")
    with pytest.raises(ConfigError, match="the checkpoint has backbone magic, and the reference implementation svd"):
        run.run(flags={"output": tmp_path / "upstream"}, resumed=out, export="upstream")
    assert catalogue.open_animator(exported).backbone == "magic"


def test_a_checkpoint_is_trained_further(whole, data, tmp_path):
    report = train(data, whole / "model", tmp_path / "run", backbone=None, steps=2)
    assert report.steps == 2
    assert catalogue.open_animator(tmp_path / "run" / "model").backbone == "magic"


def test_image_only_stages_and_low_ranks_train(whole, data, tmp_path):
    config = tmp_path / "stages.toml"
    config.write_text(
        '[[stage]]\nname = "images"\nsteps = 2\nframes = 1\nbatch = 2\ntrain = "all"\nsizes = "64x64"\n'
        'image_only = true\n[[stage]]\nname = "clips"\nsteps = 2\nframes = 3\nbatch = 1\ntrain = "attentions"\n'
        'sizes = "64x64"\n'
    )
    flags = {
        "dataset": [data],
        "model": str(whole / "model"),
        "workers": 0,
        "device": "cpu",
        "cache": "latents,embeddings",
    }
    run.run(flags={**flags, "output": tmp_path / "stages"}, config_file=config)
    before, after = (load_file(f / "unet.safetensors") for f in (whole / "model", tmp_path / "stages" / "model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".motion_modules." in name for name in moved)
    assert any(name.startswith("appearance.") for name in moved)
    run.run(
        flags={
            **flags,
            "output": tmp_path / "lora",
            "train": "lora",
            "steps": 2,
            "frames": 2,
            "batch": 1,
            "sizes": "64x64",
        }
    )
    assert losses(tmp_path / "lora")


def test_what_a_backbone_cannot_start_from_is_refused(data, tiny_model, published, whole, tmp_path):
    with pytest.raises(ConfigError, match="--backbone: found 'magic', expected svd, that of the UNet of tiny"):
        train(data, tiny_model, tmp_path / "a")
    with pytest.raises(ConfigError, match="--backbone: found 'svd', expected magic"):
        train(data, whole / "model", tmp_path / "b", backbone="svd")
    with pytest.raises(ConfigError, match="--sigma: found 'lognormal', expected timesteps with the backbone magic"):
        train(data, published, tmp_path / "c", sigma="lognormal")
    with pytest.raises(ConfigError, match="--sigma: found 'timesteps', expected cosine or lognormal"):
        train(data, tiny_model, tmp_path / "d", backbone=None, sigma="timesteps")
    (tmp_path / "half" / "unet").mkdir(parents=True)
    with pytest.raises(ModelMissing, match=r"not all networks of the backbone magic: missing unet .*; motion_adapter"):
        train(data, tmp_path / "half", tmp_path / "e")
    with pytest.raises(ConfigError, match="--backbone: found nothing, expected magic"):
        train(data, published, tmp_path / "f", backbone=None)
    assert not any((tmp_path / name).exists() for name in "abcdef")


def test_the_cost_is_predicted_on_meta(data, published, tmp_path):
    flags = {
        "dataset": [data], "model": str(published), "output": tmp_path / "run", "backbone": "magic", "device": "cpu",
        "steps": 1, "frames": 2, "batch": 1, "workers": 0,
    }  # fmt: skip
    plan = run.run(flags=flags, plan_only=True)
    assert plan is not None
    assert "GiB" in plan.summary() or "MiB" in plan.summary()


def test_a_model_folder_of_ours_trains_with_validation(data, tmp_path):
    model, log = write_magic(tmp_path / "magic", drawn=True), WarningLog(NullReporter())
    train(data, model, tmp_path / "run", log, steps=2, validate=[data], validate_every=2)
    assert checkpoint.read_scores(tmp_path / "run")[0]["step"] == 2
