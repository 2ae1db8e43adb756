"""What a training is asked for: presets, stages, flags over them, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli import catalogue
from stableanimator_cli.config.parse import parse_bytes
from stableanimator_cli.config.schema import from_mapping, read_toml, resolve, to_toml
from stableanimator_cli.config.train import StageConfig, TrainConfig, preset_tables
from stableanimator_cli.config.train_diff import diff
from stableanimator_cli.errors import ConfigError
from stableanimator_cli.train.lr_schedule import learning_rate
from stableanimator_cli.train.run import _with_stages

GIVEN = {"dataset": ["clips"], "output": "RUN"}
PRESETS = ("paper", "finetune-24gb", "finetune-40gb", "puppet")


def made(recipe: str | None = None, **flags: Any) -> TrainConfig:
    tables = None if recipe is None else preset_tables(recipe)
    return resolve(TrainConfig, GIVEN | flags, preset=tables).resolve_stages((512, 512))


def stages(recipe: str | None = None, **flags: Any) -> tuple[StageConfig, ...]:
    found = made(recipe, **flags).stage
    assert found is not None  # settled
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    config = made(name, preset=name)
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert from_mapping(TrainConfig, read_toml(tmp_path / "run.toml"), "run.toml") == config
    assert config.preset == name


def test_the_paper_and_the_small_model_are_what_they_are_said_to_be() -> None:
    (paper,) = stages("paper")
    assert (paper.lr, paper.frames, paper.epochs, paper.train) == (1e-5, 16, 20, "attentions")
    assert paper.sizes == ((512, 512), (576, 1024))
    pictures, clips = stages("puppet")
    assert (pictures.frames, pictures.image_only, pictures.batch) == (1, True, 32)
    assert (clips.frames, clips.image_only, clips.batch) == (8, False, 4)
    assert made("puppet").from_scratch == ("unet", "pose_net", "face_encoder")


def test_a_flag_about_stages_holds_for_all_of_them() -> None:
    puppet = stages("puppet", rate=2e-4, steps=7)
    assert [(stage.lr, stage.steps) for stage in puppet] == [(2e-4, 7)] * 2
    assert [stage.batch for stage in puppet] == [32, 4]
    assert stages("paper", steps=9)[0].epochs is None


def test_a_file_wins_over_the_preset_and_a_flag_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optimizer]\nema = 0.9\nclip = 5.0\n")
    config = resolve(TrainConfig, GIVEN | {"clip_norm": 2.0}, file, preset=preset_tables("puppet"))
    assert (config.optimizer.ema, config.optimizer.max_grad_norm) == (0.9, 2.0)
    assert config.loss.reference_degrade == 0.75


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        ({"steps": 0}, "--steps"),
        ({"steps": 1, "epochs": 1.0}, "--epochs"),
        ({}, "--steps"),
        ({"steps": 1, "sizes": "512x500"}, "--sizes"),
        ({"steps": 1, "sizes": "512"}, "--sizes"),
        ({"steps": 1, "lr": 0.0}, "--lr"),
        ({"steps": 1, "from_scratch": "vae"}, "--from-scratch"),
        ({"steps": 1, "cache": "all"}, "--cache"),
        ({"steps": 1, "fit": "lots"}, "--max-memory"),
        ({"steps": 1, "ema": 1.0}, "--ema"),
        ({"steps": 1, "spike": 0.5}, "--spike"),
        ({"steps": 1, "face": "off", "face_encoder": "off"}, "--face-encoder"),
        ({"steps": 1, "validate_clips": 0}, "--validate-clips"),
    ],
)
def test_a_refusal_names_the_flag(flags: dict[str, Any], label: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**flags)
    assert caught.value.option == label


def test_stages_are_checked_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[[stage]]\nname = "a"\nsteps = 1\n[[stage]]\nname = "a"\nsteps = 2\n')
    with pytest.raises(ConfigError, match="each name once"):
        resolve(TrainConfig, GIVEN, file)
    file.write_text("[[stage]]\nstep = 1\n")
    with pytest.raises(ConfigError, match=r"stage\[0\]: step") as caught:
        resolve(TrainConfig, GIVEN, file)
    assert caught.value.hint == "did you mean steps?"
    with pytest.raises(ConfigError, match="one of finetune-24gb"):
        preset_tables("fast")


def test_differences_are_those_that_decide_a_number() -> None:
    left = {"seed": 0, "saving": {"every": 1}, "data": {"workers": 0, "stride": 4}, "stage": [{"rate": 1.0}]}
    right = {"seed": 1, "saving": {"every": 2}, "data": {"workers": 3, "stride": 2}, "stage": [{"rate": 2.0}]}
    assert diff(left, right) == [
        "seed: was 0, now 1",
        "data.stride: was 4, now 2",
        "stage[0].rate: was 1.0, now 2.0",
    ]


@pytest.mark.parametrize(
    ("text", "number"), [("24GB", 24 * 10**9), ("22 GiB", 22 * 2**30), ("1000B", 1000), (1000, 1000)]
)
def test_memory_is_read_in_its_unit(text: str | int, number: int) -> None:
    assert parse_bytes(text) == number


def test_memory_without_a_unit_is_not_taken_for_bytes() -> None:
    with pytest.raises(
        ConfigError, match=r"--max-memory: found '6', expected an amount of memory with its unit, as 24GB"
    ):
        parse_bytes("6")


def test_rates_rise_and_fall_within_their_stage() -> None:
    (stage,) = stages(steps=100, warmup=10, schedule="cosine", rate=1.0)
    rates = [learning_rate(stage, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.505)
    assert rates[99] == pytest.approx(0.01, abs=1e-3)
    (flat,) = stages(steps=100, warmup=0, rate=1.0)
    assert {learning_rate(flat, step) for step in range(100)} == {1.0}


def test_a_size_of_a_model_card_is_checked_as_a_given_one() -> None:
    model = replace(catalogue.open_model("puppet"), defaults={"size": "500x500"})
    with pytest.raises(ConfigError, match="--sizes: found '500x500', expected sides that are multiples of 8"):
        _with_stages(resolve(TrainConfig, GIVEN), "puppet", model)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"sizes": ""}, "--sizes"),
        ({"sizes": "60x64"}, "--sizes: found '60x64', expected sides that are multiples of 8"),
        ({"frames": 0}, "--frames: found 0"),
        ({"stride": 0}, "--stride: found 0"),
        ({"resize": "zoom"}, "--resize: found 'zoom', expected one of stretch, crop, pad"),
        ({"reference_from": "best"}, "--reference-from: found 'best', expected one of unchosen, outside, any, first"),
    ],
)
def test_settings_of_samples_that_cannot_be(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(TrainConfig, GIVEN | setting).resolve_stages((512, 512))
