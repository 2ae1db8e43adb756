"""``sa doctor --model``: what a machine can do with a model of which only the configs are here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stableanimator_cli.animate import capacity
from stableanimator_cli.animate.capacity import examine_model
from stableanimator_cli.errors import ConfigError, ModelMissing
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SA_MODEL", raising=False)


def test_a_small_model_fits_and_the_command_is_named() -> None:
    found = examine_model(model="puppet", size="64x64", frames=20, device="cpu")
    assert found.fits
    assert found.exit_code == 0
    assert "verdict    fits with the usual settings" in found.summary()
    assert "--model puppet --size 64x64" in found.data["command"]
    assert found.data["download"]["files"] == 0
    assert found.data["duration"]["flops"] > found.data["calls"]["unet"] * 1e6
    twice = examine_model(model="puppet", size="64x64", frames=40, device="cpu")
    assert 1.5 < twice.data["duration"]["flops"] / found.data["duration"]["flops"] < 3.5


def test_too_little_memory_is_the_exit_code_of_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "available_memory", lambda device: 1 << 20)
    found = examine_model(model="puppet", size="64x64", frames=4, device="cpu")
    assert not found.fits
    assert found.exit_code == 8
    assert found.to_json()["error"] == "check-failed"
    assert "verdict    does not fit: --max-memory" in found.summary()
    assert "command" not in found.summary()


def test_settings_that_fit_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = examine_model(model="puppet", size="128x128", frames=32, device="cpu").data["memory"]["total"]
    monkeypatch.setattr(capacity, "available_memory", lambda device: int((usual - (8 << 20)) / 0.95))
    found = examine_model(model="puppet", size="128x128", frames=32, device="cpu")
    assert found.fits
    assert found.data["chosen"]
    assert found.data["memory"]["total"] < usual
    assert "--max-memory" in found.data["command"]


def test_a_wrong_size_and_an_unknown_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="--size"):
        examine_model(model="puppet", size="64", frames=4)
    with pytest.raises(ModelMissing, match="no model named 'nonsense'"):
        examine_model(model="nonsense", size=None, frames=4)


@pytest.mark.parametrize(("size", "near"), [("7x7", "64x64"), ("260x256", "256x256")])
def test_a_size_that_no_video_can_have_is_refused_as_by_sa_animate(size: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"--size: found '{size}', expected sides that are multiples of 8") as caught:
        examine_model(model="puppet", size=size, frames=4, device="cpu")
    assert caught.value.hint == f"try {near}"


def test_a_control_group_limits_the_memory() -> None:
    import torch

    assert 1 << 28 < capacity.available_memory(torch.device("cpu")) < 1 << 50


def test_the_readme_states_the_memory_that_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+x\d+) \| ([\d.]+) GB \| ([\d.]+) GB \| ([\d.]+) GB \|$", text, re.M)
    (limit,) = re.findall(r"72 frames with `--max-memory (\d+)GB` \|", text)
    assert len(rows) == 2
    for size, *stated in rows:
        predicted = []
        for frames, share in ((72, 1.0), (300, 1.0), (72, int(limit) * 1e9 / (80 << 30))):
            monkeypatch.setattr(capacity, "_SPARE", share)
            found = examine_model(model="stableanimator", size=size, frames=frames, card="A100 80GB")
            predicted.append(f"{found.data['memory']['total'] / 1e9:.1f}")
        assert stated == predicted
        assert all("exact" in choice for choice in found.data["chosen"])
    (size,) = re.findall(r"their dependencies \(([\d.]+) GB\)", text)
    assert size == f"{found.data['download']['bytes'] / 1e9:.1f}"
