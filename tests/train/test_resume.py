"""Runs of ``sa train`` that are resumed with flags and files, or had no checkpoint yet."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from stableanimator_cli import catalogue
from stableanimator_cli.config.schema import resolve
from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.errors import BadInput, ConfigError, ModelDamaged, ModelMissing, OutOfMemory, SaError
from stableanimator_cli.media import write_image
from stableanimator_cli.records import NETWORKS
from stableanimator_cli.train import resume, run
from stableanimator_cli.train.metrics_log import read_metrics
from stableanimator_cli.train.reference_layout import open_reference_clip
from tests.train.clip_folders import write_upstream


def flags(data: Path, model: Path, out: Path, **more: Any) -> dict[str, Any]:
    given = {
        "dataset": [data], "model": str(model), "output": out, "steps": 1, "frames": 1, "batch": 2, "warmup": 0,
        "train": "pose+face", "workers": 0, "device": "cpu", "checkpointing": "off", "cache": "off",
    }  # fmt: skip
    return given | more


def test_relative_paths_beside_resume_are_found_from_every_folder(data, tiny_model, tmp_path, monkeypatch):
    place, out = tmp_path / "place", tmp_path / "run"
    shutil.copytree(data, place / "clips")
    run.run(flags=flags(data, tiny_model, out))
    monkeypatch.chdir(place)
    named = {"dataset": [Path("clips")], "validate": [Path("clips")], "validate_every": 100}
    monkeypatch.setattr("stableanimator_cli.train.checkpoint_writer.validate", lambda *_: _SCORES)
    run.run(flags={"steps": 2, **named}, resumed=out)
    monkeypatch.chdir(tmp_path)
    run.run(flags={"steps": 3}, resumed=out)
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3]


def test_the_model_may_be_named_by_a_relative_path_again(data, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    out, model = tmp_path / "run", Path(tiny_model.name)
    run.run(flags=flags(data, model, out))
    run.run(flags={"steps": 2, "model": str(model)}, resumed=out)
    assert len(read_metrics(out)) == 2


def moved(model: Path, place: Path) -> Path:
    place.parent.mkdir()
    return model.rename(place)


@pytest.mark.parametrize("layout", ["tiny_model", "upstream_model"])
def test_a_base_model_that_was_moved_is_named_beside_resume(data, tmp_path, request, layout):
    model, out = Path(shutil.copytree(request.getfixturevalue(layout), tmp_path / "model")), tmp_path / "run"
    clips = write_upstream(tmp_path / "data/rec/00001", 4)  # of no channel order
    run.run(flags=flags(clips, model, out, batch=1, face="off", train="adapters"))
    place = moved(model, tmp_path / "elsewhere/m")
    with pytest.raises(SaError, match=r"needs: found|lacks vae") as lost:
        catalogue.open_model(out / "model", NETWORKS)
    assert f"`sa train --resume {out} --model FOLDER`" in str(lost.value.hint)
    with pytest.raises(ModelMissing, match="model: no such model folder") as caught:
        run.run(flags={"steps": 2}, resumed=out)
    assert caught.value.hint == "if it was moved, name its new place beside --resume: --model FOLDER"
    run.run(flags={"steps": 2, "model": str(place)}, resumed=out)
    run.run(flags={"steps": 3}, resumed=out)  # the new place is that of the run
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3]
    for step in (1, 2, 3):  # the earlier checkpoints are model folders again
        found = catalogue.open_model(out / f"checkpoints/step-{step}", NETWORKS)
        assert found.files["vae"].resolve().is_relative_to(place)


def test_a_checkpoint_without_its_base_model_names_the_command_that_finds_it_again(data, tiny_model, tmp_path):
    model, out = Path(shutil.copytree(tiny_model, tmp_path / "model")), tmp_path / "run"
    run.run(flags=flags(data, model, out))
    moved(model, tmp_path / "elsewhere/m")
    with pytest.raises(ModelDamaged, match="needs: found") as caught:
        catalogue.open_model(out / "model")
    assert (
        caught.value.hint
        == f"if the base model was moved, name its new place: `sa train --resume {out} --model FOLDER`"
    )
    alone = shutil.copytree(out / "checkpoints/step-1", tmp_path / "alone/step-1")
    with pytest.raises(ModelDamaged, match="needs: found") as caught:
        catalogue.open_model(alone)
    assert str(caught.value.hint).startswith("move the model back to ")
    assert "new place in " in str(caught.value.hint)


def test_a_moved_run_and_a_copied_base_model_are_the_same_training(data, tiny_model, tmp_path):
    out, copied = tmp_path / "run", Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    run.run(flags=flags(data, tiny_model, out))
    out = moved(out, tmp_path / "elsewhere/run")
    run.run(flags={"steps": 2, "model": str(copied)}, resumed=out)
    found = catalogue.open_model(out / "checkpoints/step-1", NETWORKS)
    assert found.files["vae"].resolve() == copied / "vae.safetensors"


@pytest.mark.parametrize("plan", [False, True])
def test_another_base_model_is_refused_on_resume(data, tiny_model, tmp_path, plan):
    out, other = tmp_path / "run", Path(shutil.copytree(tiny_model, tmp_path / "other"))
    run.run(flags=flags(data, tiny_model, out))
    weights = load_file(other / "vae.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, other / "vae.safetensors")
    before = (out / "config.toml").read_bytes(), (out / "model/model.toml").read_bytes()
    with pytest.raises(BadInput, match="another vae in the model than it was trained with"):
        run.run(flags={"steps": 2, "model": str(other)}, resumed=out, plan_only=plan)
    assert before == ((out / "config.toml").read_bytes(), (out / "model/model.toml").read_bytes())


def test_a_run_without_a_record_of_its_base_model_has_one_place(data, tiny_model, tmp_path):
    """Earlier versions recorded no digests."""
    out, copied = tmp_path / "run", Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    run.run(flags=flags(data, tiny_model, out))
    progress = out / "checkpoints/step-1/state/progress.json"
    progress.write_text(json.dumps({k: v for k, v in json.loads(progress.read_text()).items() if k != "base"}))
    with pytest.raises(ConfigError, match=r"model: was .*tiny.*, now .*copy"):
        run.run(flags={"steps": 2, "model": str(copied)}, resumed=out)
    run.run(flags={"steps": 2}, resumed=out)


def test_a_run_from_a_model_of_the_hub_resumes(data, tiny_model, tmp_path, monkeypatch):
    """Its name there was taken for a folder beside the run."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    folder, out = tmp_path / "hf/hub/models--somebody--tiny", tmp_path / "run"
    shutil.copytree(tiny_model, folder / "snapshots/feed")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("feed")
    run.run(flags=flags(data, Path("somebody/tiny"), out))
    run.run(flags={"steps": 2}, resumed=out)
    run.run(flags={"steps": 3, "model": "somebody/tiny"}, resumed=out)
    assert len(read_metrics(out)) == 3


