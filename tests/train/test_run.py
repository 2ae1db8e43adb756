"""Whole runs of ``sa train`` on the smallest networks: killed, gone on with, refused, exported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stableanimator_cli import catalogue
from stableanimator_cli.catalogue.register import import_folder
from stableanimator_cli.config.schema import from_mapping, read_toml
from stableanimator_cli.config.train import TrainConfig
from stableanimator_cli.errors import BadInput, CheckFailed, ConfigError, ModelDamaged, ModelMissing
from stableanimator_cli.files import exclusive_lock, locked_output
from stableanimator_cli.media import open_clip
from stableanimator_cli.progress import NullReporter, WarningLog
from stableanimator_cli.records import NETWORKS
from stableanimator_cli.train import checkpoint, pipeline, run
from stableanimator_cli.train.metrics_log import read_metrics
from tests.animate.clips import Heard
from tests.conftest import ROOT
from tests.train.clip_folders import write_clip

STEPS = 6


def flags(data: Path, model: Path, out: Path, **more: Any) -> dict[str, Any]:
    given = {
        "dataset": [data], "model": str(model), "output": out, "steps": STEPS, "frames": 1, "batch": 2, "warmup": 2,
        "rate": 1e-3, "train": "adapters", "save_every": 2, "ema": 0.9, "workers": 0, "device": "cpu",
        "checkpointing": "off", "cache": "latents,embeddings",
    }  # fmt: skip
    return given | more


@pytest.fixture(scope="module")
def whole(data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    torch.set_num_threads(1)
    report = run.run(flags=flags(data, tiny_model, out))
    assert report is not None
    assert report.to_json()["steps"] == STEPS
    return out


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder)]


def words(data: Path, model: Path, out: Path) -> list[str]:
    given = flags(data, model, out)
    del given["dataset"]
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items()]
    return ["train", str(data), *(word for pair in pairs for word in pair), "--quiet"]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stableanimator_cli", *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_killed_and_resumed_is_bit_for_bit_the_run_that_was_never_killed(whole, data, tiny_model, tmp_path):
    out = tmp_path / "killed"
    child = start(words(data, tiny_model, out))
    limit = time.monotonic() + 400
    while not checkpoint.list_checkpoints(out) and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.1)  # into the steps after the first checkpoint
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    reached = checkpoint.list_checkpoints(out)[-1][0]
    assert 2 <= reached < STEPS
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss"')  # what a kill leaves of a line
    run.run(flags={}, resumed=out)
    assert losses(out) == losses(whole)
    assert [row["step"] for row in read_metrics(out)] == list(range(1, STEPS + 1))
    for name in ("unet", "pose_net", "face_encoder"):
        mine, theirs = (load_file(f / "checkpoints" / f"step-{STEPS}" / f"{name}.safetensors") for f in (out, whole))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    states = [checkpoint.read_state(f / "checkpoints" / f"step-{STEPS}") for f in (out, whole)]
    for part in ("weights", "average"):
        left, right = (getattr(state, part) for state in states)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in right)


def test_parts_of_a_batch_add_up_to_the_batch(whole, data, tiny_model, tmp_path):
    run.run(flags=flags(data, tiny_model, tmp_path / "run", micro_batch=1, steps=3))
    assert losses(tmp_path / "run") == pytest.approx(losses(whole)[:3], rel=1e-5)


def test_a_checkpoint_is_a_model_folder(whole, tiny_model):
    model = catalogue.open_model(whole / "model", NETWORKS)
    assert model.files["vae"].resolve() == (tiny_model / "vae.safetensors").resolve()
    assert model.defaults["id_adapter"] == "distribution"
    assert model.defaults["size"] == "64x64"  # of the model it came from
    assert [step for step, _ in checkpoint.list_checkpoints(whole)] == [2, 4, 6]
    before, after = load_file(tiny_model / "unet.safetensors"), load_file(model.files["unet"])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".processor.id_to_" in name for name in moved)
    assert (whole / "curves.png").stat().st_size > 1000


def test_a_finished_run_that_is_extended_is_the_longer_run(whole, data, tiny_model, tmp_path):
    out = tmp_path / "run"
    run.run(flags=flags(data, tiny_model, out, steps=3))
    reporter = WarningLog(NullReporter())
    run.run(flags={"steps": STEPS}, resumed=out, reporter=reporter)
    assert reporter.warnings == []  # a constant learning rate
    assert losses(out) == losses(whole)
    mine, theirs = (load_file(f / "checkpoints" / f"step-{STEPS}" / "unet.safetensors") for f in (out, whole))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    with pytest.raises(ConfigError, match=r"--steps: found 2, expected 6 or more"):
        run.run(flags={"steps": 2}, resumed=out)
    run.run(flags={}, resumed=out)  # the new length is that of the run
    assert losses(out) == losses(whole)


def test_an_extended_cosine_says_that_it_is_another_training(data, tiny_model, tmp_path):
    out = tmp_path / "run"
    run.run(flags=flags(data, tiny_model, out, steps=2, schedule="cosine"))
    reporter = WarningLog(NullReporter())
    run.run(flags={"steps": 3}, resumed=out, reporter=reporter)
    assert "not equal to a training of 3 steps" in reporter.warnings[0]
    assert len(losses(out)) == 3


def test_epochs_that_extend_a_run_are_checked_as_steps_are(data, tiny_model, tmp_path):
    out = tmp_path / "run"
    run.run(flags=flags(data, tiny_model, out, steps=2, schedule="cosine"))
    before = (out / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match="--epochs: found '1 steps', expected 2 or more"):
        run.run(flags={"epochs": 1.0}, resumed=out)  # two clips, one batch of two
    assert (out / "config.toml").read_bytes() == before  # a shorter one could not be resumed
    reporter = WarningLog(NullReporter())
    run.run(flags={"epochs": 3.0}, resumed=out, reporter=reporter)
    assert "not equal to a training of 3 steps" in reporter.warnings[0]
    assert len(losses(out)) == 3


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("config", {"seed": 0}, "config.stage is missing, expected a list of objects"),
        ("config", {"stage": []}, "config.stage is an empty list, expected one stage or more"),
        ("config", {"stage": [3]}, r"config.stage is a list of 1, expected a list of objects \(item 0 is a number\)"),
        ("config", {"stage": [{"steps": "2"}]}, r"config.stage\[0\].steps is '2', expected a whole number"),
        (
            "place",
            {"step": 6, "stage": 5, "within": 6, "samples": 12},
            "place.stage is 5, expected a whole number from",
        ),
    ],
)
def test_a_state_of_no_training_is_named_and_nothing_is_written(whole, key, value, said):
    file = whole / "checkpoints" / f"step-{STEPS}" / "state" / "progress.json"
    sound, before = file.read_text(), (whole / "config.toml").read_bytes()
    file.write_text(json.dumps(json.loads(sound) | {key: value}))
    try:
        with pytest.raises(BadInput, match=said) as caught:
            run.run(flags={}, resumed=whole)
    finally:
        file.write_text(sound)
    assert f"delete {file.parent.parent}" in str(caught.value.hint)
    assert (whole / "config.toml").read_bytes() == before


def test_a_resumed_run_has_one_folder(whole, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--output: found .*other'.*, expected .*whole, the folder that --resume"):
        run.run(flags={"output": tmp_path / "other"}, resumed=whole)
    monkeypatch.chdir(whole.parent)
    assert run.run(flags={"output": Path(whole.name)}, resumed=whole) is not None


def test_a_run_of_relative_paths_resumes_from_anywhere_and_its_clips_may_move(data, tiny_model, tmp_path, monkeypatch):
    place, moved = tmp_path / "place", tmp_path / "moved"
    shutil.copytree(data, place / "clips")
    monkeypatch.chdir(place)
    run.run(flags=flags(Path("clips"), tiny_model, Path("run"), steps=2, validate=[Path("clips")]))
    monkeypatch.chdir(tmp_path)
    run.run(flags={"steps": 3}, resumed=place / "run")
    (place / "clips").rename(moved)
    with pytest.raises(BadInput, match="clips: found no such path") as caught:
        run.run(flags={"steps": 4}, resumed=place / "run")
    assert caught.value.hint == "if it was moved, name its new place beside --resume"
    run.run(flags={"steps": 4, "dataset": [moved], "validate": [moved]}, resumed=place / "run")
    assert len(losses(place / "run")) == 4


def test_a_resumed_run_refuses_another_config_and_shows_the_difference(whole):
    with pytest.raises(ConfigError, match=r"stage\[0\]\.lr: was 0\.001, now 0\.5") as caught:
        run.run(flags={"rate": 0.5}, resumed=whole)
    assert caught.value.exit_code == 2
    before = losses(whole)
    run.run(flags={"keep": 5, "spike": 0.0}, resumed=whole)  # what decides no number may change
    assert losses(whole) == before


def test_a_resumed_run_refuses_other_clips(whole, data, tmp_path):
    write_clip(data / "clip2", 4)
    try:
        with pytest.raises(BadInput, match="other clips"):
            run.run(flags={}, resumed=whole)
    finally:
        (data / "clip2").rename(tmp_path / "away")


def test_a_new_run_leaves_an_old_one_alone(whole, data, tiny_model):
    with pytest.raises(BadInput, match="an existing run"):
        run.run(flags=flags(data, tiny_model, whole))


def test_a_full_disk_leaves_the_last_checkpoint(data, tiny_model, tmp_path, monkeypatch):
    written = torch.save

    def full(state: Any, path: Path) -> None:
        written(state, path)
        if "step-4" in str(path):
            raise OSError(28, "No space left on device")

    def no_curves(rows: Any, path: Path) -> None:
        raise BadInput(path, "no room left to write", "enough free space")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(pipeline, "draw_curves", no_curves)  # drawn after the loop, on the same full disk
    with pytest.raises(BadInput, match="step-4: found no room left") as caught:
        run.run(flags=flags(data, tiny_model, tmp_path / "run"))
    assert caught.value.exit_code == 3
    assert "--resume" in str(caught.value.hint)
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path / "run")] == [2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    checkpoint.read_state(tmp_path / "run" / "checkpoints" / "step-2")


def test_a_loss_that_is_not_finite_names_the_batch(data, tiny_model, tmp_path, monkeypatch):
    from stableanimator_cli.train.stage import TrainingStage

    made = TrainingStage.inputs

    def broken(self: TrainingStage, batch: Any) -> Any:
        inputs = made(self, batch)
        if 4 in batch.index:  # of the third step
            inputs.latents.fill_(float("nan"))
        return inputs

    monkeypatch.setattr(TrainingStage, "inputs", broken)
    with pytest.raises(CheckFailed, match=r"step 3: the loss is nan; the batch was .*clip\d frames \d") as caught:
        run.run(flags=flags(data, tiny_model, tmp_path / "run"))
    assert caught.value.exit_code == 8
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path / "run")] == [2]
    assert len(losses(tmp_path / "run")) == 2


def test_an_export_is_upstreams_files_or_a_folder_that_needs_no_other(whole, tmp_path):
    run.run(flags={"output": tmp_path / "up"}, resumed=whole, export="upstream")
    files = ["face_encoder.pth", "pose_net.pth", "stableanimator-cli.json", "unet.pth"]
    assert sorted(path.name for path in (tmp_path / "up").iterdir()) == files
    assert catalogue.open_model(whole / "model").face_channel_order == "bgr"
    exported = catalogue.open_model(tmp_path / "up")
    assert (exported.face_channel_order, exported.warnings) == ("bgr", ())
    (tmp_path / "up" / "stableanimator-cli.json").unlink()
    bare = catalogue.open_model(tmp_path / "up")
    assert bare.face_channel_order == "rgb"
    assert len(bare.warnings) == 1
    assert "rgb is used" in bare.warnings[0]
    (tmp_path / "up" / "stableanimator-cli.json").write_text('{"face_channel_order": "gbr"}')
    with pytest.raises(ModelDamaged, match="face_channel_order"):
        catalogue.open_model(tmp_path / "up")
    ours = load_file(whole / "model" / "unet.safetensors")
    theirs = torch.load(tmp_path / "up" / "unet.pth", weights_only=True)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    run.run(flags={"output": tmp_path / "mine", "weights": "float16"}, resumed=whole, export="model")
    model = catalogue.open_model(tmp_path / "mine", NETWORKS)
    assert all(path.is_relative_to(tmp_path / "mine") for path in model.files.values())
    for name, tensor in load_file(model.files["unet"]).items():
        trained = ".processor.id_to_" in name
        assert tensor.dtype == (torch.float16 if trained else torch.float32)
        assert trained or torch.equal(tensor, ours[name])  # what was not trained is never rounded


def test_an_export_of_other_sizes_than_svds_is_completed_by_no_download(whole, tmp_path):
    reporter = WarningLog(NullReporter())
    run.run(flags={"output": tmp_path / "up"}, resumed=whole, export="upstream", reporter=reporter)
    (warning,) = reporter.warnings
    assert "other sizes than SVD's" in warning
    assert "--export model writes all networks" in warning
    with pytest.raises(ModelMissing, match="other sizes than SVD's, and lack vae, image_encoder of these") as caught:
        catalogue.open_model(tmp_path / "up", NETWORKS)
    assert caught.value.downloads == ()
    assert "--export model" in str(caught.value.hint)
    note = tmp_path / "up/stableanimator-cli.json"
    note.write_text('{"face_channel_order": "rgb", "fits_svd": false}')
    with pytest.raises(BadInput, match="other sizes than the released ones") as refused:
        import_folder(tmp_path / "up")
    assert refused.value.hint == caught.value.hint
    note.write_text('{"face_channel_order": "bgr"}')  # of SVD's sizes
    with pytest.raises(ModelMissing, match="lacks vae") as caught:
        catalogue.open_model(tmp_path / "up", NETWORKS)
    assert caught.value.downloads == ("svd-xt",)


@pytest.mark.parametrize(
    ("more", "plan", "flag"),
    [
        ({}, True, "--plan"), ({"steps": 9}, False, "--steps"), ({"seed": 0}, False, "--seed"),
        ({"dataset": ["clips"]}, False, "DATASET"), ({"save_every": 9}, False, "--save-every"),
    ],
)  # fmt: skip
def test_an_export_refuses_what_it_does_not_read(whole, tmp_path, more, plan, flag):
    with pytest.raises(ConfigError, match=f"^{flag}: --export does not read it"):
        run.run(flags={"output": tmp_path / "mine", **more}, resumed=whole, export="model", plan_only=plan)
    assert not list(tmp_path.iterdir())


def test_an_export_of_another_form_is_refused(whole, tmp_path):
    """From Python, where the command line has not checked it: it would be written as a model, and as float32."""
    with pytest.raises(ConfigError, match="--export: found 'onnx', expected model or upstream"):
        run.run(flags={"output": tmp_path / "mine"}, resumed=whole, export="onnx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--weights: found 'bfloat16', expected float16 or float32"):
        run.run(flags={"output": tmp_path / "mine", "weights": "bfloat16"}, resumed=whole, export="model")
    assert not list(tmp_path.iterdir())


def test_an_export_has_the_full_name_of_its_folder(whole, tmp_path):
    run.run(flags={"output": tmp_path / "mine.v1.2"}, resumed=whole, export="model")
    assert catalogue.open_model(tmp_path / "mine.v1.2").name == "mine.v1.2"


def test_an_ablation_is_not_exported_as_the_released_networks(data, tiny_model, tmp_path):
    """The three files do not say how faces are joined: opened again, they would be aligned."""
    out = tmp_path / "run"
    run.run(flags=flags(data, tiny_model, out, steps=2, id_adapter="addition"))
    with pytest.raises(ConfigError, match="--export upstream: the checkpoint has id_adapter addition, and the ref"):
        run.run(flags={"output": tmp_path / "up"}, resumed=out, export="upstream")
    assert not (tmp_path / "up").exists()
    run.run(flags={"output": tmp_path / "mine"}, resumed=out, export="model")
    assert catalogue.open_model(tmp_path / "mine").defaults["id_adapter"] == "addition"


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


@pytest.mark.parametrize(
    ("train", "more"),
    [
        ("adapters", {"dtype": "bfloat16"}),
        ("lora", {"dtype": "bfloat16", "lora_rank": 2}),
        ("adapters", {"dtype": "float16", "weights": "float16"}),
        ("pose+face", {"dtype": "bfloat16", "from_scratch": "unet"}),
    ],
)
def test_what_is_not_trained_is_the_base_models_byte_for_byte(data, tiny_model, tmp_path, train, more):
    """In checkpoints and in both exports, whatever type is computed in and saved."""
    from stableanimator_cli.engine.training import init_network
    from stableanimator_cli.engine.weights import builders

    out = tmp_path / "run"
    run.run(flags=flags(data, tiny_model, out, train=train, steps=2, ema=0.0, **more))
    run.run(flags={"output": tmp_path / "up", "weights": "float16"}, resumed=out, export="upstream")
    run.run(flags={"output": tmp_path / "mine", "weights": "float16"}, resumed=out, export="model")
    base = load_file(tiny_model / "unet.safetensors")
    if "from_scratch" in more:
        base = init_network(builders(catalogue.open_model(str(tiny_model)), "distribution")["unet"], 0).state_dict()
    made = [
        load_file(out / "model" / "unet.safetensors"),
        load_file(tmp_path / "mine" / "unet.safetensors"),
        torch.load(tmp_path / "up" / "unet.pth", weights_only=True),
    ]
    moved = {name for name in base if not same_bytes(made[0][name], base[name])}
    if train == "adapters":
        assert moved == {name for name in base if ".processor.id_to_" in name}
    elif train == "lora":
        ends = tuple(f"{end}.weight" for end in ("to_q", "to_k", "to_v", "to_out.0", "id_to_k", "id_to_v"))
        trained = {name for name in base if "attentions" in name and name.endswith(ends)}
        assert moved
        assert moved <= trained
        assert {made[0][name].dtype for name in moved} == {torch.float32}
        # one key has no gradient: whether such a matrix moves is a matter of the processor's rounding
        assert all(".temporal_transformer_blocks." in name and ".attn2." in name for name in trained - moved)
        moved = trained
    else:
        assert not moved
    for tensors in made:
        assert all(same_bytes(tensors[name], base[name]) for name in base if name not in moved)
    assert {tensors[name].dtype for tensors in made[1:] for name in moved} <= {torch.float16}


def test_an_export_is_apart_from_the_run_and_written_by_one(whole, tmp_path):
    for output in (whole, whole / "mine", whole.parent):
        with pytest.raises(BadInput, match=r"the output (is the same as|is inside|contains) the input"):
            run.run(flags={"output": output}, resumed=whole, export="upstream")
    with (
        locked_output(tmp_path / "up", "sa train --export"),
        pytest.raises(BadInput, match="it is being written by another `sa train --export`"),
    ):
        run.run(flags={"output": tmp_path / "up"}, resumed=whole, export="upstream")
    assert not list(tmp_path.iterdir())


def test_a_run_is_apart_from_its_clips(data, tiny_model, tmp_path):
    before = sorted(data.rglob("*"))
    clips = tmp_path / "list.txt"
    clips.write_text(f"{data / 'clip0'}\n{data / 'clip1'}\n", encoding="utf-8")
    (tmp_path / "run").mkdir()
    for out in (data, data / "run", data.parent, data / "clip0" / "run"):
        with pytest.raises(BadInput, match=r"the output (is the same as|is inside|contains) the input"):
            run.run(flags=flags(data, tiny_model, out))
        with pytest.raises(BadInput, match=r"the output (is the same as|is inside|contains) the input"):
            run.run(flags=flags(tmp_path, tiny_model, out, validate=[data]))
    with pytest.raises(BadInput, match=r"the output (is the same as|is inside|contains) the input"):
        run.run(flags=flags(data, tiny_model, data / "clip0" / "run", dataset=[clips]))
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_stages_follow_one_another_and_resume_within_the_second(data, tiny_model, tmp_path, kind):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[stage]]\nname = "pictures"\nsteps = 2\nframes = 1\nimage_only = true\nbatch = 2\ntrain = "all"\n'
        'rate = 1e-3\nwarmup = 0\n[[stage]]\nname = "clips"\nsteps = 3\nframes = 2\nbatch = 1\ntrain = "pose+face"\n'
        'rate = 1e-3\nwarmup = 0\nschedule = "cosine"\n[optimizer]\nema = 0.9\n'
        f'kind = "{kind}"\n[saving]\nevery = 1\nkeep = 9\n'
    )
    given = flags(data, tiny_model, tmp_path / "run")
    stages = ("steps", "frames", "batch", "warmup", "rate", "train", "save_every", "ema")
    given = {name: value for name, value in given.items() if name not in stages} | {"from_scratch": "unet"}
    run.run(flags=given, config_file=recipe)
    rows = read_metrics(tmp_path / "run")
    assert [row["stage"] for row in rows] == ["pictures"] * 2 + ["clips"] * 3
    assert [row["samples"] for row in rows] == [2, 4, 5, 6, 7]
    assert rows[-1]["rate"] < rows[2]["rate"] == 1e-3
    for step in (4, 5):
        os.rename(tmp_path / "run" / "checkpoints" / f"step-{step}", tmp_path / f"step-{step}")
    run.run(flags={}, resumed=tmp_path / "run")
    assert losses(tmp_path / "run") == [row["loss"] for row in rows]
    again, first = (load_file(f / "step-5" / "unet.safetensors") for f in (tmp_path / "run" / "checkpoints", tmp_path))
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_ablations_are_written_into_the_card(whole):
    text = (whole / "model" / "model.toml").read_text()
    for line in ('face_encoder = "on"', 'id_adapter = "distribution"', 'face = "on"', 'face_mask = "released"'):
        assert line in text
    progress = json.loads((whole / "model" / "state" / "progress.json").read_text())
    assert progress["place"] == {"step": STEPS, "stage": 0, "within": STEPS, "samples": 2 * STEPS}


def test_a_checkpoint_is_animated_and_trained_further_as_it_was_trained(data, tiny_model, tmp_path):
    """Conditioning inputs and ablations of the model hold where nothing else is given, as the help says."""
    conditioning = {"noise_aug": 0.2, "motion_bucket": 60.0}
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    ablated = {"id_adapter": "addition", "face_encoder": "off"}
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[loss]\nfps = 12\n")
    run.run(flags=flags(data, tiny_model, first, steps=1, **conditioning, **ablated), config_file=recipe)
    defaults = catalogue.open_model(first / "model").defaults
    assert {**conditioning, "conditioning_fps": 12, "id_adapter": "addition"}.items() <= defaults.items()
    run.run(flags=flags(data, first / "model", second, steps=1))
    config = from_mapping(TrainConfig, read_toml(second / "config.toml"), "config.toml")
    assert (config.loss.noise_aug, config.loss.motion_bucket, config.loss.fps) == (0.2, 60.0, 12)
    assert (config.ablation.id_adapter, config.ablation.face_encoder) == ("addition", "off")
    card = (second / "model" / "model.toml").read_text()
    assert 'face_encoder = "off"' in card
    assert "noise_aug" not in card  # it is the base model's
    run.run(flags=flags(data, second / "model", third, steps=1, noise_aug=0.02, id_adapter="norm", face="off"))
    defaults = catalogue.open_model(third / "model").defaults
    assert (defaults["noise_aug"], defaults["motion_bucket"], defaults["id_adapter"]) == (0.02, 60.0, "norm")
    with pytest.raises(ConfigError, match="--face-encoder: found 'on', expected off: first-step-1 was trained without"):
        run.run(flags=flags(data, first / "model", tmp_path / "fourth", face_encoder="on"))
    assert not (tmp_path / "fourth").exists()


def test_validation_leaves_training_alone_and_writes_a_video(whole, data, tiny_model, tmp_path):
    watch = tmp_path / "watch.toml"
    watch.write_text("[validation]\nevery = 1\nclips = 1\nframes = 2\nsteps = 1\n")
    report = run.run(flags=flags(data, tiny_model, tmp_path / "run", steps=2, validate=[data]), config_file=watch)
    assert losses(tmp_path / "run") == losses(whole)[:2]
    assert [row["step"] for row in checkpoint.read_scores(tmp_path / "run")] == [1, 2]
    (row,) = report.to_json()["validation"]["clips"]
    assert (row["csim"], row["keypoint_error"]) == (None, None)  # the tiny model has no detectors
    video = open_clip(tmp_path / "run" / "validation" / row["video"])
    assert (video.size, video.count) == ((4 * 64, 64), 2)
    rows = read_metrics(tmp_path / "run")
    assert "csim" in rows[-1]
    checkpoint.write_scores(tmp_path / "run", checkpoint.read_scores(tmp_path / "run")[:1])  # killed before the score
    bare = [{key: value for key, value in row.items() if key not in ("csim", "keypoint_error")} for row in rows]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    os.unlink(tmp_path / "run" / "model")
    os.symlink("checkpoints/step-1", tmp_path / "run" / "model")
    run.run(flags={}, resumed=tmp_path / "run")
    assert [row["step"] for row in checkpoint.read_scores(tmp_path / "run")] == [1, 2]
    assert "csim" in read_metrics(tmp_path / "run")[-1]
    assert (tmp_path / "run" / "model").resolve().name == "step-2"


def test_clips_of_one_name_have_a_validation_video_each(data, tiny_model, tmp_path):
    """As ``rec/00001`` and ``vec/00001`` of the reference implementation's folders."""
    others = [write_clip(tmp_path / name / "clip0", 4) for name in ("rec", "vec")]
    watch = tmp_path / "watch.toml"
    watch.write_text("[validation]\nevery = 1\nclips = 3\nframes = 2\nsteps = 1\n")
    given = flags(data, tiny_model, tmp_path / "run", steps=1, validate=[data / "clip0", *others])
    clips = run.run(flags=given, config_file=watch).to_json()["validation"]["clips"]
    assert [row["video"] for row in clips] == [f"step-1-clip0{end}.mp4" for end in ("", "-2", "-3")]
    assert all((tmp_path / "run" / "validation" / row["video"]).is_file() for row in clips)


