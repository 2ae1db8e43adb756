"""Presets beside the defaults of a model's card: a requested one wins, the card wins over any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stableanimator_cli.animate import run
from stableanimator_cli.config.animate import AnimateConfig

FILES = {"reference": Path("a.png"), "motion": Path("b.npz"), "output": Path("c.mp4")}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose card sets what every preset sets as well."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    card = folder / "model.toml"
    text = card.read_text(encoding="utf-8")
    assert "[defaults]\n" in text
    card.write_text(text.replace("[defaults]\n", '[defaults]\nrefine_face = "off"\nrefine_iters = 7\n'), "utf-8")
    return folder


def settings(model: Path, file: Path | None = None, **flags: Any) -> tuple[str, str, int]:
    config, _ = run.resolve_config({**FILES, "model": str(model), **flags}, file)
    assert isinstance(config, AnimateConfig)
    return config.preset, config.refine.face, config.refine.iterations


def test_a_card_wins_over_a_preset_that_is_not_requested(model: Path) -> None:
    assert settings(model) == ("standard", "off", 7)
    assert settings(model, refine_iters=1) == ("standard", "off", 1)


def test_a_card_wins_over_the_preset_that_it_names(model: Path) -> None:
    card = model / "model.toml"
    card.write_text(card.read_text().replace("[defaults]\n", '[defaults]\npreset = "paper"\n'))
    assert settings(model) == ("paper", "off", 7)


def test_a_requested_preset_wins_over_the_card(model: Path, tmp_path: Path) -> None:
    assert settings(model, preset="paper") == ("paper", "full", 10)
    assert settings(model, preset="standard") == ("standard", "auto", 2)
    (tmp_path / "run.toml").write_text('preset = "paper"\n[refine]\niterations = 3\n')
    assert settings(model, tmp_path / "run.toml") == ("paper", "full", 3)