def test_an_entry_of_the_catalogue_has_its_name_at_the_hub_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert resume.with_full_paths(config_of("FrancisRing/StableAnimator")).model == "stableanimator"
    assert resume.with_full_paths(config_of("puppet")).model == "puppet"


def config_of(model: str) -> TrainConfig:
    return resolve(TrainConfig, {"dataset": ["clips"], "output": "RUN", "model": model})


STAGES = """
[[stage]]
name = "first"
steps = 1
frames = 1
train = "pose+face"
[[stage]]
name = "second"
epochs = 1
frames = 1
train = "pose+face"
"""


@pytest.fixture
def two_stages(data, tiny_model, tmp_path) -> tuple[Path, Path]:
    """A finished run of two stages, a step and two, and the file that it was started with."""
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(STAGES)
    given = flags(data, tiny_model, out)
    for name in ("steps", "frames", "batch", "train", "warmup"):
        del given[name]
    run.run(flags=given, config_file=recipe)
    return out, recipe


def test_epochs_extend_the_last_stage_as_steps_do(two_stages):
    out, _ = two_stages
    run.run(flags={"epochs": 1.5}, resumed=out)
    assert [row["stage"] for row in read_metrics(out)] == ["first", "second", "second", "second"]


def test_the_file_that_a_run_was_started_with_changes_nothing(two_stages):
    """Its stages have no sizes: they are the model's."""
    out, recipe = two_stages
    before = (out / "config.toml").read_bytes()
    run.run(flags={}, config_file=recipe, resumed=out)
    assert (out / "config.toml").read_bytes() == before
    recipe.write_text(STAGES + 'sizes = "32x32"\n')
    with pytest.raises(ConfigError, match=r"found \"stage\[1\]\.sizes: was '64x64', now '32x32'\", expected"):
        run.run(flags={}, config_file=recipe, resumed=out)