def test_a_resumed_run_reads_no_caches_that_others_have_written_meanwhile(tiny_model, tmp_path):
    for name in ("one", "other"):
        for index, frames in enumerate((4, 5)):
            write_clip(tmp_path / name / f"clip{index}", frames)
    for cache in (None, "latents"):
        given = {"steps": 4, "cache": cache}
        out = tmp_path / f"long-{cache}"
        run.run(flags=flags(tmp_path / "one", tiny_model, out, **given))
        short = tmp_path / f"short-{cache}"
        run.run(flags=flags(tmp_path / "other", tiny_model, short, **given | {"steps": 2}))
        meanwhile = "embeddings" if cache else "latents"
        run.run(flags=flags(tmp_path / "other", tiny_model, tmp_path / f"meanwhile-{cache}", steps=1, cache=meanwhile))
        run.run(flags={"steps": 4}, resumed=short)
        assert losses(short) == losses(out)
        for file in tmp_path.glob("*/clip*/*.safetensors"):
            file.unlink()


def test_a_new_run_reads_the_caches_that_exist(data, tiny_model, whole, tmp_path):
    out = tmp_path / "run"
    run.run(flags=flags(data, tiny_model, out, cache=None, steps=2))
    assert losses(out) == losses(whole)[:2]
    assert 'cache = "latents,embeddings"' in (out / "config.toml").read_text()


