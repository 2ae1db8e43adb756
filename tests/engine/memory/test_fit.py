"""What is chosen to make a rendering fit, in which order, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stableanimator_cli.config.animate import DecodeConfig, DeviceConfig, SamplingConfig, WindowConfig
from stableanimator_cli.config.refine import RefineConfig
from stableanimator_cli.engine import compilation
from stableanimator_cli.engine.memory.fit import fit_to_limit
from stableanimator_cli.engine.memory.render import MemoryEstimator
from stableanimator_cli.errors import OutOfMemory
from tests.engine.memory_samples import config, prediction


@pytest.fixture(scope="module")
def on_card(tiny_model) -> MemoryEstimator:
    """A card need not be there to be reckoned with."""
    return prediction(tiny_model, "cuda", torch.bfloat16)


def test_what_fits_is_left_alone(on_card):
    given = config(device=DeviceConfig(max_memory=10**12))
    found, choices = fit_to_limit(given, on_card)
    assert choices == ()
    assert found == config()


def test_checkpoints_are_taken_before_anything_approximate():
    """A large card with a small limit: its own memory would do without checkpoints, the limit does not."""
    estimator = replace(prediction("puppet", "cuda", torch.bfloat16), size=(256, 256), available=10**15)
    needed = {
        way: estimator.of(config(refine=RefineConfig(face="full", checkpointing=way))).total for way in ("on", "off")
    }
    assert needed["on"] < needed["off"]
    limit = DeviceConfig(max_memory=needed["on"])
    found, choices = fit_to_limit(config(refine=RefineConfig(face="full"), device=limit), estimator)
    assert choices == ()
    assert found.refine.checkpointing == "on"


def test_exact_ways_come_before_approximate_ones(on_card):
    """Limits fall from what is needed as given to nothing: each is held, and more and more is changed."""
    base = config(windows=WindowConfig(length=64, overlap=4), decode=DecodeConfig(chunk=1))
    on_card = replace(on_card, frames=64)
    limit, seen, refused = on_card.of(base).total, [], None
    while refused is None:
        try:
            found, choices = fit_to_limit(replace(base, device=DeviceConfig(max_memory=limit - 1)), on_card)
        except OutOfMemory as error:
            refused = error
        else:
            needed = on_card.of(found).total
            assert needed < limit
            assert found.device.max_memory is None
            seen.append([str(choice) for choice in choices])
            limit = needed
    assert refused.exit_code == 6
    assert "smaller --size" in str(refused.hint)
    assert seen[0][0] == "--offload model (exact)"
    approximate = [any("approximate" in choice for choice in choices) for choices in seen]
    assert approximate == sorted(approximate)
    assert approximate[-1]
    assert any(choice.startswith("--ff-chunks") for choices in seen for choice in choices)


def test_long_runs_on_a_card_are_compiled_where_they_can_be(on_card, monkeypatch):
    given = config(device=DeviceConfig(max_memory=10**12), sampling=SamplingConfig(steps=1000))
    monkeypatch.setattr(compilation, "missing", lambda kind: None)
    assert fit_to_limit(given, on_card)[1] == ()  # eight small frames
    found, choices = fit_to_limit(given, replace(on_card, frames=20_000))
    assert found.device.compile == "blocks"
    assert [choice.what for choice in choices] == ["--compile blocks"]
    assert "equal within rounding" in choices[0].error
    monkeypatch.setattr(compilation, "missing", lambda kind: ("a compiler", "install one"))
    assert fit_to_limit(given, replace(on_card, frames=20_000))[0].device.compile == "off"