def test_a_run_without_a_checkpoint_is_no_model_to_start_from(data, tiny_model, tmp_path, monkeypatch):
    """What stops the first step is mended by another flag, as less --micro-batch: the run cannot resume with it."""
    out = tmp_path / "run"

    def full(*_: Any) -> None:
        raise OutOfMemory("no memory", hint="use a smaller --micro-batch")

    with monkeypatch.context() as patched:
        patched.setattr("stableanimator_cli.train.loop.Loop.run", full)
        with pytest.raises(OutOfMemory):
            run.run(flags=flags(data, tiny_model, out))
    with pytest.raises(BadInput, match="an existing run") as caught:
        run.run(flags=flags(data, tiny_model, out, micro_batch=1))
    assert "delete it, as it has no checkpoint" in str(caught.value.hint)
    with pytest.raises(ConfigError, match=r"memory\.micro_batch: was not set, now 1") as refused:
        run.run(flags={"micro_batch": 1}, resumed=out)
    assert f"delete {out}, which has no checkpoint" in str(refused.value.hint)


def test_skeletons_and_masks_of_images_are_the_same_when_a_run_resumes(tiny_model, tmp_path):
    clip, out = write_upstream(tmp_path / "data/rec/00001", 4), tmp_path / "run"
    run.run(flags=flags(tmp_path / "data", tiny_model, out, batch=1, face="off", train="adapters"))
    for folder in ("poses", "faces"):
        changed = clip / folder / "frame_1.png"
        before = changed.read_bytes()
        changed.write_bytes(before + b"more")  # of another size
        with pytest.raises(BadInput, match="other clips in the dataset"):
            run.run(flags={"steps": 2}, resumed=out)
        changed.write_bytes(before)
    (clip / "faces/frame_2.png").rename(tmp_path / "mask.png")
    with pytest.raises(BadInput, match="other clips in the dataset"):
        run.run(flags={"steps": 2}, resumed=out)
    (tmp_path / "mask.png").rename(clip / "faces/frame_2.png")
    write_image(clip / "poses/frame_9.png", np.zeros((64, 64, 3), np.uint8))  # of no frame: it is not read
    run.run(flags={"steps": 2}, resumed=out)
    assert len(read_metrics(out)) == 2


@pytest.mark.parametrize("annotations", [False, True])
def test_a_run_of_images_that_an_earlier_version_wrote_resumes(tiny_model, tmp_path, annotations):
    """Its digest does not cover skeletons and masks, or only their names and sizes."""
    clip, out = write_upstream(tmp_path / "data/rec/00001", 4), tmp_path / "run"
    run.run(flags=flags(tmp_path / "data", tiny_model, out, batch=1, face="off", train="adapters"))
    opened = open_reference_clip(clip)
    row = f"rec/00001\0{opened.former_key}\0004" + f"\n{opened.former_annotations_key}" * annotations
    progress = out / "checkpoints/step-1/state/progress.json"
    table = json.loads(progress.read_text()) | {"dataset": hashlib.sha256(row.encode()).hexdigest()}
    progress.write_text(json.dumps(table))
    run.run(flags={"steps": 2}, resumed=out)
    assert len(read_metrics(out)) == 2


_SCORES = {"csim": None, "keypoint_error": None, "score": 0.0, "absent": False}