@pytest.mark.parametrize(
    ("given", "warns"),
    [({"from_scratch": "unet", "train": "attentions"}, True), ({"from_scratch": "unet", "train": "all"}, False),
     ({"from_scratch": "face_encoder", "train": "attentions"}, False)],
)  # fmt: skip
def test_random_layers_that_no_stage_trains_are_named(data, tiny_model, tmp_path, given, warns):
    heard = Heard()
    run.run(flags=flags(data, tiny_model, tmp_path / "run", **given), plan_only=True, reporter=heard)
    assert any("--from-scratch unet with --train attentions: layers of the" in line for line in heard.warnings) == warns


def test_references_without_their_noise_are_named(data, tiny_model, tmp_path, monkeypatch):
    """Cached latents are of images without noise, whatever --noise-aug the checkpoint records for `sa animate`."""
    monkeypatch.setattr("stableanimator_cli.train.loop.Loop.run", lambda loop: None)
    for cache, noise, warns in (("latents", 0.5, True), ("latents", 0.02, False), ("off", 0.5, False)):
        heard, out = Heard(), tmp_path / f"run-{cache}-{noise}"
        run.run(flags=flags(data, tiny_model, out, cache=cache, noise_aug=noise), reporter=heard)
        assert any("--noise-aug 0.5: references of cached" in line for line in heard.warnings) == warns


def test_other_weights_of_the_base_model_are_refused_on_resume(data, tiny_model, tmp_path):
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_model, model)
    run.run(flags=flags(data, model, out, steps=2, from_scratch="pose_net"))
    shutil.copy(tiny_model / "face_encoder.safetensors", model / "pose_net.safetensors")  # it is not read
    run.run(flags={"steps": 3}, resumed=out)
    unet = load_file(model / "unet.safetensors")
    save_file({name: 2 * tensor for name, tensor in unet.items()}, model / "unet.safetensors")
    with pytest.raises(BadInput, match="another unet in the model than it was trained with"):
        run.run(flags={"steps": 4}, resumed=out)
    assert len(losses(out)) == 3


def test_a_damaged_checkpoint_is_not_exported(data, tiny_model, tmp_path):
    """Its numbers would load, and get a sha256 of their own."""
    out = tmp_path / "run"
    run.run(flags=flags(data, tiny_model, out, steps=1))
    file = out / "model" / "unet.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x55
    file.write_bytes(content)
    for form in ("model", "upstream"):
        with pytest.raises(ModelDamaged, match=r"unet\.safetensors: found sha256"):
            run.run(flags={"output": tmp_path / "mine"}, resumed=out, export=form)
    assert not (tmp_path / "mine").exists()


def test_a_model_in_the_home_folder_is_found_again(data, tiny_model, tmp_path, monkeypatch):
    """A shell leaves ``--model=~/mine`` as it is, and so does SA_MODEL."""
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    out = tmp_path / "run"
    run.run(flags=flags(data, Path("~") / tiny_model.name, out, steps=1))
    run.run(flags={"steps": 2}, resumed=out)
    assert len(losses(out)) == 2


def test_two_at_one_run_are_one_too_many(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        exclusive_lock(tmp_path / "run" / ".sa.lock"),
        pytest.raises(BadInput, match="being written by another `sa train`"),
    ):
        run.run(flags=flags(data, tiny_model, tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())
